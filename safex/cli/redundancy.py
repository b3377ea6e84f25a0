"""``safex-native redundancy``: how many experts must be masked until refusal falls by half."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import InputError

from .eval import (
    check_pairs,
    load_profile,
    load_prompts,
    make_judge,
    output_paths,
    read_experts,
    saying_what_was_saved,
)
from .export import add_export_options, check_export, export, wants_export
from .options import (
    MODEL_HELP,
    add_control_options,
    add_file_options,
    add_length_option,
    add_mode_options,
    add_model_options,
    add_prompt_options,
    add_reading_options,
    add_seed_option,
    add_text_options,
    input_files,
    open_model,
    reading_settings,
)
from .output import Output
from .parser import positive
from .progress import make_steps
from .redundancy_tables import show

if TYPE_CHECKING:
    from safex.redundancy_curve import Redundancy

USAGE = "MODEL (--experts EXPERTS | --all) [options]"
DESCRIPTION = """\
How many experts must be masked until refusal of plain harmful requests falls by half? The first 1, 2, 4, 8 ... experts
of an order that is fixed beforehand are masked: refuse, comply and other at each step, the half-point, the area under
the curve as one number of robustness, the same for control orders, and the cost on harmless text. This measures given
orders and searches for none: no mask depends on what another one did. Answers are kept as they come; --resume goes on
with a run that was stopped."""
EXAMPLE = """\
  safex-native redundancy demo-planted --experts demo.experts.json:ctrl
  safex-native redundancy model.gguf --experts experts.json:ctrl --sizes 1,2,4,8,16 --controls 100
  safex-native redundancy model.gguf --all --sizes 1%,2%,5%,10%,20%"""
ORDERS = ("listed", "active")
MODES = ("zero", "reroute")
KINDS = ("uniform", "layer", "frequency", "active", "active-layer", "shuffled")
DEFAULT_KINDS = KINDS[:4]
RESULT, ANSWERS = "redundancy.json", "redundancy.responses.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_order_options(parser)
    add_mode_options(parser, MODES)
    add_prompt_options(parser, "regular, jailbreak, benign", marks=True)
    _add_answer_options(parser)
    add_text_options(parser)
    add_file_options(parser, RESULT, ANSWERS)
    add_export_options(parser)
    add_model_options(parser)


def _add_order_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--experts",
        metavar="EXPERTS",
        help="experts in the order of masking: FILE, FILE:group, or L:E,L:E",
    )
    which.add_argument("--all", action="store_true", help="all experts of the model, the most selected first")
    add(
        "--order",
        choices=ORDERS,
        help="listed = as EXPERTS names them; active = the most selected first (default: listed, with --all active)",
    )
    add(
        "--sizes",
        metavar="N,N,...",
        help="how many experts are masked at a time: numbers, or shares of all experts such as 5%% (default: 1,2,4,8 "
        "... and all of EXPERTS; with --all up to a quarter)",
    )
    add_control_options(
        parser, "orders", KINDS, f"{','.join(DEFAULT_KINDS)}, where enough other experts are left"
    )


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--judge",
        metavar="SPEC",
        default="keyword",
        help="keyword, logit, gguf:PATH[:TEMPLATE] or openai:MODEL@URL (default keyword)",
    )
    add_reading_options(parser)
    add_length_option(parser)
    add(
        "--bootstrap",
        type=positive,
        default=2000,
        metavar="S",
        help="resamples of the prompts, for the intervals (default 2000)",
    )
    add_seed_option(parser, "control orders and intervals")


def run(args: argparse.Namespace) -> int:
    """Check all that can be checked, load the model, run, report."""
    from safex.redundancy_curve.tables import NAMES, redundancy_tables

    out = Output(args)
    check_usage(args)
    inputs = input_files(args.model, args.prompts, args.profile, args.text, args.experts)
    output, answers = output_paths(args, RESULT, ANSWERS, inputs)
    check_export(args, NAMES)
    given = {"experts": _order(args), **_prompts(args), "profile": load_profile(args)}
    with saying_what_was_saved(answers):
        found = measure(args, out, given, answers)
    found.save(output)
    tables = export(args, redundancy_tables(found), out) if wants_export(args) else []
    show(out, found, output)
    out.result({**found.to_json(), "output": str(output), "tables": tables})
    return 0


def check_usage(args: argparse.Namespace) -> None:
    """Options that are missing or make no sense together, and a judge that is none."""
    from safex.judges import check_spec

    check_spec(args.judge)
    reading_settings(args)
    check_pairs(args)
    if not (args.experts or args.all):
        raise InputError("say which experts to mask, in which order: --experts EXPERTS, or --all")
    if args.all and args.order == "listed":
        raise InputError("--order listed needs --experts: --all is ordered by how often experts are selected")
    if not args.controls and args.control_kinds:
        raise InputError("--control-kinds needs control orders: leave out --controls 0")


def _order(args: argparse.Namespace) -> list[Any] | None:
    """The experts in order; None for all. Raises InputError where a file holds several groups, so no one order."""
    if args.all:
        return None
    if args.order != "active" and Path(args.experts).exists():
        _check_one_group(args.experts)
    return [*read_experts(args.experts)]


def _check_one_group(path: str) -> None:
    from safex.expert_set import ExpertSet

    groups = [name for name, experts in ExpertSet.load(path).groups.items() if experts]
    if len(groups) > 1:
        raise InputError(
            f"{path}: holds {len(groups)} groups ({', '.join(groups)}), which together have no order: name one, as in "
            f"{path}:{groups[0]}, or take --order active"
        )


def _prompts(args: argparse.Namespace) -> dict[str, Any]:
    prompts, marks = load_prompts(args)
    return {"prompts": prompts, "comply": marks}


def measure(args: argparse.Namespace, out: Output, given: dict[str, Any], answers: Path) -> Redundancy:
    """Run it as the options say."""
    from safex.redundancy_curve import redundancy

    with make_steps(args.quiet) as steps:
        steps.running("loading the model", 0, 1)
        with open_model(args) as model:
            return redundancy(
                model,
                **given,
                order=args.order,
                sizes=args.sizes.split(",") if args.sizes else None,
                mode=args.mode,
                gain=args.gain,
                phase=args.phase,
                judge=make_judge(args.judge, args),
                controls=args.control_kinds.split(",") if args.control_kinds else None,
                draws=args.controls,
                max_new=args.max_new,
                bootstrap=args.bootstrap,
                seed=args.seed,
                output=answers,
                resume=args.resume,
                force=args.force,
                utility=not args.no_utility,
                text=args.text,
                limit=args.limit,
                progress=steps.running,
                on_trial=lambda trial: out.note(trial.text),
            )
