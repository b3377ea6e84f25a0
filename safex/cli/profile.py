"""``safex-native profile``: count which experts a model selects, and keep the counts in a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import DeviceError, DiskError, InputError

from .experts_table import (
    add_table_options,
    experts_heading,
    experts_table,
    most_selected,
    sets_table,
    tokens_by_set,
)
from .export import add_export_options, check_export, export, wants_export
from .info import NO_TEMPLATE
from .options import (
    MODEL_HELP,
    add_model_options,
    add_prompt_options,
    check_column,
    open_model,
    read_prompt_files,
)
from .output import Output, duration, number
from .parser import positive
from .profile_import import add_import_options, check_import_usage, run_import
from .progress import Progress, make_progress

if TYPE_CHECKING:
    from safex.profile import Profile
    from safex.profile_journal import Unfinished
    from safex.prompts import PromptSet

USAGE = "(MODEL | --traces SET=PATH ...) [options]"
DESCRIPTION = """\
Count which experts the model selects for each prompt, and write the counts to a profile file.
A run that was stopped goes on with --resume; no prompt is lost or counted twice.
With --traces the counts come from other tools' files and no model is needed."""
EXAMPLE = """\
  safex-native profile demo
  safex-native profile model.gguf --prompts regular=plain.csv --prompts benign=mild.txt
  safex-native profile model.gguf --response --resume -o answers.profile.gguf
  safex-native profile --traces regular=traces/plain --traces benign=traces/mild -o out.profile.gguf"""
MAX_NEW = 64
ENOUGH = 20  # prompts of a set, for identify to find anything


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    add_prompt_options(parser, "regular, jailbreak, benign or any name")
    add(
        "-o", "--output", metavar="OUT", help="the profile file (default: MODEL's name + .profile.gguf, here)"
    )
    add(
        "--response", action="store_true", help="generate answers too and count their tokens (phase response)"
    )
    add("--max-new", type=positive, metavar="N", help=f"tokens of an answer at most (default {MAX_NEW})")
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add("--force", action="store_true", help="replace OUT and exported tables if they exist")
    add_table_options(parser)
    add_export_options(parser)
    add_import_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check all that can be checked, load the model, run, report."""
    from safex.profile_journal import check_output
    from safex.tables import PROFILE_TABLES

    out = Output(args)
    check_import_usage(args)
    if args.traces:
        return run_import(args, out)
    check_usage(args)
    prompts = load_prompts(args).limited(args.limit)
    output = output_path(args)
    check_export(args, PROFILE_TABLES)
    found = check_output(output, args.resume, args.force)
    say_resumed(out, args, output, found, len(prompts))
    with make_progress(args.model, args.quiet) as progress:
        try:
            profile, chat = run_profile(args, prompts, output, progress)
        except KeyboardInterrupt:
            saved = what_was_saved(output, progress, len(prompts))
            raise KeyboardInterrupt(f"interrupted; {saved or 'no prompt was finished'}") from None
        except (DiskError, DeviceError) as error:
            saved = what_was_saved(output, progress, len(prompts))
            raise type(error)(f"{error}; {saved}" if saved else str(error)) from error
    if not chat:
        out.note(f"note: {NO_TEMPLATE}")
    report(out, args, profile, output, progress, found, chat)
    return 0


def check_usage(args: argparse.Namespace) -> None:
    """Options that are missing, or make no sense together."""
    if args.model is None:
        raise InputError(
            "expected MODEL, or traces to import with --traces SET=PATH (see 'safex-native profile --help')"
        )
    if args.max_new is not None and not args.response:
        raise InputError("--max-new needs --response: without it no answers are generated")
    if args.phase == "response" and not args.response:
        raise InputError("--phase response needs --response: without it no answers are generated")
    check_column(args)


def load_prompts(args: argparse.Namespace) -> PromptSet:
    """The files given, or the shipped sets that suit the model."""
    from safex.model_file import is_demo
    from safex.prompts import PromptSet

    if args.prompts:
        return read_prompt_files(args)
    return PromptSet.bundled("demo") if is_demo(args.model) else PromptSet.default()


def output_path(args: argparse.Namespace) -> Path:
    """Where the profile goes; never over the model."""
    from safex.model_file import name_of, resolve, shards

    model = resolve(args.model)
    if args.output is None:
        return Path(f"{name_of(model)}.profile.gguf")
    if not args.output or args.output.endswith("/"):
        raise InputError(f"-o {args.output!r} names no file; expected a path such as out.profile.gguf")
    output = Path(args.output)
    if output.exists() and any(part.exists() and output.samefile(part) for part in shards(model)):
        raise InputError(f"{output}: is the model itself: choose another -o")
    return output


def run_profile(
    args: argparse.Namespace, prompts: PromptSet, output: Path, progress: Progress
) -> tuple[Profile, bool]:
    """The profile, and whether the model has a chat template."""
    with open_model(args, progress.loading) as model:
        profile = model.profile(
            prompts,
            response=args.response,
            max_new=args.max_new or MAX_NEW,
            output=output,
            resume=args.resume,
            force=args.force,
            progress=progress.running,
        )
        return profile, bool(model.chat)


def say_resumed(
    out: Output, args: argparse.Namespace, output: Path, found: Unfinished | None, total: int
) -> None:
    """Say what an earlier run left."""
    if found:
        torn = f"; {found.torn_bytes} bytes of a record cut short are dropped" if found.torn_bytes else ""
        out.note(f"resuming {output}: {number(found.prompts)} of {number(total)} prompts are done{torn}")
    elif args.resume:
        out.note(f"{output}: no unfinished run lies beside it, so this one starts from the first prompt")


def what_was_saved(output: Path, progress: Progress, total: int) -> str:
    """For a run that was cut short: what is kept, and how to go on. Empty where nothing is."""
    from safex.profile_journal import unfinished

    found = unfinished(output)
    if not found and progress.done == total:
        return f"{output} is complete"
    if not found or not found.prompts:
        return ""
    return f"{found.prompts} of {total} prompts saved in {output}.journal; go on with --resume"


def report(
    out: Output,
    args: argparse.Namespace,
    profile: Profile,
    output: Path,
    progress: Progress,
    found: Unfinished | None,
    chat: bool,
) -> None:
    """Tables, or JSON."""
    from safex.tables import profile_tables

    tables = export(args, profile_tables(profile), out) if wants_export(args) else []
    result: dict[str, Any] = {
        "profile": str(output),
        "model": profile.meta,
        "chat_template": chat,
        "prompts": len(profile.sets),
        "sets": tokens_by_set(profile),
        "phases": list(profile.phases),
        "resumed_prompts": found.prompts if found else 0,
        "dropped_bytes": found.torn_bytes if found else 0,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens_per_second,
        "phase": args.phase,
        "most_selected": most_selected(profile, args.phase, args.top),
        "tables": tables,
    }
    out.text(experts_heading(args.phase), experts_table(result["most_selected"]))
    out.text(sets_table(result["sets"]))
    out.text(_speed(progress), f"Profile: {output}", next_step(args, output, profile))
    out.result(result)


def _speed(progress: Progress) -> str:
    seconds = duration(progress.seconds) if progress.seconds >= 60 else f"{progress.seconds:.2f} s"
    speed = f"{number(progress.tokens)} tokens in {seconds}, {number(progress.tokens_per_second)} tokens/s"
    return f"Speed: {speed}"


def next_step(args: argparse.Namespace, output: Path, profile: Profile) -> str:
    """What to do with the profile: find experts where there are prompts enough, or else look at it."""
    import shlex

    path = shlex.quote(str(output))
    if min(profile.sets.count(name) for name in ("regular", "jailbreak")) >= ENOUGH:
        phase = "suffix" if "suffix" in profile.phases else "prompt"
        return (
            f"Next: safex-native identify {path} --phase {phase} finds experts that the sets use differently"
        )
    other = next((phase for phase in reversed(profile.phases) if phase != args.phase), None)
    if other is None:
        return f"Next: safex-native info {path} shows what it holds"
    return f"Next: safex-native info {path} --phase {other} shows this table for another phase"
