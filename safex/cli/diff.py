"""``safex-native diff``: what differs between two model files."""

from __future__ import annotations

import argparse

from .differences_table import show_difference
from .output import Output
from .progress import make_steps

USAGE = "A B [options]"
DESCRIPTION = """\
What differs between two model files, byte by byte: experts' slices, other tensors, metadata; and a hash of all that is
the same. `verify` does this for an edited file and checks its provenance."""
EXAMPLE = """\
  safex-native diff model.gguf other.gguf
  safex-native diff model.gguf other.gguf --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("a", metavar="A", help="a model; of a split one the first part")
    parser.add_argument("b", metavar="B", help="another")


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from safex.shipping import diff

    out = Output(args)
    with make_steps(out.quiet) as steps:
        found = diff(args.a, args.b, on_step=steps.running)
    show_difference(out, found, found.metadata)
    out.result({"equal": found.equal, **found.to_json()})
    return 0
