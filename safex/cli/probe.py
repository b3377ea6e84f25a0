"""``safex-native probe``: what linear probes read from experts' outputs, against random experts and plain words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .export import add_export_options, check_export, export, wants_export
from .options import add_seed_option, new_file
from .output import Output
from .parser import not_negative, positive
from .probe_tables import show
from .progress import make_steps

if TYPE_CHECKING:
    from safex.expert_set import ExpertSet
    from safex.experts import ExpertList
    from safex.features import Features
    from safex.probing import Probing

USAGE = "FEATURES [options]"
DESCRIPTION = """\
Train linear probes on the outputs of experts: can harmful prompts be told from harmless ones there, alone and as a
group? Every prompt is scored by probes that saw neither it nor its twins. Beside them: random experts of the same
layers and as often selected, the larger class, a bag of words, shuffled labels, learning curves, and probes of plain
requests tried on disguised ones. Time grows with the cube of the number of prompts (--limit bounds it), and with each
task, repeat, shuffle and dumped control draw."""
EXAMPLE = """\
  safex-native probe demo.features.safetensors
  safex-native probe model.features.safetensors --task regular-benign --hold-out category --csv tables
  safex-native probe model.features.safetensors --experts experts.json:id --repeats 10 --seed 1 -o id.probing.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("features", metavar="FEATURES", help="a file made by `safex-native dump`")
    _add_what(parser)
    _add_how(parser)
    add_export_options(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-o",
        "--output",
        metavar="OUT",
        help="the result (default: FEATURES' name + .probing.json, here)",
    )
    add("--force", action="store_true", help="replace OUT and exported tables if they exist")
    add(
        "--experts",
        metavar="SPEC",
        help="groups to probe: FILE (each of its groups), FILE:group, or L:E,L:E (default: those that were dumped)",
    )
    add(
        "--task",
        action="append",
        metavar="TASK",
        help="what to tell apart: harmful (regular and jailbreak against benign), regular-benign, regular-jailbreak, "
        "or sets such as regular+jailbreak:benign; may be repeated (default: those three, as far as the prompts go)",
    )
    add("--limit", type=positive, metavar="N", help="probe at most N prompts of each set, evenly spaced")
    add("--hold-out", choices=("category",), help="test on whole categories that no training prompt is of")


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--folds", type=positive, default=5, metavar="K", help="folds of the prompts (default 5)")
    add("--repeats", type=positive, default=5, metavar="R", help="times they are drawn (default 5)")
    add(
        "--control-repeats",
        type=positive,
        default=1,
        metavar="R",
        help="times of these that controls run too, and are compared in (default 1)",
    )
    add(
        "--shuffles",
        type=not_negative,
        default=50,
        metavar="B",
        help="shuffles of the labels, 0 for none (default 50)",
    )
    add(
        "--missing",
        choices=("mean", "drop"),
        default="mean",
        help="prompts that lack some of a group's experts (natural routing): mean = the mean stands there, drop = they "
        "are left out (default mean)",
    )
    add_seed_option(parser, "file")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all of them)")


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, probe, write, print."""
    from safex.features import Features

    out = Output(args)
    output = new_file(args.output, default_output(args.features), args.force, inputs_of(args))
    features = Features.load(args.features).limited(args.limit)
    _check_export(args)
    groups = read_groups(args.experts) if args.experts is not None else None
    try:
        probing = find(args, features, groups)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; nothing was written") from None
    if args.limit is not None:
        probing.parameters["limit"] = args.limit
    probing.save(output)
    tables = _export(args, probing, out)
    show(out, probing)
    out.text(f"Probing: {output}")
    out.result({"output": str(output), "tables": tables, **probing.to_json()})
    return 0


def default_output(features: str) -> Path:
    """The features' name with another ending, in the current folder."""
    name = Path(features).name.removesuffix(".safetensors").removesuffix(".features")
    return Path(name + ".probing.json")


def inputs_of(args: argparse.Namespace) -> list[str]:
    """The files that are read."""
    spec = args.experts or ""
    return [args.features, *filter(None, (spec, spec.rpartition(":")[0]))]


def read_groups(spec: str) -> ExpertSet | Mapping[str, ExpertList]:
    """The groups that ``--experts`` names. Raises InputError."""
    from safex.expert_set import ExpertSet, parse_experts

    experts = parse_experts(spec)
    path, _, group = spec.rpartition(":")
    if Path(spec).is_file():
        return ExpertSet.load(spec)
    if path and Path(path).is_file():
        whole = ExpertSet.load(path)
        return replace(whole, entries={group: whole.entries[group]})
    return {"experts": experts}


def find(
    args: argparse.Namespace, features: Features, groups: ExpertSet | Mapping[str, ExpertList] | None
) -> Probing:
    """Run ``safex.probe`` as the options say."""
    import safex

    with make_steps(args.quiet) as steps:
        return safex.probe(
            features,
            groups,
            tasks=args.task,
            folds=args.folds,
            repeats=args.repeats,
            control_repeats=args.control_repeats,
            shuffles=args.shuffles,
            hold_out=args.hold_out,
            missing=args.missing,
            seed=args.seed,
            n_threads=args.threads,
            progress=steps.running,
        )


def _check_export(args: argparse.Namespace) -> None:
    from safex.probing.tables import NAMES

    check_export(args, NAMES)


def _export(args: argparse.Namespace, probing: Probing, out: Output) -> list[str]:
    from safex.probing.tables import probing_tables

    return export(args, probing_tables(probing), out) if wants_export(args) else []
