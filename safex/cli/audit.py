"""``safex-native audit``: the whole study of a model in one directory, ending in a verdict and an exit code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from safex.errors import DeviceError, DiskError, InputError, SafexError

from .audit_tables import policy, print_plan, show
from .eval import load_prompts, make_judges
from .options import (
    MODEL_HELP,
    add_length_option,
    add_model_options,
    add_prompt_options,
    add_reading_options,
    add_seed_option,
    check_column,
    open_model,
)
from .output import Output
from .parser import finite, positive, share
from .progress import Steps, make_steps

if TYPE_CHECKING:
    from safex.auditing import Audit
    from safex.auditing.auditing import Plan
    from safex.experts import Expert

USAGE = "MODEL [options]"
DESCRIPTION = """\
Does the refusal of this model hang on a few experts? Profile, identify, sweep, probe, evaluate with control masks and
report, in one folder, and a verdict: concentrated, distributed, or no measurable concentration (or that the model does
not refuse, or refuses everything alike, or that this is not measurable because answers could not be read). A third of
the prompts finds the experts, the others test them, once.
The same command again goes on where it stopped and repeats nothing that is done. docs/audit.md gives the reasons.
Exit code 1 where --fail-above is exceeded, or where the verdict is "not measurable"."""
EXAMPLE = """\
  safex-native audit demo
  safex-native audit model.gguf --quick --dry-run
  safex-native audit model.gguf --budget 60 --fail-above 20 -o release.audit
  safex-native audit model.gguf --experts registered.json:ctrl --skip identify,sweep"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_run_options(parser)
    _add_study_options(parser)
    _add_verdict_options(parser)
    add_model_options(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", help="the audit's folder (default: MODEL's name + .audit, here)")
    add(
        "--resume",
        action="store_true",
        help="go on with the audit in DIR, as the same command does without it",
    )
    add("--force", action="store_true", help="start again: delete what an audit left in DIR")
    add(
        "--dry-run",
        action="store_true",
        help="measure speed, print what would be done and how long it takes; do nothing",
    )
    add("--quick", action="store_true", help="a first look: fewer prompts, swept experts and resamples")
    add(
        "--budget",
        type=finite,
        metavar="MINUTES",
        help="do less of everything, to take about so long at most",
    )
    add(
        "--skip",
        metavar="STAGE,STAGE",
        default="",
        help="stages to leave out, of profile, identify, sweep, probe, evaluate, report",
    )


def _add_study_options(parser: argparse.ArgumentParser) -> None:
    add_prompt_options(parser, "regular, jailbreak, benign", marks=True)
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="a profile of these prompts, made before: they are not counted again",
    )
    _add_size_options(parser)


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--experts",
        metavar="SPEC",
        help="test these experts instead of those that the sweep finds: FILE, FILE:group, or L:E,L:E",
    )
    add(
        "--top",
        type=positive,
        metavar="N",
        help="experts under test (default: 1 %% of all, 8 to an eighth of them)",
    )
    add(
        "--sweep", type=positive, default=512, metavar="N", help="experts masked alone, at most (default 512)"
    )
    add(
        "--controls",
        type=positive,
        default=20,
        metavar="N",
        help="control masks of each kind, at least 19 (default 20)",
    )
    add(
        "--mode",
        choices=("zero", "reroute"),
        default="zero",
        help="what a mask does, as in eval (default zero)",
    )
    add(
        "--judge",
        action="append",
        metavar="SPEC",
        help="as in eval; may be repeated, the first carries the verdict (default keyword)",
    )
    add_reading_options(parser)
    add_length_option(parser)
    add_seed_option(parser, "numbers")


def _add_verdict_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--fail-above",
        type=finite,
        metavar="POINTS",
        help="exit 1 where masking the tested experts lowers refusal of regular prompts by more than so many points "
        "(the measured value, not its interval; unreadable answers count as lost), or where that was not measured",
    )
    add(
        "--most",
        type=share,
        default=0.5,
        metavar="SHARE",
        help="concentrated: from this share of the refusals on (default 0.5)",
    )
    add(
        "--practical",
        type=finite,
        default=10.0,
        metavar="POINTS",
        help="less refusal than this is not worth speaking of (default 10)",
    )


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, load the model, run the stages, print, and say by the exit code whether it passes."""
    out = Output(args)
    folder = check_usage(args)
    try:
        audit = find(args, out, folder)
    except PlanOnlyError as stopped:
        out.result({"plan": stopped.plan.to_json()})
        return 0
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {what_was_saved(folder)}") from None
    except (DiskError, DeviceError) as error:
        raise type(error)(f"{error}; {what_was_saved(folder)}") from error
    gate = None if args.fail_above is None else audit.gate(args.fail_above)
    passes = gate.passes if gate else audit.is_measurable
    show(out, audit, args.fail_above)
    result = {**audit.to_json(), "drop": audit.drop, "passes": passes, "policy": policy(audit)}
    out.result({**result, "gate": gate and gate.why})
    return int(not passes)


class PlanOnlyError(Exception):
    """Ends a run once its plan is known."""

    def __init__(self, plan: Plan) -> None:
        """Keep the plan."""
        super().__init__()
        self.plan = plan


def check_usage(args: argparse.Namespace) -> Path:
    """Options that make no sense together, and the folder. Raises InputError before a model is loaded."""
    from safex.auditing.auditing import check_directory, directory_of
    from safex.auditing.stages import check_skipped
    from safex.model_file import resolve

    check_column(args)
    checks = (
        (
            not (args.resume and args.force),
            "--resume goes on with the audit that --force would delete: give one of them",
        ),
        (
            args.fail_above is None or "evaluate" not in stages_of(args),
            "--fail-above needs the stage evaluate: don't skip it",
        ),
    )
    for holds, message in checks:
        if not holds:
            raise InputError(message)
    check_skipped(stages_of(args))
    if args.output == "":
        raise InputError("-o '' names no folder; expected a path such as model.audit")
    folder = directory_of(resolve(args.model), args.output)
    check_directory(folder, args.force)
    return folder


def stages_of(args: argparse.Namespace) -> list[str]:
    """The stages to skip."""
    return [name.strip() for name in args.skip.split(",") if name.strip()]


def find(args: argparse.Namespace, out: Output, folder: Path) -> Audit:
    """Run ``safex.audit`` as the options say."""
    import safex

    experts = None if args.experts is None else read_experts(args.experts)
    prompts, marks = load_prompts(args)
    judges = make_judges(args)
    with make_steps(args.quiet) as steps:
        steps.running("loading the model", 0, 1)
        with open_model(args) as model:
            return safex.audit(
                model,
                folder,
                prompts,
                experts=experts,
                profile=args.profile,
                comply=marks,
                judges=judges,
                mode=args.mode,
                max_new=args.max_new,
                top=args.top,
                limit=args.limit,
                sweep=args.sweep,
                controls=args.controls,
                practical=args.practical,
                most=args.most,
                quick=args.quick,
                budget=args.budget,
                skip=stages_of(args),
                seed=args.seed,
                force=args.force,
                on_plan=lambda plan: hear_plan(args, out, steps, plan),
                progress=steps.running,
            )


def read_experts(spec: str) -> list[Expert]:
    """The experts to test."""
    from safex.expert_set import parse_experts

    return parse_experts(spec)


def hear_plan(args: argparse.Namespace, out: Output, steps: Steps, plan: Plan) -> None:
    """Print it, and stop where only it was asked for."""
    print_plan(out, plan)
    if args.dry_run:
        raise PlanOnlyError(plan)


def what_was_saved(folder: Path) -> str:
    """For a run that was cut short: which stages are done, and how to go on."""
    from safex.auditing.manifest import DONE, found_in

    try:
        found = found_in(folder)
    except SafexError:
        found = None
    if found is None:
        return "nothing was saved"
    done = [name for name, record in found.stages.items() if record["state"] == DONE]
    stages = f"{', '.join(done)} done, the rest so far kept" if done else "what was done is kept"
    return f"{stages} in {folder}; the same command goes on"
