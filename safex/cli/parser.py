"""The command line: commands found by name, and the types of their values."""

from __future__ import annotations

import argparse
import datetime
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from safex.errors import InputError

PROGRAM = "safex-native"
Value = TypeVar("Value")


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


def token_limit(text: str) -> int | str:
    """A whole number from 1 on, or the word auto."""
    if text == "auto":
        return text
    try:
        return _at_least(1, text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a whole number, at least 1, or auto, found {text!r}"
        ) from None


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


def template_kwargs(text: str) -> dict[str, Any]:
    """A JSON object of template variables."""
    from safex.chat_settings import parse_template_kwargs

    return _checked(parse_template_kwargs, text)


def system_message(text: str) -> str:
    """A system message, or the file that ``@FILE`` names."""
    from safex.chat_settings import read_system

    return _checked(read_system, text)


def day(text: str) -> datetime.date:
    """A day as YYYY-MM-DD."""
    from safex.chat_settings import to_date

    return _checked(to_date, text)


def _checked(read: Callable[[str], Value], text: str) -> Value:
    """What ``read`` makes of an option's text, its complaint as argparse words it."""
    try:
        return read(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
