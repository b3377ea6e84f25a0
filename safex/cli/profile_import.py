"""``safex-native profile --traces``: a profile of other tools' traces, without a model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safex.errors import InputError

from .experts_table import experts_heading, experts_table, most_selected, sets_table, tokens_by_set
from .export import check_export, export
from .options import add_model_options, new_file
from .output import Output
from .parser import Parser, positive

if TYPE_CHECKING:
    from safex.profile import Profile

DEFAULT_OUTPUT = Path("traces.profile.gguf")
OF_RUNS = ("model", "prompts", "column", "where", "limit", "response", "max_new", "resume")
OF_IMPORTS = ("top_k", "experts", "layers")


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """What to import, and what files may leave open."""
    group = parser.add_argument_group("import options")
    group.add_argument(
        "--traces",
        action="append",
        metavar="SET=PATH",
        help="instead of MODEL: traces of a set, a file or a folder, one prompt a file, as JSON of the official SAFEx "
        "layout or CSV of llama.cpp's moe-trace; may be repeated",
    )
    group.add_argument(
        "--top-k", type=positive, metavar="K", help="experts that a token selects, where a CSV leaves it open"
    )
    group.add_argument(
        "--experts", type=positive, metavar="E", help="routed experts in a layer, which a CSV doesn't say"
    )
    group.add_argument(
        "--layers",
        type=block_ranges,
        metavar="N-M,...",
        help="blocks of the filled rows of JSON traces, e.g. 1-47",
    )


def block_ranges(text: str) -> list[int]:
    """Increasing block numbers as in ``1,3-5``.

    >>> block_ranges("1,3-5")
    [1, 3, 4, 5]
    """
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        raise argparse.ArgumentTypeError(f"expected blocks such as 1-47 or 1,3,5, found {text!r}")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return [block for end in ends for block in range(end[0], end[-1] + 1)]


def check_import_usage(args: argparse.Namespace) -> None:
    """Refuse options that make no sense with --traces, or without."""
    if not args.traces:
        given = next((name for name in OF_IMPORTS if getattr(args, name) is not None), None)
        if given:
            raise InputError(f"{_option(given)} needs --traces: a model says it itself")
        return
    if args.model is not None:
        raise InputError(f"--traces stands instead of a model, found both it and {args.model}: leave out one")
    for name, default in _unset().items():
        if getattr(args, name) != default:
            raise InputError(f"{_option(name)} can't go with --traces: no model is run")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unset() -> dict[str, object]:
    """The options of a run, each with the value it has when not given."""
    parser = Parser(add_help=False)
    add_model_options(parser)
    defaults = vars(parser.parse_args([]))
    return dict.fromkeys(OF_RUNS) | {"response": False, "resume": False} | defaults


def run_import(args: argparse.Namespace, out: Output) -> int:
    """Read the traces, write the profile, report."""
    from safex.profile import Profile
    from safex.profile_journal import check_output
    from safex.tables import PROFILE_TABLES, profile_tables
    from safex.trace_import import trace_paths

    sets = trace_sets(args.traces)
    inputs = [str(path) for given in sets.values() for path in trace_paths(given)]
    output = new_file(args.output, DEFAULT_OUTPUT, args.force, inputs)
    check_output(output, force=args.force)
    check_export(args, PROFILE_TABLES)
    profile = Profile.from_traces(sets, args.top_k, args.experts, args.layers)
    profile.phase(args.phase)
    profile.save(output)
    for line in import_notes(profile):
        out.note(f"note: {line}")
    report_import(args, out, profile, output, export(args, profile_tables(profile), out))
    return 0


def trace_sets(arguments: Sequence[str]) -> dict[str, list[str]]:
    """``SET=PATH`` arguments by set."""
    sets: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (equals and path and re.fullmatch(r"[A-Za-z0-9_-]+", name)):
            raise InputError(f"--traces {argument!r}: expected SET=PATH, as in regular=traces/regular")
        sets.setdefault(name, []).append(path)
    return sets


def import_notes(profile: Profile) -> list[str]:
    """What to know of the files that the profile was made of."""
    notes = profile.meta.get("import.notes", [])
    return [str(note) for note in notes] if isinstance(notes, list) else []


def report_import(
    args: argparse.Namespace, out: Output, profile: Profile, output: Path, tables: list[str]
) -> None:
    """Tables, or JSON."""
    from .profile import next_step

    most = most_selected(profile, args.phase, args.top)
    sets = tokens_by_set(profile)
    out.text(experts_heading(args.phase), experts_table(most), sets_table(sets))
    out.text(f"Profile: {output}", next_step(args, output, profile))
    out.result(
        {
            "profile": str(output),
            "model": profile.meta,
            "prompts": len(profile.sets),
            "sets": sets,
            "phases": list(profile.phases),
            "layers": profile.layers,
            "notes": import_notes(profile),
            "phase": args.phase,
            "most_selected": most,
            "tables": tables,
        }
    )
