"""``safex-native sweep``: what masking each expert alone does to the refusal logit."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import InputError

from .export import add_export_options, check_export, export
from .output import Output, number, table
from .parser import MODEL_HELP, add_model_options, new_file, not_negative, open_model, positive
from .profile import load_prompts, output_path
from .progress import make_steps

if TYPE_CHECKING:
    from rich.table import Table

    from safex.attribution import Starts, Sweep
    from safex.expert_set import ExpertSet
    from safex.experts import Expert
    from safex.prompts import PromptSet
    from safex.tables import Tables

USAGE = "MODEL (--experts SPEC | --all) [options]"
DESCRIPTION = """\
Causal attribution: mask each expert alone and measure how much less probable a refusal becomes, as the log of the
probability of refusal starts minus that of compliance starts at the first tokens of the answer, on the same prompts
with and without the mask. How this model begins its refusals is found in its own unmasked answers."""
EXAMPLE = """\
  safex-native sweep demo-planted --all --limit 20
  safex-native sweep model.gguf --experts experts.json --join experts.json --joined swept.json
  safex-native sweep model.gguf --experts experts.json:ctrl --pairs --gradient --csv tables"""
SHOWN = 20  # experts in the printed table; the file holds all
PAIRS = 8
NEIGHBOURS = 2
TABLES = ("sweep", "sweep_pairs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--experts", metavar="SPEC", help="experts to mask, each alone: FILE, FILE:group, or L:E,L:E"
    )
    which.add_argument("--all", action="store_true", help="every expert of the model")
    add(
        "--neighbours",
        type=not_negative,
        metavar="N",
        help="with --experts: for each, also the N of its layer that are nearest in activation "
        f"(default {NEIGHBOURS})",
    )
    add(
        "--prompts",
        action="append",
        metavar="SET=FILE",
        help="prompts of a set (regular, and as controls benign, jailbreak or any name); may be repeated (default: the "
        "sets that ship with safex-native)",
    )
    add("--column", metavar="C", help="column of the files that holds the prompt (default: a known name)")
    add("--limit", type=positive, metavar="N", help="at most N prompts of each set, evenly spaced")
    add("--mode", choices=("zero", "reroute"), default="zero", help="what a mask does (default zero)")
    add("--gain", type=float, default=0.0, metavar="G", help="factor of mode zero (default 0)")
    add(
        "--pairs",
        type=positive,
        nargs="?",
        const=PAIRS,
        default=0,
        metavar="N",
        help=f"interactions among the N experts with the largest effect (N: {PAIRS})",
    )
    add(
        "--gradient", action="store_true", help="the derivative of the logit by each expert's gain, at gain 1"
    )
    add("--step", type=float, default=0.1, metavar="H", help="step of --gradient (default 0.1; F32: 0.003)")
    for side, what in (("refusal", "refusals"), ("compliance", "compliant answers")):
        add(
            f"--{side}-start",
            action="append",
            metavar="TEXT",
            help=f"how {what} begin; may be repeated (default: found in the model's answers)",
        )
    add("--bootstrap", type=positive, default=1000, metavar="S", help="resamples (default 1000)")
    add(
        "--correction",
        choices=("holm", "bh"),
        default="holm",
        help="p-values for all experts together: holm, or bh = Benjamini-Hochberg (default holm)",
    )
    add(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="the same seed gives the same file (default 0)",
    )
    add("-o", "--output", metavar="OUT", help="the sweep file (default: MODEL's name + .sweep.json, here)")
    add("--join", metavar="FILE", help="an expert-set file to join the effects into")
    add(
        "--joined",
        metavar="OUT",
        help="where the joined expert set goes (default: FILE's name + .swept.json)",
    )
    add("--force", action="store_true", help="replace OUT and exported tables if they exist")
    add_export_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, load the model, sweep, write, print."""
    out = Output(args)
    check_usage(args)
    experts = read_experts(args)
    prompts = limited(load_prompts(args), args.limit)
    to_join, output, joined = check_files(args)
    with make_steps(args.quiet) as steps, open_model(args) as model:
        started = time.monotonic()
        sweep = find(args, model, experts, prompts, steps.running)
        seconds = time.monotonic() - started
    joined_set = sweep.joined(to_join) if to_join else None
    sweep.save(output)
    if joined_set and joined:
        joined_set.save(joined)
    tables = export(args, sweep_tables(sweep), out)
    show(out, sweep, seconds)
    out.text(f"Sweep: {output}", *([f"Joined expert set: {joined}"] if joined else []))
    files = {"output": str(output), "joined": str(joined) if joined else None, "tables": tables}
    out.result({**files, "seconds": seconds, **sweep.to_json()})
    return 0


def check_usage(args: argparse.Namespace) -> None:
    """Options that are missing, or make no sense together."""
    checks = (
        (args.experts or args.all, "say which experts to mask: --experts SPEC, or --all for every one"),
        (args.neighbours is None or not args.all, "--neighbours needs --experts: --all has every expert"),
        (
            bool(args.refusal_start) == bool(args.compliance_start),
            "--refusal-start and --compliance-start go together: give both, or neither",
        ),
        (args.joined is None or args.join, "--joined needs --join FILE: the expert set to join into"),
        (
            args.column is None or args.prompts,
            "--column needs --prompts: the shipped sets have their own columns",
        ),
    )
    for holds, message in checks:
        if not holds:
            raise InputError(message)


def read_experts(args: argparse.Namespace) -> list[Expert] | None:
    """The experts asked for; None for all."""
    from safex.expert_set import parse_experts

    return parse_experts(args.experts) if args.experts else None


def limited(prompts: PromptSet, limit: int | None) -> PromptSet:
    """At most ``limit`` prompts of each set, evenly spaced, so that twins of sets in one order stay together."""
    from safex.prompts import PromptSet

    if limit is None:
        return prompts
    kept = []
    for name in dict.fromkeys(prompts.sets):
        of_set = [prompt for prompt in prompts if prompt.set == name]
        n = min(limit, len(of_set))
        kept += [of_set[i * len(of_set) // n] for i in range(n)]
    return PromptSet(kept)


def check_files(args: argparse.Namespace) -> tuple[ExpertSet | None, Path, Path | None]:
    """The set to join into, and where results go. Raises InputError before anything is computed."""
    from safex.expert_set import ExpertSet

    inputs = [args.model, *([args.join] if args.join else [])]
    stem = output_path(argparse.Namespace(model=args.model, output=None)).name.removesuffix(".profile.gguf")
    output = new_file(args.output, Path(f"{stem}.sweep.json"), args.force, inputs)
    check_export(args, TABLES if args.pairs else TABLES[:1])
    if not args.join:
        return None, output, None
    default = Path(Path(args.join).name.removesuffix(".json") + ".swept.json")
    joined = new_file(args.joined, default, args.force, inputs)
    if joined.absolute() == output.absolute():
        raise InputError(f"{joined}: is the sweep file too: choose another --joined")
    return ExpertSet.load(args.join), output, joined


def find(
    args: argparse.Namespace, model: Any, experts: list[Expert] | None, prompts: PromptSet, progress: Any
) -> Sweep:
    """Run ``sweep`` as the options say."""
    from safex.attribution import sweep

    neighbours = NEIGHBOURS if args.neighbours is None else args.neighbours
    return sweep(
        model,
        experts,
        prompts,
        mode=args.mode,
        gain=args.gain,
        pairs=args.pairs,
        gradient=args.gradient,
        step=args.step,
        neighbours=0 if args.all else neighbours,
        starts=make_starts(args, model),
        bootstrap=args.bootstrap,
        correction=args.correction,
        seed=args.seed,
        progress=progress,
    )


def make_starts(args: argparse.Namespace, model: Any) -> Starts | None:
    """The starts named by hand, if any."""
    from safex.attribution import Starts

    if not args.refusal_start:
        return None
    return Starts.from_texts(model, args.refusal_start, args.compliance_start)


# --- what is printed


def show(out: Output, sweep: Sweep, seconds: float) -> None:
    """Starts, unmasked logits, experts, pairs, conclusion."""
    out.text(*starts_lines(sweep))
    out.text("Refusal logit without a mask", baseline_table(sweep))
    mode = sweep.parameters["mode"]
    how = f"mode {mode}, gain {sweep.parameters['gain']:g}" if mode == "zero" else f"mode {mode}"
    out.text(f"Effect of masking one expert on the refusal logit ({how}), most refusal-lowering first")
    out.text(experts_table(sweep))
    if sweep.pairs:
        out.text("Interactions: effect of both beyond the sum of their effects (regular)", pairs_table(sweep))
    out.text(sweep.conclusion, speed(sweep, seconds))


def starts_lines(sweep: Sweep) -> list[str]:
    """How refusals and compliant answers begin, and how many of the answers so."""
    lines = []
    for side, what in (("refuse", "Refusals"), ("comply", "Compliant answers")):
        shown = ", ".join(repr(start["text"]) for start in sweep.starts[side][:8])
        more = ", ..." if len(sweep.starts[side]) > 8 else ""
        share = sweep.starts["coverage"].get(side)
        found = f" ({share:.0%} of {sweep.starts['answers'][side]})" if share is not None else ""
        lines.append(f"{what} begin with {shown}{more}{found}")
    return lines


def baseline_table(sweep: Sweep) -> Table:
    """One line a set."""
    body = [
        [name, str(row["prompts"]), f"{row['logit']:+.2f}", _span(row["interval"])]
        for name, row in sweep.baseline.items()
    ]
    return table(["set", "prompts", "logit", "95 %"], body, right=(1, 2, 3))


def experts_table(sweep: Sweep) -> Table:
    """One line an expert."""
    others = [name for name in sweep.baseline if name != "regular"]
    last = [name for name in ("specificity", "gradient") if name in sweep.rows[0]]
    columns = ["expert", "role", "regular", "95 %", *others, "used", "p adjusted", *last]
    body = [
        [
            f"{row['layer']}:{row['expert']}",
            row["role"],
            f"{row['effect']['regular']:+.3f}",
            _span(row["interval"]["regular"]),
            *(f"{row['effect'][name]:+.3f}" for name in others),
            f"{row['used']:.0%}",
            f"{row['p_adjusted']:.2g}",
            *(f"{row[name]:+.3f}" for name in last),
        ]
        for row in sweep.rows[:SHOWN]
    ]
    return table(columns, body, right=range(2, len(columns)))


def pairs_table(sweep: Sweep) -> Table:
    """One line a pair."""
    body = [
        [
            " and ".join(row["experts"]),
            f"{row['effect']:+.3f}",
            f"{row['interaction']:+.3f}",
            _span(row["interaction_interval"]),
            f"{row['p_adjusted']:.2g}",
        ]
        for row in sweep.pairs[:SHOWN]
    ]
    return table(["experts", "effect of both", "interaction", "95 %", "p adjusted"], body, right=(1, 2, 3, 4))


def _span(bounds: list[float]) -> str:
    return f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"


def speed(sweep: Sweep, seconds: float) -> str:
    """How many runs it took."""
    computed, skipped = sweep.parameters["computed"], sweep.parameters["skipped"]
    return (
        f"Speed: {number(computed)} masked prompts in {seconds:.1f} s, {number(computed / seconds)} a second; "
        f"{number(skipped)} more that no masked expert takes part in needed no run"
    )


def sweep_tables(sweep: Sweep) -> Tables:
    """Tables ``sweep`` (a row an expert) and, with pairs, ``sweep_pairs``."""
    parts = dict(zip(TABLES, (sweep.rows, sweep.pairs), strict=True))
    return {name: _columns([_flat(row) for row in rows]) for name, rows in parts.items() if rows}


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: values if isinstance(values[0], (str, bool)) else np.array(values)
        for name, values in columns.items()
    }


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Values by set and bounds as columns of their own."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat({f"{name}_{key}": part for key, part in value.items()})
        elif name == "experts":
            flat |= dict(zip(("first", "second"), value, strict=True))
        elif isinstance(value, list):
            flat |= {f"{name}_{end}": bound for end, bound in zip(("low", "high"), value, strict=True)}
        else:
            flat[name] = value
    return flat
