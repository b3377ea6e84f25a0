"""``safex-native mask``: a mask of experts written into a model file, a new one or in place."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from safex.errors import InputError

from .edited import in_place, show_files
from .options import MODEL_HELP, input_files, new_file
from .output import Output, size
from .parser import finite
from .progress import make_steps

if TYPE_CHECKING:
    from safex.experts import Expert
    from safex.shipping import MaskReport

USAGE = "MODEL EXPERTS (-o OUT | --in-place) [options]"
DESCRIPTION = """\
Write a mask into a model file: what the experts put out becomes 0 (or is multiplied), as with `eval --mask`, in any
llama.cpp. The file says in its metadata and its name that its safety behaviour was altered, by what, and from what
base; `verify` proves it. Not for release: audit and hardening only."""
EXAMPLE = """\
  safex-native mask model.gguf experts.json:ctrl -o masked.gguf
  safex-native mask model.gguf 3:17,4:2 --gain 0.5 -o damped.gguf
  safex-native mask model.gguf experts.json:ctrl --in-place     (safex-native restore model.gguf takes it back)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("experts", metavar="EXPERTS", help="FILE (all its groups), FILE:group, or L:E,L:E")
    add("-o", "--output", metavar="OUT", help="the new file; parts are named from it where MODEL is split")
    add(
        "--in-place", action="store_true", help="change MODEL itself; an undo file beside it serves `restore`"
    )
    add(
        "--mode",
        choices=("zero", "reroute"),
        default="zero",
        help="zero = the expert's output is multiplied by the gain; reroute = it can't be selected, where the router "
        "has a bias that can say so (default zero)",
    )
    add(
        "--gain",
        type=finite,
        metavar="G",
        help="with mode zero: 0 silences, 0.5 damps, 2 amplifies (default 0)",
    )
    add("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Check the options, write, report."""
    from safex.expert_set import parse_experts

    out = Output(args)
    if args.in_place == (args.output is not None):
        raise InputError("give either -o OUT for a new file or --in-place (see 'safex-native mask --help')")
    if args.gain is not None and args.mode != "zero":
        raise InputError(f"--gain needs --mode zero: mode {args.mode} multiplies nothing")
    experts = parse_experts(args.experts)
    report = _in_place(args, experts) if args.in_place else _new_file(args, experts)
    show(out, report, args.model)
    return 0


def _new_file(args: argparse.Namespace, experts: list[Expert]) -> MaskReport:
    from safex.shipping import write_mask

    target = new_file(
        args.output, Path("masked.gguf"), args.force, input_files(args.model, None, args.experts)
    )
    with make_steps(args.quiet) as steps:
        return write_mask(
            args.model,
            target,
            experts,
            mode=args.mode,
            gain=args.gain or 0.0,
            force=args.force,
            on_step=steps.running,
        )


def _in_place(args: argparse.Namespace, experts: list[Expert]) -> MaskReport:
    from safex.shipping import write_mask

    return in_place(
        args.model, lambda: write_mask(args.model, None, experts, mode=args.mode, gain=args.gain or 0.0)
    )


def show(out: Output, report: MaskReport, model: str) -> None:
    """What was written, where it says so, and what comes next."""
    how = ", ".join(f"{n} {name}" for name, n in report.how.items()) or "none"
    out.text(f"{report.provenance.what}: slices written: {how} ({size(report.n_bytes)})")
    if report.error:
        out.text(f"Not exact: relative error of a slice at most {report.error:.2g}")
    show_files(out, report, model)
    out.result(report.to_json())
