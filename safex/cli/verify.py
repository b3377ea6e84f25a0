"""``safex-native verify``: proof that an edited file is what it says, and nothing else."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .differences_table import show_difference
from .output import Output
from .progress import make_steps

if TYPE_CHECKING:
    from safex.shipping import Verification

USAGE = "BASE EDITED [options]"
DESCRIPTION = """\
Compare an edited model with its base, byte by byte, and what it says of itself with what was found: which experts'
slices changed, that they are the ones it lists and nothing else is, and that it is labelled. Exit 1 where it is not."""
EXAMPLE = """\
  safex-native verify model.gguf masked.gguf
  safex-native verify model.gguf masked.gguf --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("base", metavar="BASE", help="the model it was made from")
    parser.add_argument("edited", metavar="EDITED", help="the edited model; of a split one the first part")


def run(args: argparse.Namespace) -> int:
    """Compare, print, and say by the exit code whether it holds."""
    from safex.shipping import verify
    from safex.shipping.differences import is_label

    out = Output(args)
    with make_steps(out.quiet) as steps:
        found = verify(args.base, args.edited, on_step=steps.running)
    changes = found.difference.metadata
    show_difference(out, found.difference, {key: how for key, how in changes.items() if not is_label(key)})
    show_account(out, found)
    out.result(found.to_json())
    return 0 if found.holds else 1


def show_account(out: Output, found: Verification) -> None:
    """What the file says of itself, and the verdict."""
    values = found.account.values
    if values:
        where = {"metadata": "its metadata", "sidecar": "the side-car", "undo": "the undo file"}
        out.text(
            f"Provenance, in {where[found.account.origin or 'metadata']}: {found.account.name}",
            f"  base {values.get('base.file')}, {values.get('tool')}, {values.get('parameters')}",
        )
    for problem in found.problems:
        out.text(f"PROBLEM: {problem}")
    verdict = "is what it says, and nothing else changed" if found.holds else "is NOT what it says"
    out.text(f"Verified: the edited file {verdict}.")
