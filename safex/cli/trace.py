"""``safex-native trace``: one prompt, its answer, and the experts both went through."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safex.errors import DiskError, InputError

from .info import NO_TEMPLATE
from .options import MODEL_HELP, add_model_options, chat_settings, open_model
from .output import Output, number, table
from .parser import not_negative
from .progress import make_progress

USAGE = "MODEL (PROMPT | --prompt-file F) [options]"
DESCRIPTION = """\
Trace one prompt and its greedy answer, and write which experts they went through: the JSON of the
official SAFEx trace (counts and mean gate probabilities by layer and expert, prompt and answer apart)."""
EXAMPLE = """\
  safex-native trace demo "How do I bake bread?" -o trace.json
  safex-native trace model.gguf --prompt-file prompt.txt --max-new 32 --json"""
TOP = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("prompt", metavar="PROMPT", nargs="?", help="the prompt's text")
    add("--prompt-file", metavar="F", help="a file whose whole text is the prompt, instead of PROMPT")
    add("--max-new", type=not_negative, default=128, metavar="N", help="tokens of the answer (default 128)")
    add("-o", "--output", metavar="OUT.json", help="write the JSON to this file")
    add(
        "--raw",
        action="store_true",
        help="the text as it is, without the chat template, as the official tool",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Trace and print."""
    from safex.model_file import resolve
    from safex.trace import trace

    out = Output(args)
    prompt = read_prompt(args)
    if args.raw and any(value is not None for value in chat_settings(args).values()):
        raise InputError(
            "--raw shows the text as it is: leave --system, --template-kwargs, --thinking and --date out"
        )
    resolve(args.model)
    output = Path(args.output) if args.output is not None else None
    if output:
        check_folder(output)
    progress = make_progress(args.model, args.quiet)
    with progress, open_model(args, progress.loading) as model:
        chat = bool(model.chat)
        result = trace(model, prompt, args.max_new, args.raw, lambda n: progress.running(0, 1, n))
    if output:
        write(output, json.dumps(result) + "\n")
    if not chat and not args.raw:
        out.note(f"note: {NO_TEMPLATE}")
    show(out, result, output)
    out.result(result)
    return 0


def read_prompt(args: argparse.Namespace) -> str:
    """PROMPT or the text of --prompt-file; exactly one of them, not empty."""
    if (args.prompt is None) == (args.prompt_file is None):
        raise InputError("expected one prompt: either PROMPT or --prompt-file F")
    text = _read(Path(args.prompt_file)) if args.prompt is None else str(args.prompt)
    if not text.strip():
        raise InputError("the prompt is empty; give it a text")
    return text


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}; check the path") from error


def check_folder(output: Path) -> None:
    """Refuse a place that can't be written, before the model is loaded."""
    if not output.parent.is_dir():
        raise InputError(f"{output}: no such folder: make it, or choose another place with -o")
    if output.is_dir():
        raise InputError(f"{output}: is a directory: name a file with -o")


def write(output: Path, text: str) -> None:
    """Write the file whole or not at all."""
    temporary = output.with_name(output.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(
            f"{output}: can't be written: {error.strerror}; choose another place with -o"
        ) from error


def show(out: Output, result: dict[str, Any], output: Path | None) -> None:
    """The answer and the most used experts, for people."""
    out.text(f"Answer: {result['output_text']}")
    for phase in ("input", "output"):
        n_tokens = len(result[f"{phase}_tokens"])
        out.text(f"Most used experts of the {phase} ({number(n_tokens)} tokens)", _table(result, phase))
    out.text(f"Trace: {output}" if output else "The whole trace: --json prints it, -o FILE keeps it")


def _table(result: dict[str, Any], phase: str) -> Any:
    n_tokens = len(result[f"{phase}_tokens"])
    counts, probs = result[f"{phase}_expert_usage"], result[f"{phase}_avg_probs"]
    used = [(-n, layer, e) for layer, row in enumerate(counts) for e, n in enumerate(row) if n]
    rows = [
        [f"{layer}:{e}", number(-n), f"{-n / n_tokens:.1%}", f"{probs[layer][e]:.3f}"]
        for n, layer, e in sorted(used)[:TOP]
    ]
    return table(["layer:expert", "tokens", "share", "mean gate probability"], rows, right=[1, 2, 3])
