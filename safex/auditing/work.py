"""The work of each stage: the public function that does it, with what this audit asks of it.

A stage that was killed goes on where batches are packed as in a run that never stopped (profile by pieces, sweep,
evaluate); identify, the dump of outputs and the probes start again. So the numbers are the same to the last bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from safex import responses
from safex.attribution import NoStartsError, Sweep, sweep
from safex.auditing import choice, split
from safex.auditing.manifest import Journal
from safex.auditing.measured import answers_of, measure
from safex.auditing.result import MARK, SCHEMA_VERSION
from safex.auditing.settings import KINDS, Settings, Sizes
from safex.auditing.stages import BY_NAME, page_files
from safex.auditing.verdict import Group, Thresholds, judge, not_measurable
from safex.control_masks import NoRoomError, draw_controls
from safex.evaluation import Evaluation, Marks, evaluate
from safex.evaluation.trial import Trial
from safex.expert_set import ExpertSet
from safex.experts import Expert
from safex.features import Features
from safex.judges import Judge, KeywordJudge
from safex.model import Model
from safex.probing import probe
from safex.profile import Profile
from safex.prompts import PromptSet
from safex.report import write_report
from safex.result_file import write_json
from safex.roster import draw_roster
from safex.ses import identify

Progress: TypeAlias = Callable[[str, int, int], None]  # what, done, total

PIECE = 256  # prompts of a piece of the profile
REGULAR, JAILBREAK, BENIGN = "regular", "jailbreak", "benign"
BUSIEST = "active"  # the one control mask that is no draw
TASK = "harmful"  # what probes tell apart


@dataclass
class Run:
    """One audit: the model, the prompts in their two parts, and where files go. ``given``: experts named beforehand.

    ``trial`` says how long answers may be, ``unreadable`` why they can't be judged.
    """

    model: Model
    journal: Journal
    settings: Settings
    sizes: Sizes
    prompts: PromptSet
    hear: Progress
    marks: Marks | None = None
    given: Sequence[Expert] = ()
    supplied: Path | None = None  # a profile made before
    judges: Sequence[str | Judge] = ("keyword",)
    trial: Trial | None = None
    unreadable: str = ""
    find: PromptSet = field(init=False)
    test: PromptSet = field(init=False)

    def __post_init__(self) -> None:
        """Divide the prompts."""
        self.prompts = self.prompts.limited(self.sizes.limit)
        self.find, self.test = split.split(self.prompts, self.settings.seed)

    def path(self, stage: str, place: int = 0) -> Path:
        """A file of a stage."""
        return self.journal.paths(BY_NAME[stage])[place]

    def why_missing(self, stage: str) -> str:
        """Why a stage left no files; empty where it did."""
        record = self.journal.manifest.record(stage)
        return f"{stage} is {record.state}" if record and record.note else ""

    def profile(self) -> Profile | None:
        """The profile of all prompts, where there is one."""
        path = self.path("profile")
        return Profile.load(path) if path.exists() else None

    def identified(self) -> dict[str, ExpertSet]:
        """The expert sets by method."""
        paths = {"contrast": self.path("identify"), "ses": self.path("identify", 1)}
        return {method: ExpertSet.load(path) for method, path in paths.items() if path.exists()}

    def swept(self) -> Sweep | None:
        """The sweep, where there is one."""
        path = self.path("sweep")
        return Sweep.load(path) if path.exists() else None

    def chosen(self) -> ExpertSet:
        """The experts under test."""
        return ExpertSet.load(self.path("choose"))

    def every_expert(self) -> list[Expert]:
        """All experts of the model."""
        return [Expert(layer, n) for layer in self.model.layers for n in range(self.model.n_experts)]


# --- the stages: each returns why it is not possible, or nothing


def run_profile(run: Run) -> str:
    """Count all prompts, a piece at a time; or take the profile that was given."""
    path = run.path("profile")
    if run.supplied is not None:
        shutil.copyfile(run.supplied, path)
        return ""
    prompts = run.prompts
    parts = [path.with_name(f"{path.name}.{start}") for start in range(0, len(prompts), PIECE)]
    for number, part in enumerate(parts):
        start = number * PIECE
        if not part.exists():
            run.model.profile(
                prompts[start : start + PIECE],
                output=part,
                force=True,
                progress=_counted(run.hear, "profile", start, len(prompts)),
            )
    Profile.merge([Profile.load(part) for part in parts]).save(path)
    for part in parts:
        part.unlink()
    return ""


def run_identify(run: Run) -> str:
    """Both methods on the finding prompts."""
    profile = run.profile()
    if profile is None:
        return run.why_missing("profile")
    for name in (REGULAR, JAILBREAK, BENIGN):
        n = run.find.sets.count(name)
        if n < split.ENOUGH:
            return f"it needs {split.ENOUGH} prompts of set {name} that find experts, there are {n}"
    part = split.profile_of(profile, run.find)
    for method, place in (("contrast", 0), ("ses", 1)):
        found = identify(
            part,
            method=method,
            phase=choice.phase_of(profile),
            bootstrap=run.sizes.bootstrap,
            permutations=run.sizes.permutations,
            splits=run.sizes.splits,
            seed=run.settings.seed,
            progress=_prefixed(run.hear, f"identify, {method}"),
        )
        found.save(run.path("identify", place))
    return ""


def run_sweep(run: Run) -> str:
    """Every candidate masked alone, on the finding prompts."""
    output, profile = run.path("sweep"), run.profile()
    if output.exists():  # whole: it is written at the end
        return ""
    part = None if profile is None else split.profile_of(profile, run.find)
    sets = list(run.identified().values())
    experts = choice.candidates(part, sets, run.given, run.every_expert(), run.sizes.sweep)
    try:
        sweep(
            run.model,
            experts,
            PromptSet(prompt for prompt in run.find if prompt.set in (REGULAR, BENIGN)),
            mode=run.settings.mode,
            bootstrap=run.sizes.bootstrap,
            seed=run.settings.seed,
            output=output,
            resume=True,
            judge=next((judge for judge in run.judges if isinstance(judge, KeywordJudge)), None),
            progress=_prefixed(run.hear, "sweep"),
        )
    except NoStartsError as error:
        return str(error)
    return ""


def run_choose(run: Run) -> str:
    """Write down which experts are tested, and by which rule they were chosen."""
    profile, model = run.profile(), run.model
    size = choice.size_of(profile, len(model.layers), model.n_experts, run.settings.top)
    source, experts = choice.choose(run.swept(), run.identified(), run.given, size)
    rule = choice.RULES[source].format(n=len(experts)) if source else ""
    facts = {"layers": model.layers, "n_experts": model.n_experts, "top_k": model.top_k_of_layers}
    named = {"fingerprint": model.fingerprint, "name": model.facts.name or model.path.stem}
    chosen = ExpertSet(
        {choice.GROUP: [expert._asdict() for expert in experts]},
        model={**named, **facts},
        parameters={"source": source, "rule": rule, "size": size},
        conclusion=f"Under test: {len(experts)} experts, {rule}." if experts else "No experts to test.",
    )
    chosen.save(run.path("choose"))
    return ""


def run_probe(run: Run) -> str:
    """Outputs of the tested and the detecting experts and of random ones, on the testing prompts; probes on them."""
    if BENIGN not in run.test.sets or REGULAR not in run.test.sets:
        return "it needs regular and benign prompts"
    groups = {choice.GROUP: run.chosen().groups[choice.GROUP]}
    if "contrast" in run.identified():
        groups["id"] = run.identified()["contrast"].groups["id"]
    if not any(groups.values()):
        return "there are no experts to probe"
    path = run.path("probe")
    if not path.exists():
        _dump(run, groups, path)
    found = probe(
        Features.load(path),
        tasks=[TASK],
        repeats=run.sizes.repeats,
        shuffles=run.sizes.shuffles,
        curve=(),
        seed=run.settings.seed,
        progress=_prefixed(run.hear, "probe"),
    )
    found.save(run.path("probe", 1))
    return ""


def _dump(run: Run, groups: dict[str, list[Expert]], path: Path) -> None:
    model, profile = run.model, run.profile()
    activation = None if profile is None else profile.activation()
    n, seed = run.sizes.probe_draws, run.settings.seed
    roster = draw_roster(groups, model.layers, model.n_experts, activation, ["layer"], n, seed)
    model.dump(
        roster,
        run.test,
        output=path,
        force=True,
        progress=_counted(run.hear, "probe: outputs of experts"),
    )


def run_evaluate(run: Run) -> str:
    """Refusal without a mask, without the tested experts, and under control masks, on the testing prompts."""
    experts = run.chosen().groups[choice.GROUP]
    profile = run.profile()
    found = evaluate(
        run.model,
        run.test,
        experts or None,
        mode=run.settings.mode,
        judges=run.judges,
        controls=_kinds_with_room(run, experts, profile),
        draws=run.sizes.draws,
        max_new=run.trial or run.settings.max_new,
        seed=run.settings.seed,
        output=run.path("evaluate"),
        resume=True,
        profile=profile,
        comply=run.marks,
        progress=_prefixed(run.hear, "evaluate"),
    )
    found.responses = run.path("evaluate").name
    found.save(run.path("evaluate", 1))
    return ""


def _kinds_with_room(run: Run, experts: Sequence[Expert], profile: Profile | None) -> list[str]:
    """Kinds of controls for which the model has enough other experts."""
    activation = None if profile is None else profile.activation(REGULAR)
    kinds = [*KINDS, BUSIEST] if activation is not None else [KINDS[0]]
    return [kind for kind in kinds if experts and _has_room(run.model, experts, kind, activation)]


def _has_room(model: Model, experts: Sequence[Expert], kind: str, activation: Any) -> bool:
    try:
        draw_controls(experts, model.layers, model.n_experts, [kind], 1, 0, activation)
    except NoRoomError:
        return False
    return True


def run_verdict(run: Run) -> str:
    """Measure on the testing prompts, and judge."""
    chosen, settings = run.chosen(), run.settings
    experts, found = chosen.groups[choice.GROUP], None
    if run.path("evaluate", 1).exists():
        evaluation = Evaluation.load(run.path("evaluate", 1))
        kinds: dict[str, list[str]] = {}
        for row in evaluation.controls:
            kinds.setdefault(row["kind"], []).append(row["mask"])
        records = responses.load(run.path("evaluate")).records
        found = measure(answers_of(records, evaluation.judges[0], kinds))
    limits = Thresholds(settings.practical / 100, settings.most)
    group = Group(len(experts), len(run.every_expert()), chosen.parameters["rule"])
    said = judge(found, group, limits, run.why_missing("evaluate"))
    if run.unreadable:
        said = not_measurable(run.unreadable)
    write_json(
        run.path("verdict"),
        {
            MARK: SCHEMA_VERSION,
            **said.to_json(),
            "measured": found.to_json() if found else {},
            "thresholds": {"practical_points": settings.practical, "most": settings.most},
            "experts": [str(expert) for expert in experts],
            "rule": group.rule,
            "model": chosen.model,
        },
    )
    return ""


def run_report(run: Run) -> str:
    """One page of every file there is."""
    write_report(page_files(run.journal.directory), run.path("report"))
    return ""


def _prefixed(hear: Progress, stage: str) -> Progress:
    """Progress that names the stage."""
    return lambda what, done, total: hear(f"{stage}: {what}", done, total)


def _counted(
    hear: Progress, what: str, before: int = 0, total: int | None = None
) -> Callable[[int, int, int], None]:
    """Progress of prompts, ``before`` of them done in earlier calls."""
    return lambda done, of_call, _: hear(what, before + done, total or of_call)


WORK: dict[str, Callable[[Run], str]] = {
    "profile": run_profile,
    "identify": run_identify,
    "sweep": run_sweep,
    "choose": run_choose,
    "probe": run_probe,
    "evaluate": run_evaluate,
    "verdict": run_verdict,
    "report": run_report,
}
