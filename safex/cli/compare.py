"""``safex-native compare``: what changed between two profiles or two expert sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import InputError

from .export import add_export_options, check_export, export
from .options import PHASES, new_file
from .output import Output, table
from .parser import not_negative, positive, share

if TYPE_CHECKING:
    from rich.table import Table

    from safex.comparison import Comparison, Row
    from safex.expert_set import ExpertSet
    from safex.profile import Profile

USAGE = "A B [options]"
DESCRIPTION = """\
What changed in routing between two profiles of models of one shape (the same model as F16 and Q4_K_M, before and
after pruning or tuning), prompt by prompt; or in the groups of two expert sets."""
EXAMPLE = """\
  safex-native compare f16.profile.gguf q4.profile.gguf -o drift.json
  safex-native compare f16.profile.gguf q4.profile.gguf --phase suffix --csv tables
  safex-native compare f16.experts.json q4.experts.json"""
FOR_PROFILES = ("phase", "top", "rank", "bootstrap", "stability", "seed", "threads")
WORST = 10  # layers in the printed table; the file holds all
NAMED = 12  # experts in a cell of the printed table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; those of profiles have no default here, so that it is seen where they are given."""
    add = parser.add_argument
    add("a", metavar="A", help="a file made by `profile` or by `identify`: what B is compared with")
    add("b", metavar="B", help="a file of the same kind")
    add(
        "-o",
        "--output",
        metavar="OUT",
        help="write the comparison to this JSON file (default: print it only)",
    )
    add("--force", action="store_true", help="replace OUT and exported tables if they exist")
    group = parser.add_argument_group("options of profiles")
    add = group.add_argument
    add("--phase", choices=PHASES, help="which tokens count, as in `identify` (default prompt)")
    add("--top", type=positive, metavar="N", help="length of the top list (default: that of `identify`)")
    add("--rank", choices=("global", "layer"), help="one top list, or one a layer (default global)")
    add("--bootstrap", type=positive, metavar="S", help="resamples of the prompts (default 1000)")
    add(
        "--stability",
        type=share,
        metavar="F",
        help="share of the resamples in which a stable expert is in the top list (default 1.0)",
    )
    add("--seed", type=not_negative, metavar="N", help="the same seed gives the same file (default 0)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all of them)")
    add_export_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, compute, write, print."""
    out = Output(args)
    output = check_output(args)
    check_export(args)
    result = find(args)
    tables = _tables(result)
    check_export(args, tables)  # nothing is written where a table can't be
    if output:
        result.save(output)
    print_comparison(out, result)
    export(args, tables, out)
    if output:
        out.text(f"Comparison: {output}")
    out.text(result.conclusion)
    out.result(result.to_json())
    return 0


def check_output(args: argparse.Namespace) -> Path | None:
    """Where the comparison goes; never over A or B."""
    if args.output is None:
        return None
    return new_file(args.output, Path("drift.json"), args.force, inputs=[args.a, args.b])


def find(args: argparse.Namespace) -> Comparison:
    """Run ``safex.compare`` as the options say. Raises InputError for files of two kinds."""
    from safex.profile import Profile

    a, b = load(args.a), load(args.b)
    kinds = ["a profile" if isinstance(file, Profile) else "an expert set" for file in (a, b)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{args.a} is {kinds[0]}, {args.b} is {kinds[1]}: give two files of one kind")
    given = {name: getattr(args, name) for name in FOR_PROFILES if getattr(args, name) is not None}
    if given and not isinstance(a, Profile):
        raise InputError(
            f"--{next(iter(given))} is for profiles, but {args.a} is an expert set: leave it out"
        )
    if "threads" in given:
        given["n_threads"] = given.pop("threads")
    from safex.comparison import compare

    result = compare(a, b, **given)
    result.a["path"], result.b["path"] = args.a, args.b
    return result


def load(path: str) -> Profile | ExpertSet:
    """A profile where the file is a GGUF container, otherwise an expert set. Raises InputError."""
    from safex.expert_set import ExpertSet
    from safex.profile import Profile

    if path.endswith(".profile.gguf") or _is_gguf(path):
        return Profile.load(path)
    return ExpertSet.load(path)


def _is_gguf(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _tables(result: Comparison) -> Any:
    from safex.tables import comparison_tables

    return comparison_tables(result.to_json())


# --- tables


def print_comparison(out: Output, result: Comparison) -> None:
    """Warnings as notes, then a table for each part that the comparison has."""
    for warning in result.warnings:
        out.note(f"note: {warning}")
    if result.overall:
        out.text("Expert use by set (JS: Jensen-Shannon divergence, 0 to 1)", overall_table(result.overall))
        out.text(layers_heading(result.per_layer), layers_table(result.per_layer))
    if result.stable_sets:
        out.text("Stable experts (layer:expert) by set", changes_table("set", result.stable_sets))
    if result.groups:
        rows = [{"group": name, **row} for name, row in result.groups.items()]
        out.text("Groups", changes_table("group", rows))


def overall_table(rows: list[Row]) -> Table:
    """One line a set."""
    columns = ["set", "prompts", "agreement", "95 %", "rank correlation", "JS", "95 %", "floor"]
    body = [
        [
            row["set"],
            str(row["n_a"]) if row["n_a"] == row["n_b"] else f"{row['n_a']}, {row['n_b']}",
            _number(row["agreement"], ".2%"),
            _interval(row["agreement_interval"], ".2%"),
            _number(row["rank_correlation"], ".3f"),
            _number(row["js_divergence"], ".2g"),
            _interval(row["js_interval"], ".2g"),
            _number(row["js_floor"], ".2g"),
        ]
        for row in rows
    ]
    return table(columns, body, right=range(1, len(columns)))


def layers_heading(rows: list[Row]) -> str:
    """What the table of layers shows."""
    return "Layers that changed most" if len(rows) > WORST else "Layers, those that changed most first"


def layers_table(rows: list[Row]) -> Table:
    """The layers with the largest divergence, over all sets."""
    columns = ["layer", "set", "agreement", "rank correlation", "JS", "95 %", "floor"]
    body = [
        [
            str(row["layer"]),
            row["set"],
            _number(row["agreement"], ".2%"),
            _number(row["rank_correlation"], ".3f"),
            _number(row["js_divergence"], ".2g"),
            _interval(row["js_interval"], ".2g"),
            _number(row["js_floor"], ".2g"),
        ]
        for row in sorted(rows, key=lambda row: -row["js_divergence"])[:WORST]
    ]
    return table(columns, body, right=[0, *range(2, len(columns))])


def changes_table(name: str, rows: list[Row]) -> Table:
    """How many experts stayed, and which entered and left."""
    has_chance = any(row.get("chance") is not None for row in rows)
    columns = [name, "A", "B", "stayed", "Jaccard", *(["by chance", "p"] if has_chance else [])]
    body = [
        [
            row[name],
            str(row["n_a"]),
            str(row["n_b"]),
            str(len(row["stayed"])),
            _number(row["jaccard"], ".2f"),
            *([_number(row["chance"], ".2g"), _number(row["p_value"], ".2g")] if has_chance else []),
            _names(row["entered"]),
            _names(row["left"]),
        ]
        for row in rows
    ]
    return table([*columns, "entered", "left"], body, right=range(1, len(columns)))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(bounds: list[float] | None, form: str) -> str:
    return "" if bounds is None else f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def _names(experts: list[str]) -> str:
    more = f" and {len(experts) - NAMED} more" if len(experts) > NAMED else ""
    return ", ".join(experts[:NAMED]) + more
