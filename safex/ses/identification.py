"""``safex.identify``: from a profile to an expert set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.chat_settings import CHAT_KEYS
from safex.errors import InputError
from safex.expert_set import Entry, ExpertSet
from safex.profile import Profile
from safex.ses import controls, ranking
from safex.ses.conclusion import conclude, evidence
from safex.ses.curves import curves
from safex.ses.study import BENIGN, MAIN, Columns, Samples, Selection, Settings, Study, prepare

Progress = Callable[[str, int, int], None]  # what, done, total
Stable: TypeAlias = dict[str, npt.NDArray[np.bool_]]


def default_top(profile: Profile, rank: str = "global") -> int:
    """The top list where none is asked for: 1 % of the experts and at least 8, or a layer's top_k.

    The paper doesn't say which N it used; this is ours.
    """
    n_experts = len(profile.layers) * profile.n_experts
    return min(n_experts, max(8, round(0.01 * n_experts))) if rank == "global" else max(profile.top_k)


def identify(
    profile: Profile,
    *,
    top: int | None = None,
    bootstrap: int = 1000,
    stability: float = 1.0,
    method: str = "ses",
    seed: int = 0,
    phase: str = "prompt",
    rank: str = "global",
    subset: float = 1.0,
    fdr: float = 0.05,
    permutations: int = 200,
    splits: int = 20,
    cluster: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ExpertSet:
    """Stability-based Expert Selection (SAFEx, section 3), with the controls that say what to make of it.

    ``top``: N experts, in all (``rank="global"``) or in each layer (``"layer"``); default ``default_top``.
    ``bootstrap`` resamples of prompts, each drawing ``subset`` of a set's prompts with replacement; twins (``pairs``)
    share a resample. ``method="ses"``: experts in the top N of a set in at least ``stability`` of the resamples; id =
    stable on regular and on jailbreak, ctrl = on regular but not on jailbreak. ``method="contrast"``: experts whose
    activation differs between the sets, at false-discovery rate ``fdr``. ``permutations`` label shuffles and ``splits``
    split halves are the controls. ``cluster`` adds clusters of experts by what drives them. The result depends on
    ``seed`` and not on ``n_threads``. ``progress`` hears (what, done, total).

    Raises InputError: a parameter out of range, a set missing or with fewer than 20 prompts, an unknown phase.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.multinomial(40, np.full(8, 1 / 8), (60, 2))
    >>> sets = ["regular", "jailbreak", "benign"] * 20
    >>> p = Profile.from_arrays(counts=counts, n_tokens=np.full(60, 40), sets=sets, top_k=1)
    >>> identify(p, method="contrast", bootstrap=100, permutations=0, splits=0).groups
    {'id': [], 'ctrl': []}
    """
    settings = Settings(
        method=method,
        phase=phase,
        rank=rank,
        top=default_top(profile, rank) if top is None else top,
        bootstrap=bootstrap,
        stability=stability,
        subset=subset,
        fdr=fdr,
        permutations=permutations,
        splits=splits,
        seed=seed,
    )
    study = prepare(profile, settings, n_threads)
    _check_top(study)
    return _expert_set(study, cluster, progress or _silent)


def _silent(what: str, done: int, total: int) -> None:
    """Hear nothing."""


def _check_top(study: Study) -> None:
    if study.settings.top > study.block:
        where = "the model" if study.settings.rank == "global" else "a layer"
        raise InputError(f"top is {study.settings.top}, but {where} has {study.block} experts")


def _expert_set(study: Study, cluster: bool, progress: Progress) -> ExpertSet:
    progress("selection", 0, 1)
    samples = study.draw(study.rows(), (MAIN,))
    found = controls.select(study, samples)
    stable = found.stable or ranking.select(study, samples).stable
    found = found if found.score else ranking.scored(study, samples, found)
    progress("selection", 1, 1)
    experts = ExpertSet(
        _entries(study, samples, found, stable),
        model=_model(study.profile),
        profile=_profile(study),
        parameters=_parameters(study),
        controls=_controls(study, samples, found, stable, progress),
        curves=curves(study, samples, found),
        clusters=_clusters(study, progress) if cluster else None,
    )
    experts.controls["evidence"] = evidence(experts)
    experts.conclusion = conclude(experts)
    return experts


def _controls(
    study: Study, samples: Samples, found: Selection, stable: Stable, progress: Progress
) -> dict[str, Any]:
    hot = controls.hot_everywhere(study, found, stable)
    return {
        "null": controls.null(study, samples, found, partial(progress, "shuffled labels")),
        "split_half": controls.split_half(study, partial(progress, "split halves")),
        **({"hot_everywhere": hot} if hot else {}),
        "baseline": controls.baseline(study),
    }


def _entries(study: Study, samples: Samples, found: Selection, stable: Stable) -> dict[str, list[Entry]]:
    rates = dict(
        zip(samples, study.counts.rates([sample.prompts for sample in samples.values()]), strict=True)
    )
    return {
        group: [
            {**row, **_of_method(found, stable, group, i)}
            for i, row in enumerate(_measured(study, samples, columns, rates))
        ]
        for group, columns in found.columns.items()
    }


def _of_method(found: Selection, stable: Stable, group: str, i: int) -> Entry:
    column = found.columns[group][i]
    row: Entry = {"score": float(found.score[group][i]), "frequency": float(found.frequency[group][i])}
    if group in found.p_value:
        row["p_value"] = float(found.p_value[group][i])
    if group in found.specific:
        row["specific"] = bool(column in found.specific[group])
    if BENIGN in stable:
        row["hot_in_benign"] = bool(stable[BENIGN][column])
    return row


def _measured(
    study: Study, samples: Samples, columns: Columns, rates: dict[str, npt.NDArray[np.float64]]
) -> list[Entry]:
    """Activation of each expert in each set, their differences, and 95 % bootstrap intervals of both."""
    if not len(columns):
        return []
    names = list(samples)
    pairs = list(combinations(range(len(names)), 2))
    terms = [(a, -1) for a in range(len(names))] + pairs
    bounds = study.counts.bounds(list(samples.values()), terms, columns)
    rows: list[Entry] = []
    for i, column in enumerate(columns):
        layer, expert = study.label(column)
        of_sets, of_pairs = bounds[: len(names), :, i], bounds[len(names) :, :, i]
        rows.append(
            {
                "layer": layer,
                "expert": expert,
                "activation": {name: float(rates[name][column]) for name in names},
                "interval": {name: bound.tolist() for name, bound in zip(names, of_sets, strict=True)},
                "difference": {
                    f"{names[a]}-{names[b]}": {
                        "value": float(rates[names[a]][column] - rates[names[b]][column]),
                        "interval": bound.tolist(),
                    }
                    for (a, b), bound in zip(pairs, of_pairs, strict=True)
                },
            }
        )
    return rows


def _model(profile: Profile) -> dict[str, Any]:
    keys = ("fingerprint", "name", "architecture", "quant_types")
    known = {key: profile.meta[f"model.{key}"] for key in keys if f"model.{key}" in profile.meta}
    return {**known, "layers": profile.layers, "n_experts": profile.n_experts, "top_k": profile.top_k}


def _profile(study: Study) -> dict[str, Any]:
    keys = ("prompts_hash", "part_of", *CHAT_KEYS, "template_hash", "upstream_id", "tool_version")
    known = {key: study.profile.meta[key] for key in keys if key in study.profile.meta}
    tokens = {name: int(study.counts.tokens[rows].sum()) for name, rows in study.prompts.items()}
    return {"prompts": {name: len(rows) for name, rows in study.prompts.items()}, "tokens": tokens, **known}


def _parameters(study: Study) -> dict[str, Any]:
    from safex import __version__

    return {**asdict(study.settings), "tool_version": __version__}


def _clusters(study: Study, progress: Progress) -> dict[str, Any]:
    from safex.cluster import cluster_experts

    progress("clusters", 0, 1)
    found = cluster_experts(study.profile, phase=study.settings.phase, seed=study.settings.seed)
    progress("clusters", 1, 1)
    return found
