"""``evaluate``: the whole of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safex import judges as judging
from safex import model_file, utility
from safex.errors import InputError
from safex.evaluation.answers import Answers, Progress, silent
from safex.evaluation.conclusion import conclude, evidence
from safex.evaluation.counting import count
from safex.evaluation.length_curve import length_curve, text_judge
from safex.evaluation.marks import Marks, marks_for
from safex.evaluation.notes import answer_notes, at_limit, unmet_mask
from safex.evaluation.plan import REGULAR, Plan, Settings, make_plan
from safex.evaluation.result import Evaluation
from safex.evaluation.trial import AUTO, MaxNew, OnTrial, first_limit, settled
from safex.experts import ExpertList
from safex.generation import Sampling
from safex.judges import Judge
from safex.model import Model, Prompts, as_prompt_set
from safex.profile import Profile
from safex.prompts import PromptSet
from safex.responses import header_of

CONTROLS = ("uniform", "layer", "frequency", "active")
DRAWS = 20


def evaluate(
    model: Model,
    prompts: Prompts | None = None,
    experts: ExpertList | None = None,
    *,
    mode: str = "zero",
    gain: float = 0.0,
    phase: str = "both",
    judges: Sequence[str | Judge] = ("keyword",),
    controls: Sequence[str] = CONTROLS,
    draws: int = DRAWS,
    control_sets: Sequence[str] = (REGULAR,),
    max_new: MaxNew = AUTO,
    n_samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    utility: bool = True,
    text: str | os.PathLike[str] | None = None,
    profile: Profile | None = None,
    comply: Marks | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    on_trial: OnTrial | None = None,
) -> Evaluation:
    """Refusal before and after masking ``experts``, under jailbreak and on benign prompts, with control masks.

    ``prompts`` need a set "regular"; "jailbreak" and "benign" add their columns (None: the sets that ship). Without
    ``experts`` only the columns before are made. ``controls`` are kinds of ``safex.control_masks``, ``draws`` masks of
    each drawn kind, run on the sets ``control_sets``; ``profile`` gives the activation that they are matched by
    (None: counted on the regular prompts). All masks share batches. ``comply`` says by (set, prompt) which texts
    real compliance must contain. ``limit`` takes at most so many prompts of each set,
    evenly spaced. With ``output`` every answer is kept in a responses file as it comes, ``resume``
    goes on with it and ``force`` replaces it. Answers hold at most ``max_new`` tokens; with "auto" a few answers are
    tried first and the limit is raised until they can be read (``safex.evaluation.trial``); ``on_trial`` hears of them.
    ``utility`` measures perplexity and divergence on the file ``text`` (None: the text that ships).
    ``progress(what, done, total)``. The same seed gives the same result.

    Raises InputError before anything is generated: no set "regular", a mask the model can't have, an unknown kind or
    judge, a prompt that the context can't hold; before the long work where trial answers can't be read;
    UnsupportedError for ``experts`` of a dense model.

    >>> import safex
    >>> prompts = PromptSet(list(PromptSet.bundled("demo"))[:4])
    >>> with safex.Model("demo-planted", n_threads=1) as model:
    ...     evaluate(model, prompts, ["3:13"], controls=(), utility=False).results["keyword"]["sets"][0]["before"]["n"]
    4
    """
    if experts is not None:
        model.require_experts()
    settings = Settings(mode, gain, phase, first_limit(max_new), n_samples, temperature, top_p, seed)
    said = progress or silent
    if resume and output is not None:
        model.use_date_of(header_of(output).model)
    is_demo = model_file.is_demo(model.path)
    chosen = prompts_for(prompts, is_demo).limited(limit)
    windows = windows_for(model, text) if utility and experts is not None else None
    made = made_judges(model, judges)
    plan = make_plan(model, chosen, experts, settings, controls, draws, control_sets, profile)
    path, marks = None if output is None else Path(output), marks_for(chosen, comply, is_demo)
    sampling = Sampling(1, temperature, top_p, seed)
    n_answers, resumed = n_samples * sum(1 for _ in plan.requests()), path if resume else None
    how = {"judges": made, "marks": marks, "sampling": sampling, "progress": said}
    settings = settings.tried(settled(model, chosen, max_new, n_answers, resumed, on_trial, **how))
    answers = Answers(model, plan, settings, marks, path)
    answers.generate(resume, force, said)
    answers.judge(made, said)
    cost = None if windows is None else _utility(model, plan, windows, settings, said)
    found = _result(model, plan, settings, answers, [judge.name for judge in made], cost)
    found.at_limit = at_limit(answers.in_order)
    found.length_curve = length_curve(answers.in_order, text_judge(made), settings.max_new)
    found.parameters |= judging.settings_of(made)
    found.notes += [
        *answer_notes(answers.in_order, settings.max_new),
        *unmet_mask(model, plan, settings, answers.in_order),
        *reading_notes(answers, made),
    ]
    return found


def prompts_for(prompts: Prompts | None, is_demo: bool) -> PromptSet:
    """``prompts``, or the sets that ship for this model."""
    if prompts is None:
        return PromptSet.bundled("demo") if is_demo else PromptSet.default()
    return as_prompt_set(prompts)


def made_judges(model: Model, judges: Sequence[str | Judge]) -> list[Judge]:
    """Judges by their names. Raises InputError for an unknown one, one that is named twice, or none."""
    if isinstance(judges, str):
        raise InputError(f"judges is the text {judges!r}, expected a list: [{judges!r}]")
    made = [
        (judging.make(judge, model=model) if judge == "logit" else judging.make(judge))
        if isinstance(judge, str)
        else judge
        for judge in judges
    ]
    names = [judge.name for judge in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not made or twice:
        raise InputError(f"judge {twice} is asked for twice; leave one out" if twice else "no judge is named")
    return made


def windows_for(model: Model, text: str | os.PathLike[str] | None) -> list[utility.Window]:
    """Windows of the file ``text``, or of the text that ships for this model. Raises InputError."""
    if text is None:
        return utility.default_windows(model)
    windows = utility.text_windows(model, utility.read_text(text))
    if len(windows) < 2:
        raise InputError(
            f"{text}: gives {len(windows)} window of {utility.WINDOW} tokens, intervals need at least 2: "
            "take a longer text"
        )
    return windows


def _utility(
    model: Model, plan: Plan, windows: list[utility.Window], settings: Settings, progress: Progress
) -> dict[str, Any]:
    found = utility.measure_utility(
        model,
        {"mask": plan.mask},
        windows,
        settings.mode,
        settings.gain,
        settings.seed,
        lambda done, total: progress("utility", done, total),
    )
    return found["mask"].to_json()


def _result(
    model: Model,
    plan: Plan,
    settings: Settings,
    answers: Answers,
    names: list[str],
    cost: dict[str, Any] | None,
) -> Evaluation:
    records = answers.in_order
    results = {}
    for name in names:
        found = count(records, name, plan.controls)
        results[name] = found | {"conclusion": conclude(found, len(plan.mask)), "evidence": evidence(found)}
    return Evaluation(
        conclusion=results[names[0]]["conclusion"],
        evidence=results[names[0]]["evidence"],
        model=model.provenance(),
        parameters=_parameters(plan, settings),
        mask=_mask(model, plan),
        controls=_controls(model, plan),
        judges=names,
        results=results,
        agreement=[
            {**vars(pair), "judges": list(pair.judges)}
            for pair in judging.agreements([_only(record.readings, names) for record in records])
        ],
        utility=cost,
        responses=None if answers.output is None else str(answers.output),
        notes=[*plan.prompts.notes, *plan.notes] + (utility_notes(settings) if cost else []),
    )


def reading_notes(answers: Answers, judges: Sequence[Judge]) -> list[str]:
    """Notes on answers in languages that a judge does not read."""
    details = [[record.verdicts[judge.name].get("detail") for record in answers.in_order] for judge in judges]
    return [note for of_judge in details if (note := judging.language_note(of_judge))]


def _only(readings: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: readings[name] for name in names}


def _parameters(plan: Plan, settings: Settings) -> dict[str, Any]:
    sets = {name: plan.prompts.sets.count(name) for name in dict.fromkeys(plan.prompts.sets)}
    parameters = plan.parameters(settings)
    del parameters["masks"]  # they stand in ``mask`` and ``controls``
    return {**parameters, "prompts": sets}


def _mask(model: Model, plan: Plan) -> dict[str, Any] | None:
    if not plan.mask:
        return None
    return {"experts": [str(e) for e in plan.mask], "activation": plan.touched("mask", model.layers)}


def _controls(model: Model, plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "mask": name,
            "kind": kind,
            "experts": [str(expert) for expert in plan.masks[name]],
            "activation": plan.touched(name, model.layers),
        }
        for kind, names in plan.controls.items()
        for name in names
    ]


def utility_notes(settings: Settings) -> list[str]:
    """What a reader of the cost on harmless text must know of the settings."""
    if settings.phase == "both":
        return []
    return [f"utility: the mask acts on all of the text there, not only on phase {settings.phase!r}"]
