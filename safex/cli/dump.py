"""``safex-native dump``: outputs of chosen experts for every prompt, for linear probes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import DeviceError, DiskError, InputError

from .output import Output, number, table
from .parser import MODEL_HELP, add_model_options, input_files, new_file, not_negative, open_model, positive
from .profile import MAX_NEW, load_prompts
from .progress import Progress, make_progress

if TYPE_CHECKING:
    from safex.expert_set import ExpertSet
    from safex.experts import Expert
    from safex.features import Features
    from safex.model import Model
    from safex.prompts import PromptSet
    from safex.roster import Roster

USAGE = "MODEL --experts SPEC [options]"
DESCRIPTION = """\
Keep what experts put out for each prompt, before the gate weight, pooled over its tokens: the features that `probe`
reads. Random experts of the same layers, and as often selected, are dumped beside them as controls. A run that was
stopped goes on with --resume."""
EXAMPLE = """\
  safex-native dump demo --experts demo.experts.json
  safex-native dump model.gguf --experts experts.json:id --routing natural --profile model.profile.gguf
  safex-native dump model.gguf --experts 3:17,4:2 --controls 0 -o two.features.safetensors"""
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
    add("--pool", choices=("mean", "last"), default="mean", help="over the phase's tokens (default mean)")
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
        default=DRAWS,
        metavar="N",
        help=f"draws of control experts for each group and kind, 0 for none (default {DRAWS})",
    )
    add(
        "--profile",
        metavar="FILE",
        help="take how often experts are selected from this profile (default: counted on the prompts)",
    )
    add(
        "--prompts",
        action="append",
        metavar="SET=FILE",
        help="prompts of a set; may be repeated (default: the sets that ship with safex-native)",
    )
    add("--column", metavar="C", help="column of the files that holds the prompt (default: a known name)")
    add("--limit", type=positive, metavar="N", help="at most N prompts of each set, evenly spaced")
    add("--seed", type=not_negative, default=0, metavar="N", help="of the control draws (default 0)")
    add("-o", "--output", metavar="OUT", help="default: MODEL's name + .features.safetensors, here")
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add("--force", action="store_true", help="replace OUT if it exists")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, load the model, dump, report."""
    out = Output(args)
    if args.max_new is not None and args.phase != "response":
        raise InputError("--max-new needs --phase response: without it no answers are generated")
    groups = read_groups(args.experts)
    prompts = load_prompts(args).limited(args.limit)
    output = output_path(args)
    with make_progress(args.model, args.quiet) as progress:
        try:
            features = dump(args, groups, prompts, output, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {saved(output, progress, len(prompts))}") from None
        except (DiskError, DeviceError) as error:
            raise type(error)(f"{error}; {saved(output, progress, len(prompts))}") from error
    show(out, features, output, progress)
    return 0


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

    default = Path(f"{name_of(resolve(args.model))}.features.safetensors")
    inputs = input_files(args.model, args.prompts, args.profile, args.experts)
    return new_file(args.output, default, args.force or args.resume, inputs)


def dump(
    args: argparse.Namespace,
    groups: Mapping[str, list[Expert]],
    prompts: PromptSet,
    output: Path,
    progress: Progress,
) -> Features:
    """Run it as the options say."""
    with open_model(args, progress.loading) as model:
        return model.dump(
            make_roster(args, groups, model, prompts),
            prompts,
            routing=args.routing,
            pool=args.pool,
            phase=args.phase,
            max_new=args.max_new or MAX_NEW,
            output=output,
            resume=args.resume,
            force=args.force,
            progress=progress.running,
        )


def make_roster(
    args: argparse.Namespace, groups: Mapping[str, list[Expert]], model: Model, prompts: PromptSet
) -> Roster:
    """The groups and their controls. Raises InputError for experts or a profile that are not this model's."""
    from safex.roster import Roster, draw_roster

    if not args.controls:
        return Roster(dict(groups))
    activation = _activation(args, model, prompts)
    return draw_roster(groups, model.layers, model.n_experts, activation, draws=args.controls, seed=args.seed)


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


def show(out: Output, features: Features, output: Path, progress: Progress) -> None:
    """How many experts of what kind, and how many prompts have features."""
    rows = summary(features)
    body = [[row["role"], str(row["experts"]), f"{row['present']:.1%}"] for row in rows]
    out.text(
        f"Features of {len(features.sets)} prompts x {features.n_embd}, routing {features.routing}, "
        f"{features.pool} of phase {features.phase}",
        table(["role", "experts", "prompts with features"], body, right=(1, 2)),
    )
    for note in features.roster.notes:
        out.note(f"note: {note}")
    out.text(
        f"Speed: {number(progress.tokens)} tokens in {progress.seconds:.1f} s",
        f"Features: {output}",
        f"Next: safex-native probe {output}",
    )
    out.result(
        {"features": str(output), "prompts": len(features.sets), "n_embd": features.n_embd, "roles": rows}
    )


def summary(features: Features) -> list[dict[str, Any]]:
    """A row for each role: how many experts, and the share of (expert, prompt) pairs with features."""
    roles = features.roles
    names = dict.fromkeys(role for of in roles for role in of)
    rows = []
    for name in names:
        chosen = [i for i, of in enumerate(roles) if name in of]
        present = float((features.n_tokens[chosen] > 0).mean())
        rows.append({"role": name, "experts": len(chosen), "present": present})
    return rows
