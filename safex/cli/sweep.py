"""``safex-native sweep``: what masking each expert alone does to the refusal logit."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import DeviceError, DiskError, InputError

from .export import add_export_options, check_export, export
from .options import (
    MODEL_HELP,
    add_length_option,
    add_model_options,
    add_prompt_options,
    add_reading_options,
    add_seed_option,
    check_column,
    input_files,
    new_file,
    open_model,
    reading_settings,
)
from .output import Output
from .parser import not_negative, positive
from .profile import load_prompts
from .progress import make_steps
from .sweep_tables import show

if TYPE_CHECKING:
    from safex.attribution import Starts, Sweep
    from safex.attribution.kept import Unfinished
    from safex.expert_set import ExpertSet
    from safex.experts import Expert
    from safex.prompts import PromptSet
    from safex.tables import Tables

USAGE = "MODEL (--experts SPEC | --all) [options]"
DESCRIPTION = """\
Mask each expert alone and measure how much less, or more, likely a refusal becomes. The measure is the refusal logit:
the log of the probability that an answer begins like a refusal, minus the same for a compliant answer, on the same
prompts with and without the mask. How this model begins either is found in its own unmasked answers. What is measured
is kept as it comes; --resume goes on with a run that was stopped."""
EXAMPLE = """\
  safex-native sweep demo-planted --all --limit 20
  safex-native sweep model.gguf --experts experts.json --join experts.json --joined swept.json
  safex-native sweep model.gguf --experts experts.json:ctrl --pairs --gradient --csv tables"""
PAIRS = 8
NEIGHBOURS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_what(parser)
    _add_how(parser)
    _add_files(parser)
    add_export_options(parser)
    add_model_options(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--experts",
        metavar="SPEC",
        help="experts to mask, each alone: FILE (all its groups), FILE:group, or L:E,L:E",
    )
    which.add_argument("--all", action="store_true", help="mask every expert of the model, each alone")
    add(
        "--neighbours",
        type=not_negative,
        metavar="N",
        help="with --experts: for each of them also N others of its layer, those selected about as often "
        f"(default {NEIGHBOURS})",
    )
    add_prompt_options(parser, "regular, and as controls benign, jailbreak or any name")


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--mode",
        choices=("zero", "reroute"),
        default="zero",
        help="zero = output times --gain; reroute = can't be selected, the next best takes its place (default zero)",
    )
    add(
        "--gain",
        type=float,
        default=0.0,
        metavar="G",
        help="factor of mode zero: 0 masks, 0.5 halves (default 0)",
    )
    add(
        "--pairs",
        type=positive,
        nargs="?",
        const=PAIRS,
        default=0,
        metavar="N",
        help="also mask the N experts with the largest effect two at a time: what two do beyond the sum of each "
        f"(without N: {PAIRS})",
    )
    add(
        "--gradient",
        action="store_true",
        help="also the slope of the logit by each expert's gain, at gain 1 (four more runs an expert and prompt)",
    )
    add(
        "--step",
        type=float,
        default=0.1,
        metavar="H",
        help="how far --gradient moves the gain (default 0.1; 0.003 is more exact, in F32 models only)",
    )
    for side, what in (("refusal", "refusals"), ("compliance", "compliant answers")):
        add(
            f"--{side}-start",
            action="append",
            metavar="TEXT",
            help=f"how {what} begin; may be repeated (default: found in the model's answers)",
        )
    add_reading_options(parser)
    add_length_option(parser, start=48)
    add(
        "--bootstrap",
        type=positive,
        default=1000,
        metavar="S",
        help="resamples of the prompts, for the intervals (default 1000)",
    )
    add(
        "--correction",
        choices=("holm", "bh"),
        default="holm",
        help="how p-values allow for the number of experts: holm, or bh = Benjamini-Hochberg (default holm)",
    )
    add_seed_option(parser, "file")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", metavar="OUT", help="the sweep file (default: MODEL's name + .sweep.json, here)")
    add("--join", metavar="FILE", help="an expert-set file: write a copy that holds the effects too")
    add(
        "--joined",
        metavar="OUT",
        help="where that copy goes (default: FILE's name + .swept.json, here)",
    )
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add(
        "--force",
        action="store_true",
        help="start again, and replace what is there: OUT, the joined copy, exported tables, an unfinished run",
    )


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, load the model, sweep, write, print."""
    from safex.attribution.kept import check_output

    out = Output(args)
    check_usage(args)
    experts = read_experts(args)
    prompts = load_prompts(args).limited(args.limit)
    to_join, output, joined = check_files(args)
    found = check_output(output, args.resume, args.force)
    say_resumed(out, args, output, found)
    try:
        sweep, seconds = find(args, out, experts, prompts, to_join, output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {what_was_saved(output) or 'nothing was finished'}") from None
    except (DiskError, DeviceError) as error:
        saved = what_was_saved(output)
        raise type(error)(f"{error}; {saved}" if saved else str(error)) from error
    if to_join and joined:
        sweep.joined(to_join).save(joined)
    tables = export(replacing(args), sweep_tables(sweep), out)
    show(out, sweep, seconds, found.masked if found else 0)
    out.text(f"Sweep: {output}", *([f"Joined expert set: {joined}"] if joined else []))
    files = {"output": str(output), "joined": str(joined) if joined else None, "tables": tables}
    out.result({**files, "seconds": seconds, **sweep.to_json()})
    return 0


def check_usage(args: argparse.Namespace) -> None:
    """Options that are missing, or make no sense together."""
    check_column(args)
    reading_settings(args)
    checks = (
        (args.experts or args.all, "say which experts to mask: --experts SPEC, or --all for every one"),
        (args.neighbours is None or not args.all, "--neighbours needs --experts: --all has every expert"),
        (
            bool(args.refusal_start) == bool(args.compliance_start),
            "--refusal-start and --compliance-start go together: give both, or neither",
        ),
        (args.joined is None or args.join, "--joined needs --join FILE: the expert set to join into"),
    )
    for holds, message in checks:
        if not holds:
            raise InputError(message)


def read_experts(args: argparse.Namespace) -> list[Expert] | None:
    """The experts asked for; None for all."""
    from safex.expert_set import parse_experts

    return parse_experts(args.experts) if args.experts else None


def check_files(args: argparse.Namespace) -> tuple[ExpertSet | None, Path, Path | None]:
    """The set to join into, and where results go. Raises InputError before anything is computed."""
    from safex.attribution.tables import NAMES
    from safex.expert_set import ExpertSet
    from safex.model_file import name_of, resolve

    inputs = input_files(args.model, args.prompts, args.experts, args.join)
    stem = name_of(resolve(args.model))
    again = replacing(args)
    output = new_file(args.output, Path(f"{stem}.sweep.json"), again.force, inputs)
    check_export(again, NAMES if args.pairs else NAMES[:1])
    if not args.join:
        return None, output, None
    default = Path(Path(args.join).name.removesuffix(".json") + ".swept.json")
    joined = new_file(args.joined, default, again.force, inputs)
    if joined.absolute() == output.absolute():
        raise InputError(f"{joined}: is the sweep file too: choose another --joined")
    return ExpertSet.load(args.join), output, joined


def replacing(args: argparse.Namespace) -> argparse.Namespace:
    """The options with --force where a run goes on: it replaces its own files."""
    return argparse.Namespace(**{**vars(args), "force": args.force or args.resume})


def say_resumed(out: Output, args: argparse.Namespace, output: Path, found: Unfinished | None) -> None:
    """Say what an earlier run left."""
    if found:
        torn = f"; {found.torn_bytes} bytes of a record cut short are dropped" if found.torn_bytes else ""
        out.note(f"resuming {output}: {found} are done{torn}")
    elif args.resume:
        out.note(f"{output}: no unfinished run lies beside it, so this one starts from the beginning")


def what_was_saved(output: Path) -> str:
    """For a run that was cut short: what is kept, and how to go on. Empty where nothing is."""
    from safex.attribution.kept import unfinished

    found = unfinished(output)
    return f"{found} saved in {output}.journal; go on with --resume" if found else ""


def find(
    args: argparse.Namespace,
    out: Output,
    experts: list[Expert] | None,
    prompts: PromptSet,
    to_join: ExpertSet | None,
    output: Path,
) -> tuple[Sweep, float]:
    """Run ``sweep`` as the options say, into ``output``; and the seconds that it took."""
    from safex.attribution import check_join, sweep
    from safex.judges import KeywordJudge

    reading = reading_settings(args)

    neighbours = NEIGHBOURS if args.neighbours is None else args.neighbours
    with make_steps(args.quiet) as steps:
        steps.running("loading the model", 0, 1)
        with open_model(args) as model:
            if to_join:
                check_join(model.fingerprint, to_join)
            started = time.monotonic()
            found = sweep(
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
                max_new=args.max_new,
                bootstrap=args.bootstrap,
                correction=args.correction,
                seed=args.seed,
                output=output,
                resume=args.resume,
                force=args.force,
                progress=steps.running,
                judge=KeywordJudge(**reading),
                on_trial=lambda trial: out.note(trial.text),
            )
            return found, time.monotonic() - started


def sweep_tables(sweep: Sweep) -> Tables:
    """The tables that --csv and --parquet write."""
    from safex.attribution import tables

    return tables.sweep_tables(sweep)


def make_starts(args: argparse.Namespace, model: Any) -> Starts | None:
    """The starts named by hand, if any."""
    from safex.attribution import Starts

    if not args.refusal_start:
        return None
    return Starts.from_texts(model, args.refusal_start, args.compliance_start)
