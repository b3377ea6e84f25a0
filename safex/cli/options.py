"""Options that commands share: prompts, masks, answers, files, how the model is loaded; and what they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import InputError

from .output import to_stderr
from .parser import (
    day,
    gpu_layers,
    not_negative,
    override,
    positive,
    system_message,
    template_kwargs,
    token_limit,
)

if TYPE_CHECKING:
    from safex.model import Model
    from safex.prompts import PromptSet

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
PHASES = ("prompt", "suffix", "response")
MODEL_HELP = "a GGUF file (the first part of a split one), or the word demo or demo-planted"
FLASH = {"auto": None, "on": True, "off": False}
MODES = {
    "zero": "zero = output times --gain",
    "reroute": "reroute = can't be selected",
    "force": "force = always selected",
}
MASK_PHASES = ("prompt", "response", "both")


# --- what is run


def add_prompt_options(parser: argparse.ArgumentParser, sets: str, *, marks: bool = False) -> None:
    """Prompts of some ``sets``, and how many; ``marks``: files may say what compliance holds."""
    add = parser.add_argument
    column = "; a column 'comply' holds what real compliance must contain" if marks else ""
    add(
        "--prompts",
        action="append",
        metavar="SET=FILE",
        help=f"prompts of a set ({sets}) from a txt, csv, tsv, json, jsonl or parquet file{column}; may be repeated "
        "(default: the sets that ship with safex-native)",
    )
    add("--column", metavar="C", help="column of the files that holds the prompt (default: a known name)")
    add(
        "--where",
        action="append",
        metavar="COLUMN=VALUE",
        help="only these rows of files that have the column; may be repeated (default: of files that mix safe and "
        "harmful prompts set benign takes the safe ones, regular the harmful, jailbreak the disguised)",
    )
    add("--limit", type=positive, metavar="N", help="at most N prompts of each set, evenly spaced")


def check_column(args: argparse.Namespace) -> None:
    """Refuse a column or rows without files. Raises InputError."""
    for name in ("column", "where"):
        if getattr(args, name) is not None and not args.prompts:
            raise InputError(
                f"--{name} needs --prompts: the sets that ship with safex-native have their own columns"
            )


def read_prompt_files(args: argparse.Namespace) -> PromptSet:
    """The prompts of the files given; what was left out of them is said on stderr. Raises InputError."""
    from safex.prompts import parse_prompt_arguments

    prompts = parse_prompt_arguments(args.prompts, args.column, args.where or ())
    for note in prompts.notes:
        say_note(args, note)
    return prompts


def add_mode_options(parser: argparse.ArgumentParser, modes: Sequence[str]) -> None:
    """How a mask acts, and where."""
    add = parser.add_argument
    add(
        "--mode",
        choices=modes,
        default="zero",
        help=f"{'; '.join(MODES[mode] for mode in modes)} (default zero)",
    )
    add("--gain", type=float, default=0.0, metavar="G", help="factor of mode zero (default 0)")
    add(
        "--phase",
        choices=MASK_PHASES,
        default="both",
        help="where the mask acts: on the prompt's tokens, the answer's, or both (default both)",
    )


def add_control_options(
    parser: argparse.ArgumentParser, what: str, kinds: Sequence[str], default: str
) -> None:
    """What to compare with: random ``what`` of some ``kinds``."""
    add = parser.add_argument
    add(
        "--controls",
        type=not_negative,
        default=20,
        metavar="N",
        help=f"random {what} of each kind to compare with, 0 for none (default 20)",
    )
    add("--control-kinds", metavar="KIND,KIND", help=f"of {', '.join(kinds)} (default: {default})")
    add(
        "--profile",
        metavar="FILE",
        help="a profile that says how often experts are selected (default: counted on the regular prompts)",
    )


def add_length_option(parser: argparse.ArgumentParser, start: int = 64) -> None:
    """How long answers may be; ``start`` tokens are tried first."""
    parser.add_argument(
        "--max-new",
        type=token_limit,
        default="auto",
        metavar="N|auto",
        help=f"maximum tokens per answer; auto = {start}, doubled up to 1024 until a few trial answers can be read "
        "(default auto)",
    )


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """How answers are read: what a mixed answer counts as, and a house style's refusals."""
    add = parser.add_argument
    add(
        "--policy",
        choices=("strict", "lenient"),
        default="strict",
        help="an answer that declines a part and gives steps all the same is a refusal (strict) or compliance "
        "(lenient); for the keyword judge (default strict)",
    )
    add(
        "--refusal-phrases",
        metavar="FILE",
        help="refusal phrases of a house style, besides the shipped ones: one a line (# begins a comment), or a JSON "
        "list; for the keyword judge",
    )


def reading_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The reading options as ``safex.make_judge`` takes them. Raises InputError for a file that can't be read."""
    from safex.judges import read_phrases

    phrases = [] if args.refusal_phrases is None else read_phrases(args.refusal_phrases)
    return {"policy": args.policy, "phrases": phrases}


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Harmless text that shows what a mask costs."""
    add = parser.add_argument
    add(
        "--text", metavar="FILE", help="harmless text for perplexity and divergence (default: one that ships)"
    )
    add("--no-utility", action="store_true", help="leave perplexity and divergence out")


def add_seed_option(parser: argparse.ArgumentParser, what: str) -> None:
    """The seed; ``what`` is the same again with it."""
    parser.add_argument(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help=f"the same seed gives the same {what} (default 0)",
    )


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


def add_file_options(parser: argparse.ArgumentParser, result: str, answers: str) -> None:
    """Where the result and the answers go; their names end so by default."""
    add = parser.add_argument
    add("-o", "--output", metavar="OUT", help=f"the result (default: MODEL's name + .{result}, here)")
    add("--responses", metavar="FILE", help=f"the answers (default: MODEL's name + .{answers}, here)")
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add("--force", action="store_true", help="replace OUT, the answers and exported tables if they exist")


# --- how the model is loaded


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How to load the model, and what it is shown."""
    _add_loading_options(parser)
    _add_chat_options(parser)


def _add_chat_options(parser: argparse.ArgumentParser) -> None:
    """What the model is shown beside the prompts."""
    group = parser.add_argument_group("what the model is shown")
    group.add_argument(
        "--system",
        type=system_message,
        metavar="TEXT|@FILE",
        help="a system message before every prompt (default: what the chat template does without one)",
    )
    group.add_argument(
        "--template-kwargs",
        type=template_kwargs,
        metavar="JSON",
        help='variables of the chat template, as in \'{"reasoning_effort": "low"}\'',
    )
    group.add_argument(
        "--thinking",
        choices=("on", "off"),
        help="set what the chat template understands of thinking, such as enable_thinking; a note says what",
    )
    group.add_argument(
        "--date",
        type=day,
        metavar="YYYY-MM-DD",
        help="the date in prompts whose chat template shows one (default: the day on which the run began)",
    )


def _add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Where the model's layers go, its context, its cache."""
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
    group.add_argument(
        "--n-cpu-moe",
        type=not_negative,
        default=0,
        metavar="N",
        help="keep the routed experts of the first N layers in main memory, the rest as --gpu-layers says; "
        "--override-tensor counts first (default 0)",
    )


def open_model(
    args: argparse.Namespace,
    on_load: Callable[[float], None] | None = None,
    needs_experts: bool = True,
    is_shown_prompts: bool = True,
) -> Model:
    """The model as the options say, after notes on what it is shown, unless no prompt will be.

    Raises UnsupportedError for a dense one where its experts are needed.
    """
    from safex.model import Model

    model = Model(args.model, **model_settings(args), **chat_settings(args), on_load=on_load)
    if needs_experts:
        model.require_experts()
    if is_shown_prompts and any(value is not None for value in chat_settings(args).values()):
        for note in model.chat.notes():
            say_note(args, note)
    return model


def say_note(args: argparse.Namespace, text: str) -> None:
    """One line on stderr, unless --quiet."""
    if not args.quiet:
        to_stderr(f"note: {text}")


def show_as_recorded(args: argparse.Namespace, recorded: Mapping[str, Any]) -> None:
    """Where nothing is given, show the model what a result file says that it was shown."""
    from safex.chat_settings import recorded_settings

    for name, value in recorded_settings(recorded).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def chat_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the model is shown, as ``safex.Model`` takes it: for the model under study, not for a judge's."""
    return {name: getattr(args, name) for name in ("system", "template_kwargs", "thinking", "date")}


def model_settings(args: argparse.Namespace) -> dict[str, Any]:
    """How to load a model, as ``safex.Model`` takes it."""
    return {
        "n_gpu_layers": args.gpu_layers,
        "n_threads": args.threads,
        "n_ctx": args.ctx,
        "n_ubatch": args.ubatch,
        "flash_attn": FLASH[args.flash_attn],
        "kv_type": args.kv_type,
        "mmap": not args.no_mmap,
        "tensor_overrides": dict(args.override_tensor),
        "n_cpu_moe": args.n_cpu_moe,
    }
