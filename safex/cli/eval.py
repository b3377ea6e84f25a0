"""``safex-native eval``: refusal before and after a mask, under jailbreak, on benign prompts, with control masks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safex.errors import DeviceError, DiskError, InputError

from .eval_tables import show
from .export import add_export_options, check_export, export, wants_export
from .options import (
    MODEL_HELP,
    MODES,
    add_control_options,
    add_file_options,
    add_length_option,
    add_mode_options,
    add_model_options,
    add_prompt_options,
    add_reading_options,
    add_seed_option,
    add_text_options,
    check_column,
    input_files,
    model_settings,
    new_file,
    open_model,
    read_prompt_files,
    reading_settings,
)
from .output import Output
from .parser import positive, share
from .progress import make_steps

if TYPE_CHECKING:
    from safex.evaluation import Evaluation, Marks
    from safex.experts import Expert
    from safex.judges import Judge
    from safex.profile import Profile
    from safex.prompts import PromptSet

USAGE = "MODEL [--mask EXPERTS] [options]"
DESCRIPTION = """\
How often the model refuses plain harmful requests (regular), disguised ones (jailbreak) and harmless ones (benign),
and what masking experts changes: every rate as refuse, comply or other, the change on the same prompts, control masks
of as many other experts, and the cost on harmless text. Answers are kept as they come; --resume goes on with a run
that was stopped."""
EXAMPLE = """\
  safex-native eval demo
  safex-native eval demo --mask demo.experts.json:ctrl
  safex-native eval model.gguf --mask 3:17,4:2 --prompts regular=harm.csv --prompts benign=mild.csv --controls 100
  safex-native eval model.gguf --mask experts.json --judge keyword --judge gguf:wildguard-Q4_K_M.gguf"""
KINDS = ("uniform", "layer", "frequency", "active", "active-layer")
DEFAULT_KINDS = KINDS[:4]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_mask_options(parser)
    add_prompt_options(parser, "regular, jailbreak, benign", marks=True)
    _add_answer_options(parser)
    add_text_options(parser)
    add_file_options(parser, "eval.json", "responses.jsonl")
    add_export_options(parser)
    add_model_options(parser)


def _add_mask_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--mask", metavar="EXPERTS", help="experts to mask: FILE, FILE:group, or L:E,L:E (default: none)")
    add_mode_options(parser, list(MODES))
    add_control_options(parser, "masks", KINDS, ",".join(DEFAULT_KINDS))
    add(
        "--control-sets",
        metavar="SET,SET",
        default="regular",
        help="sets that controls are run on (default regular)",
    )


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--judge",
        action="append",
        metavar="SPEC",
        help="keyword, logit, gguf:PATH[:TEMPLATE] or openai:MODEL@URL; may be repeated (default keyword)",
    )
    add_reading_options(parser)
    add_length_option(parser)
    add("--samples", type=positive, default=1, metavar="N", help="answers to each prompt (default 1)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 = always the likeliest token (default 0)",
    )
    add("--top-p", type=share, default=1.0, metavar="P", help="draw from the likeliest tokens (default 1)")
    add_seed_option(parser, "draws")


def run(args: argparse.Namespace) -> int:
    """Check all that can be checked, load the model, run, report."""
    from safex.evaluation.tables import NAMES as TABLES

    out = Output(args)
    check_usage(args)
    inputs = input_files(args.model, args.prompts, args.profile, args.text, args.mask)
    output, answers = output_paths(args, "eval.json", "responses.jsonl", inputs)
    experts = None if args.mask is None else read_experts(args.mask)
    prompts, marks = load_prompts(args)
    profile = load_profile(args)
    check_export(args, TABLES)
    with saying_what_was_saved(answers):
        evaluation = evaluate(args, out, prompts, marks, experts, profile, answers)
    evaluation.save(output)
    tables = _export(args, evaluation, out)
    show(out, evaluation, output)
    out.result({**evaluation.to_json(), "output": str(output), "tables": tables})
    return 0


def check_usage(args: argparse.Namespace) -> None:
    """Options that make no sense together, and judges that are none."""
    from safex.judges import check_spec

    for spec in args.judge or ():
        check_spec(spec)
    reading_settings(args)
    check_pairs(args)
    if args.mask is None:
        for name, default in (("profile", None), ("control_kinds", None), ("text", None)):
            if getattr(args, name) != default:
                raise InputError(f"--{name.replace('_', '-')} needs --mask: it serves to judge a mask")


def check_pairs(args: argparse.Namespace) -> None:
    """Refuse options of files that make no sense together. Raises InputError."""
    check_column(args)
    if args.resume and args.force:
        raise InputError("--resume goes on with the answers that --force would replace: give one of them")


def output_paths(
    args: argparse.Namespace, result: str, responses: str, inputs: Sequence[str]
) -> tuple[Path, Path]:
    """The result and the answers; never over an input. A run that goes on replaces its own result."""
    from safex.model_file import name_of, resolve

    stem = name_of(resolve(args.model))
    again = args.force or args.resume
    output = new_file(args.output, Path(f"{stem}.{result}"), again, inputs)
    answers = new_file(args.responses, Path(f"{stem}.{responses}"), again, inputs)
    if output == answers:
        raise InputError(f"{output}: the result and the answers can't be one file: choose another -o")
    return output, answers


def read_experts(spec: str) -> list[Expert]:
    """The experts that a command line names."""
    from safex.expert_set import parse_experts

    return parse_experts(spec)


def load_prompts(args: argparse.Namespace) -> tuple[PromptSet | None, Marks | None]:
    """The files given with what compliance must contain, or None for the shipped sets that suit the model."""
    from safex.evaluation import marks_of_arguments

    if not args.prompts:
        return None, None
    marks = marks_of_arguments(args.prompts, args.column, args.where or ())
    return read_prompt_files(args), marks


def load_profile(args: argparse.Namespace) -> Profile | None:
    """The profile given, if any."""
    from safex.profile import Profile

    return None if args.profile is None else Profile.load(args.profile)


def evaluate(
    args: argparse.Namespace,
    out: Output,
    prompts: PromptSet | None,
    marks: Marks | None,
    experts: Sequence[Expert] | None,
    profile: Profile | None,
    answers: Path,
) -> Evaluation:
    """Run it as the options say."""
    from safex import evaluation

    judges = make_judges(args)
    with make_steps(args.quiet) as steps:
        steps.running("loading the model", 0, 1)
        with open_model(args, needs_experts=experts is not None) as model:
            return evaluation.evaluate(
                model,
                prompts,
                experts,
                mode=args.mode,
                gain=args.gain,
                phase=args.phase,
                judges=judges,
                controls=_kinds(args),
                draws=max(1, args.controls),
                control_sets=args.control_sets.split(","),
                max_new=args.max_new,
                n_samples=args.samples,
                temperature=args.temperature,
                top_p=args.top_p,
                seed=args.seed,
                output=answers,
                resume=args.resume,
                force=args.force,
                utility=not args.no_utility,
                text=args.text,
                profile=profile,
                comply=marks,
                limit=args.limit,
                progress=steps.running,
                on_trial=lambda trial: out.note(trial.text),
            )


def make_judges(args: argparse.Namespace) -> list[str | Judge]:
    """The judges asked for."""
    return [make_judge(spec, args) for spec in args.judge or ("keyword",)]


def make_judge(spec: str, args: argparse.Namespace) -> str | Judge:
    """A judge by its name; one that needs the model stays a name. A guard model has a context of its own."""
    from safex.judges import make

    own = ("n_ctx", "tensor_overrides", "n_cpu_moe")
    settings = {name: value for name, value in model_settings(args).items() if name not in own}
    reading = reading_settings(args)
    if spec.startswith("gguf:"):
        return make(spec, settings=settings, **reading)
    is_default = reading == {"policy": "strict", "phrases": []}
    return make(spec, **reading) if spec == "keyword" and not is_default else spec


def _kinds(args: argparse.Namespace) -> Sequence[str]:
    if not args.controls:
        return ()
    return args.control_kinds.split(",") if args.control_kinds else DEFAULT_KINDS


@contextmanager
def saying_what_was_saved(answers: Path) -> Iterator[None]:
    """Where a run is cut short, add to the message what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        saved = what_was_saved(answers) or "no answer was finished"
        raise KeyboardInterrupt(f"interrupted; {saved}") from None
    except (DiskError, DeviceError) as error:
        saved = what_was_saved(answers)
        raise type(error)(f"{error}; {saved}" if saved else str(error)) from error


def what_was_saved(answers: Path) -> str:
    """For a run that was cut short: how many answers are kept, and how to go on. Empty where nothing is."""
    from safex import responses

    try:
        n = len(responses.load(answers).records)
    except InputError:
        return ""
    return f"{n} answers saved in {answers}; go on with --resume" if n else ""


def _export(args: argparse.Namespace, evaluation: Evaluation, out: Output) -> list[str]:
    from safex.evaluation.tables import evaluation_tables

    return export(args, evaluation_tables(evaluation), out) if wants_export(args) else []
