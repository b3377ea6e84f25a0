"""``safex-native dump``: outputs of chosen experts for every prompt, for linear probes."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import DeviceError, DiskError, InputError

from .options import (
    MODEL_HELP,
    add_model_options,
    add_prompt_options,
    add_seed_option,
    check_column,
    input_files,
    new_file,
    open_model,
)
from .output import Output, number, table
from .parser import not_negative, positive
from .profile import MAX_NEW, load_prompts
from .progress import Progress, make_progress

if TYPE_CHECKING:
    from safex.expert_set import ExpertSet
    from safex.experts import Expert
    from safex.features import Features
    from safex.model import Model
    from safex.prompts import PromptSet
    from safex.roster import Roster
    from safex.token_rows import TokenRows

USAGE = "MODEL --experts SPEC [options]"
DESCRIPTION = """\
Keep what experts put out for each prompt, before the gate weight, pooled over its tokens: the features that `probe`
reads. Random experts of the same layers, and as often selected, are dumped beside them as controls. A run that was
stopped goes on with --resume. With --tokens every token's output is kept; with --prompt one text's, as the JSON of the
official SAFEx probe."""
EXAMPLE = """\
  safex-native dump demo --experts demo.experts.json
  safex-native dump model.gguf --experts experts.json:id --routing natural --profile model.profile.gguf
  safex-native dump model.gguf --experts 3:17,4:2 --tokens --routing natural -o two.tokens.safetensors
  safex-native dump model.gguf --experts 3:17,4:2 --prompt "How do I bake bread?" -o bread.json"""
DRAWS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("--experts", metavar="SPEC", required=True, help="FILE (its groups), FILE:group, or L:E,L:E")
    add(
        "--routing",
        choices=("forced", "natural"),
        default="forced",
        help="forced = every token goes through each expert, beside the model's own routing; natural = the tokens that "
        "select it (default forced)",
    )
    add("--pool", choices=("mean", "last"), help="over the phase's tokens (default mean)")
    add("--tokens", action="store_true", help="keep the output at every token, unpooled")
    add("--phase", choices=("prompt", "suffix", "response"), default="prompt", help="default prompt")
    add(
        "--max-new",
        type=positive,
        metavar="N",
        help=f"with --phase response: tokens at most (default {MAX_NEW})",
    )
    add(
        "--controls",
        type=not_negative,
        metavar="N",
        help=f"draws of control experts for each group and kind, 0 for none (default {DRAWS}, with --tokens 0)",
    )
    add(
        "--profile",
        metavar="FILE",
        help="take how often experts are selected from this profile (default: counted on the prompts)",
    )
    add("--prompt", metavar="TEXT", help='this text alone: writes {"L-E": [output]} as JSON')
    add("--raw", action="store_true", help="with --prompt: the text as it is, without the chat template")
    add_prompt_options(parser, "regular, jailbreak, benign or any name")
    add_seed_option(parser, "control draws")
    add(
        "-o",
        "--output",
        metavar="OUT",
        help="default: MODEL's name + .features.safetensors, .tokens.safetensors or .outputs.json, here",
    )
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add("--force", action="store_true", help="replace OUT if it exists")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, load the model, dump, report."""
    out = Output(args)
    check_options(args)
    groups = read_groups(args.experts)
    prompts = None if args.prompt is not None else load_prompts(args).limited(args.limit)
    output = output_path(args)
    if prompts is None:
        return dump_one(args, groups, output, out)
    with make_progress(args.model, args.quiet) as progress:
        try:
            dumped = dump(args, groups, prompts, output, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {saved(output, progress, len(prompts))}") from None
        except (DiskError, DeviceError) as error:
            raise type(error)(f"{error}; {saved(output, progress, len(prompts))}") from error
    show(out, dumped, output, progress)
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Options that don't go together. Raises InputError."""
    if args.max_new is not None and args.phase != "response":
        raise InputError("--max-new needs --phase response: without it no answers are generated")
    if args.tokens and args.pool is not None:
        raise InputError("--tokens keeps every token, --pool one vector a prompt: give one of them")
    if args.raw and args.prompt is None:
        raise InputError("--raw needs --prompt: prompts of a file are templated")
    if args.prompt is None:
        check_column(args)
        return
    if not args.prompt.strip():
        raise InputError("--prompt is empty; give it a text")
    for name in ("prompts", "column", "where", "limit", "controls", "profile", "tokens", "resume"):
        if getattr(args, name):
            raise InputError(f"--{name} does not go with --prompt, which dumps one text and no controls")


def dump_one(args: argparse.Namespace, groups: Mapping[str, list[Expert]], output: Path, out: Output) -> int:
    """One text, as the JSON of the official probe: ``{"L-E": [n_embd numbers]}``, null where no token was pooled."""
    from safex import disk
    from safex.roster import Roster

    with make_progress(args.model, args.quiet) as progress, open_model(args, progress.loading) as model:
        prompts: Any = [model.tokenize(args.prompt)] if args.raw else [args.prompt]
        features = model.dump(Roster(dict(groups)), prompts, **settings_of(args), progress=progress.running)
    outputs = {
        f"{expert.layer}-{expert.expert}": values[0].tolist() if present else None
        for expert, values, present in zip(
            features.experts, features.values, features.n_tokens[:, 0].tolist(), strict=True
        )
    }
    with disk.replacing(output) as (fd, _):
        disk.write_at(fd, 0, (json.dumps(outputs) + "\n").encode())
    out.text(f"Outputs of {len(outputs)} experts: {output}")
    out.result({"output": str(output), "outputs": outputs})
    return 0


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What ``Model.dump`` is told of outputs and tokens."""
    how = {"routing": args.routing, "phase": args.phase, "max_new": args.max_new or MAX_NEW}
    return how if args.tokens else how | {"pool": args.pool or "mean"}


def read_groups(spec: str) -> Mapping[str, list[Expert]]:
    """The groups of a file, one of them, or the experts listed."""
    from safex.expert_set import UNNAMED, ExpertSet, parse_experts

    if Path(spec).exists():
        loaded: ExpertSet = ExpertSet.load(spec)
        return {name: members for name, members in loaded.groups.items() if members}
    name = spec.rpartition(":")[2] if re.search("[^0-9:, -]", spec) else UNNAMED
    return {name: parse_experts(spec)}


def output_path(args: argparse.Namespace) -> Path:
    """Where the features go; never over an input. A run that goes on may find its journal there."""
    from safex.model_file import name_of, resolve

    kind = "tokens.safetensors" if args.tokens else "features.safetensors"
    name = name_of(resolve(args.model))
    default = Path(f"{name}.{kind}" if args.prompt is None else f"{name}.outputs.json")
    inputs = input_files(args.model, args.prompts, args.profile, args.experts)
    return new_file(args.output, default, args.force or args.resume, inputs)


def dump(
    args: argparse.Namespace,
    groups: Mapping[str, list[Expert]],
    prompts: PromptSet,
    output: Path,
    progress: Progress,
) -> Features | TokenRows:
    """Run it as the options say."""
    with open_model(args, progress.loading) as model:
        dumping: Any = model.dump_tokens if args.tokens else model.dump
        dumped: Features | TokenRows = dumping(
            make_roster(args, groups, model, prompts),
            prompts,
            **settings_of(args),
            output=output,
            resume=args.resume,
            force=args.force,
            progress=progress.running,
        )
    return dumped


def make_roster(
    args: argparse.Namespace, groups: Mapping[str, list[Expert]], model: Model, prompts: PromptSet
) -> Roster:
    """The groups and their controls. Raises InputError for experts or a profile that are not this model's."""
    from safex.roster import Roster, draw_roster

    draws = args.controls if args.controls is not None else 0 if args.tokens else DRAWS
    if not draws:
        return Roster(dict(groups))
    activation = _activation(args, model, prompts)
    return draw_roster(groups, model.layers, model.n_experts, activation, draws=draws, seed=args.seed)


def _activation(args: argparse.Namespace, model: Model, prompts: PromptSet) -> Any:
    from safex.profile import Profile

    if args.profile is None:
        return model.profile(prompts).activation()
    profile = Profile.load(args.profile)
    known = profile.meta.get("model.fingerprint")
    if known != model.fingerprint:
        raise InputError(f"{args.profile}: is of another model (fingerprint {known}); profile this one")
    return profile.activation()


def saved(output: Path, progress: Progress, total: int) -> str:
    """What a run that was cut short left."""
    if not Path(f"{output}.journal").exists():
        return "no prompt was finished"
    return f"{progress.done} of {total} prompts saved in {output}.journal; go on with --resume"


def show(out: Output, dumped: Features | TokenRows, output: Path, progress: Progress) -> None:
    """How many experts of what kind, and how many prompts have features."""
    from safex.features import Features

    rows = summary(dumped)
    body = [[row["role"], str(row["experts"]), f"{row['present']:.1%}"] for row in rows]
    what = f"Routing {dumped.routing}, phase {dumped.phase}"
    if isinstance(dumped, Features):
        what += f", {dumped.pool} of the tokens"
    out.text(
        f"{what}; {number(len(dumped.prompts.ids))} prompts",
        table(["role", "experts", "prompts with features"], body, right=(1, 2)),
    )
    for note in dumped.roster.notes:
        out.note(f"note: {note}")
    out.text(f"Speed: {number(progress.tokens)} tokens in {progress.seconds:.1f} s")
    if isinstance(dumped, Features):
        out.text(f"Features: {output}", f"Next: safex-native probe {output}")
    else:
        n_rows = sum(len(of.values) for of in dumped.rows)
        out.text(f"Token rows: {output} ({number(n_rows)} rows)")
    result = {"output": str(output), "prompts": len(dumped.prompts.ids), "roles": rows}
    out.result(result)


def summary(dumped: Features | TokenRows) -> list[dict[str, Any]]:
    """A row for each role: how many experts, and the share of (expert, prompt) pairs with outputs."""
    from safex.features import Features

    roles = dumped.roster.roles
    counts = dumped.n_tokens if isinstance(dumped, Features) else dumped.n_rows
    rows = []
    for name in dict.fromkeys(role for of in roles.values() for role in of):
        chosen = [i for i, expert in enumerate(dumped.experts) if name in roles.get(expert, ())]
        present = float((counts[chosen] > 0).mean())
        rows.append({"role": name, "experts": len(chosen), "present": present})
    return rows
