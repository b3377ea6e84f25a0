"""``safex.probe``: from features to a probing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from safex.chat_settings import CHAT_KEYS
from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import ExpertList
from safex.features import Features
from safex.probing.assembling import task_result
from safex.probing.conclusion import overall
from safex.probing.crossval import make_problem
from safex.probing.folds import make_folds
from safex.probing.inputs import Words
from safex.probing.measuring import Bench, Progress
from safex.probing.projection import projection
from safex.probing.result import Probing
from safex.probing.settings import CURVE, STRENGTHS, Settings, choose_subjects
from safex.probing.tasks import Task, choose_tasks

FEW = 20  # units of a class below which intervals say little


def probe(
    features: Features,
    groups: ExpertSet | Mapping[str, ExpertList] | None = None,
    *,
    tasks: Sequence[str] | None = None,
    folds: int = 5,
    repeats: int = 5,
    control_repeats: int = 1,
    shuffles: int = 50,
    hold_out: str | None = None,
    missing: str = "mean",
    strengths: Sequence[float] = STRENGTHS,
    curve: Sequence[float] = CURVE,
    seed: int = 0,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Probing:
    """Linear probes on experts' outputs, with the controls that say what to make of them (SAFEx, section 4.2).

    Logistic regression on standardised features, for each expert and for each group's experts together, scored out of
    fold: ``folds`` grouped and stratified folds, ``repeats`` times, C (``strengths``, divided by the number of
    features) chosen within the training part; see ``safex.probing.crossval`` for the same in scikit-learn. Twins
    (prompts with a common ``pair``) and equal texts share a fold; ``hold_out="category"`` leaves out whole categories.
    ``groups``: default those that the features were dumped for; their control draws are probed in ``control_repeats``
    of the repeats, and compared in these. ``tasks``: names of ``safex.probing.tasks``, or sets such as
    "regular+jailbreak:benign". ``shuffles`` of the labels, twins kept together. ``curve``: shares of the training
    prompts. Prompts without an expert's output (natural routing): a single expert's probe leaves them out, a group's
    takes the mean there ("mean") or needs all experts ("drop"). Transfer: probes of regular against benign prompts are
    tried on jailbreak and benign prompts of the fold left out, so on no twin of a training prompt.

    The result depends on ``seed``, not on ``n_threads``. ``progress`` hears (what, done, total). Raises InputError: one
    class only, fewer prompts than folds, experts of another model or that were not dumped, settings out of range.

    >>> rng = np.random.default_rng(0)
    >>> sets = ["regular", "benign"] * 20
    >>> values = rng.normal(size=(1, 40, 8)) + 3 * np.array([s == "regular" for s in sets])[:, None]
    >>> f = Features.from_arrays(experts=["0:3"], values=values, sets=sets)
    >>> probe(f, repeats=1, shuffles=0, curve=()).tasks[0]["experts"][0]["auc"]["value"]
    1.0
    """
    settings = Settings(
        folds,
        repeats,
        min(control_repeats, repeats),
        shuffles,
        hold_out,
        missing,
        tuple(strengths),
        tuple(curve),
        seed,
    )
    chosen = choose_tasks(tasks, features.sets)
    subjects, notes = choose_subjects(features, groups)
    parts = make_folds(features, chosen, folds, repeats, hold_out, seed)
    words, said = _words(features)
    notes += said + _few(features, chosen, parts.blocks)
    results = []
    for task in chosen:
        problem = make_problem(task, np.array(features.sets), parts, settings.strengths, shuffles)
        bench = Bench(features, problem, settings, words, subjects)
        bench.run(n_threads, progress or _silent)
        results.append(task_result(bench))
    drawn = [projection(features, subject, missing) for subject in subjects.groups.values()]
    return Probing(
        conclusion=overall(results),
        evidence={
            row["task"]: {group["group"]: group["evidence"] for group in row["groups"]} for row in results
        },
        model=_model(features),
        features=_features(features),
        parameters=_parameters(settings, chosen),
        tasks=results,
        projection=[one for one in drawn if one is not None],
        notes=notes,
    )


def _silent(what: str, done: int, total: int) -> None:
    """Hear nothing."""


def _words(features: Features) -> tuple[Words | None, list[str]]:
    if features.texts is None:
        return None, ["the features hold no prompt texts, so there is no bag of words to compare with"]
    try:
        return Words(features.texts), []
    except InputError as error:
        return None, [f"no bag of words: {error}"]


def _few(features: Features, tasks: Sequence[Task], blocks: Any) -> list[str]:
    sets = np.array(features.sets)
    notes: dict[str, None] = {}
    for task in tasks:
        for names in (task.positive, task.negative):
            n = len(np.unique(blocks[np.isin(sets, names)]))
            if n < FEW:
                notes[
                    f"only {n} {' and '.join(names)} prompts (what stays together counts once): rough figures"
                ] = None
    return list(notes)


def _model(features: Features) -> dict[str, Any]:
    return {k.removeprefix("model."): v for k, v in features.meta.items() if k.startswith("model.")}


def _features(features: Features) -> dict[str, Any]:
    keys = ("prompts_hash", *CHAT_KEYS, "template_hash", "upstream_id", "tool_version")
    return {
        "routing": features.routing,
        "pool": features.pool,
        "phase": features.phase,
        "n_experts": len(features.experts),
        "n_embd": features.n_embd,
        "prompts": {name: features.sets.count(name) for name in dict.fromkeys(features.sets)},
        **{key: features.meta[key] for key in keys if key in features.meta},
    }


def _parameters(settings: Settings, tasks: Sequence[Task]) -> dict[str, Any]:
    from safex import __version__

    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
    return {**plain, "tasks": [task.name for task in tasks], "tool_version": __version__}
