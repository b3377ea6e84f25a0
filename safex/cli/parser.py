"""Arguments: the commands found by name, and the options that commands share."""

from __future__ import annotations

import argparse
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from safex.errors import InputError

if TYPE_CHECKING:
    from safex.model import Model

PROGRAM = "safex-native"
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
PHASES = ("prompt", "suffix", "response")
MODEL_HELP = "a GGUF file (the first part of a split one), or the word demo or demo-planted"
FLASH = {"auto": None, "on": True, "off": False}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, raised as InputError."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, and where the help is."""
        raise InputError(f"{message} (see '{self.prog} --help')")


def parse(words: Sequence[str], commands: Mapping[str, str]) -> argparse.Namespace:
    """Read a command line; ``run`` of the result is the command's function. Only its module is imported."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None or name not in commands:
        return _parse_without_command(words, commands, name)
    at = list(words).index(name)
    before = _main_parser(commands).parse_args(words[:at])
    module = importlib.import_module(f".{name}", __package__)
    args = _command_parser(name, commands[name], module).parse_args(words[at + 1 :])
    args.run = module.run
    args.debug = args.debug or before.debug
    return args


def _parse_without_command(
    words: Sequence[str], commands: Mapping[str, str], name: str | None
) -> argparse.Namespace:
    parser = _main_parser(commands)
    if name is None:
        parser.parse_args(words)
        parser.error(f"no command given; expected one of {', '.join(commands)}")
    import difflib

    near = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(commands)}"
    parser.error(f"there is no command {name!r}; {hint}")


def _main_parser(commands: Mapping[str, str]) -> Parser:
    lines = "\n".join(f"  {name:<12}{text}" for name, text in commands.items())
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [--debug] COMMAND ...",
        description="Which experts of a Mixture-of-Experts GGUF model carry its safety behaviour.",
        epilog=f"""\
commands:
{lines}

{PROGRAM} COMMAND --help explains a command.

example:
  {PROGRAM} profile demo     (demo is a small model that ships with the package)""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Version(argparse.Action):
    """Print the versions; they are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print and exit."""
        from safex import __version__
        from safex.library import UPSTREAM_ID

        print(f"{PROGRAM} {__version__} (llama.cpp {UPSTREAM_ID})")
        parser.exit()


def _command_parser(name: str, summary: str, module: ModuleType) -> Parser:
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} {module.USAGE}",
        description=module.DESCRIPTION,
        epilog=f"example:\n{module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout, text on stderr")
    parser.add_argument(
        "--quiet", action="store_true", help="no progress and no text, only files, JSON, errors"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


# --- types of values


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _at_least(1, text)


def finite(text: str) -> float:
    """Any number but infinity and NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, found {text!r}")
    return value


def not_negative(text: str) -> int:
    """A whole number from 0 on."""
    return _at_least(0, text)


def gpu_layers(text: str) -> int:
    """A whole number from -1 on."""
    return _at_least(-1, text)


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and at most 1, found {text!r}")
    return value


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, found {text!r}")
    return value


def override(text: str) -> tuple[str, str]:
    """``REGEX=BUFFER``, divided at the last ``=``."""
    pattern, equals, buffer = text.rpartition("=")
    if not (equals and pattern and buffer):
        raise argparse.ArgumentTypeError(f"expected REGEX=BUFFER, as in 'ffn_.*_exps=CPU', found {text!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern, buffer


# --- files to write


def new_file(given: str | None, default: Path, force: bool, inputs: Sequence[str]) -> Path:
    """Where a result goes: a file that may be written, never one of the inputs. Raises InputError."""
    if given is not None and (not given or given.endswith("/")):
        raise InputError(f"-o {given!r} names no file; expected a path such as {default}")
    path = default if given is None else Path(given)
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else "its folder doesn't exist"
        raise InputError(f"{path}: {problem}: choose another -o")
    if path.exists() and any(Path(name).exists() and path.samefile(name) for name in inputs):
        raise InputError(f"{path}: is one of the inputs: choose another -o")
    if path.exists() and not force:
        raise InputError(f"{path}: exists: choose another -o, or replace it with --force")
    return path


def input_files(model: str, prompts: Sequence[str] | None, *others: str | None) -> list[str]:
    """Files that a run reads and must not write: the model's, the prompts', and others (``FILE`` or ``FILE:group``)."""
    from safex.model_file import resolve, shards

    files = [part.partition("=")[2] or part for part in prompts or ()]
    named = [name for other in others if other for name in (other, other.rpartition(":")[0]) if name]
    return [*map(str, shards(resolve(model))), *files, *named]


# --- options shared by commands that load a model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How to load the model: where its layers go, its context, its cache."""
    group = parser.add_argument_group("model options")
    group.add_argument(
        "--gpu-layers",
        type=gpu_layers,
        default=0,
        metavar="N",
        help="layers on the GPU, -1 for all (default 0)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all of them)")
    group.add_argument(
        "--ctx", type=positive, default=4096, metavar="N", help="context in tokens (default 4096)"
    )
    group.add_argument(
        "--ubatch", type=positive, default=512, metavar="N", help="tokens computed at once (default 512)"
    )
    group.add_argument(
        "--flash-attn", choices=tuple(FLASH), default="auto", help="flash attention (default auto)"
    )
    group.add_argument(
        "--kv-type", choices=KV_TYPES, default="f16", help="type of the KV cache (default f16)"
    )
    group.add_argument("--no-mmap", action="store_true", help="read the file instead of mapping it")
    group.add_argument(
        "--override-tensor",
        type=override,
        action="append",
        default=[],
        metavar="REGEX=BUFFER",
        help="where tensors of matching names go, e.g. 'ffn_.*_exps=CPU'; may be repeated",
    )


def open_model(
    args: argparse.Namespace, on_load: Callable[[float], None] | None = None, needs_experts: bool = True
) -> Model:
    """The model as the options say. Raises UnsupportedError for a dense one where its experts are needed."""
    from safex.model import Model

    model = Model(args.model, **model_settings(args), on_load=on_load)
    if needs_experts:
        model.require_experts()
    return model


def model_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The model options as ``safex.Model`` takes them."""
    return {
        "n_gpu_layers": args.gpu_layers,
        "n_threads": args.threads,
        "n_ctx": args.ctx,
        "n_ubatch": args.ubatch,
        "flash_attn": FLASH[args.flash_attn],
        "kv_type": args.kv_type,
        "mmap": not args.no_mmap,
        "tensor_overrides": dict(args.override_tensor),
    }
