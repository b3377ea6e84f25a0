"""``safex-native restore``: an in-place edit taken back."""

from __future__ import annotations

import argparse

from .output import Output, size

USAGE = "MODEL [options]"
DESCRIPTION = """\
Take an in-place edit back, finished or cut short: the model is its base again, byte for byte; the undo file goes."""
EXAMPLE = "  safex-native restore model.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help="the edited file; MODEL.undo lies beside it")


def run(args: argparse.Namespace) -> int:
    """Take it back and say what was."""
    from safex.shipping import restore

    out = Output(args)
    undo = restore(args.model)
    n_bytes = sum(n for *_, n in undo.ranges)
    out.text(
        f"{args.model} is its base again: {len(undo.ranges)} ranges ({size(n_bytes)}) written back, "
        f"fingerprint {undo.fingerprint}"
    )
    out.result({"file": args.model, "fingerprint": undo.fingerprint, "bytes": n_bytes, "edit": undo.request})
    return 0
