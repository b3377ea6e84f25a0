"""Two expert sets: the members of each group that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from safex.comparison.conclusion import conclude_groups
from safex.comparison.measures import rank_correlation
from safex.comparison.membership import group_row
from safex.comparison.metadata import (
    EXPERT_SET_SETTINGS,
    about,
    chat_differences,
    differences,
    refuse_other_shape,
)
from safex.comparison.result import Comparison, Row
from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert


def compare_expert_sets(a: ExpertSet, b: ExpertSet) -> Comparison:
    """Compare the groups that both have. Raises InputError for other shapes, and without a common group."""
    _refuse_other_models(a, b)
    names = [name for name in a.groups if name in b.groups]
    if not names:
        held = [", ".join(s.groups) or "none" for s in (a, b)]
        raise InputError(f"no group is in both: A holds {held[0]}; B holds {held[1]}")
    model = {**_known(a), **_known(b)}
    known = model.get("layers") and model.get("n_experts")
    n_experts = len(model["layers"]) * int(model["n_experts"]) if known else None
    groups = {
        name: {
            **group_row(a.groups[name], b.groups[name], n_experts),
            "score_correlation": _score_correlation(a.entries[name], b.entries[name]),
        }
        for name in names
    }
    return Comparison(
        "expert_sets",
        conclude_groups(groups),
        _about_set(a),
        _about_set(b),
        _common_parameters(a, b),
        _expert_set_warnings(a, b),
        layers=list(model.get("layers") or []),
        groups=groups,
    )


def _about_set(experts: ExpertSet) -> Row:
    return about({f"model.{key}": value for key, value in experts.model.items()} | experts.profile)


def _known(experts: ExpertSet) -> Row:
    return {key: value for key, value in experts.model.items() if value is not None}


def _refuse_other_models(a: ExpertSet, b: ExpertSet) -> None:
    known = [_known(a), _known(b)]
    refuse_other_shape(known[0], known[1])
    for name, experts, model, other in (("A", a, known[1], "B"), ("B", b, known[0], "A")):
        if model.get("layers") and model.get("n_experts"):
            try:
                experts.check_model(model["layers"], model["n_experts"], f"the model of {other}")
            except InputError as error:
                raise InputError(f"{name}: {error}") from None


def _expert_set_warnings(a: ExpertSet, b: ExpertSet) -> list[str]:
    warnings = []
    for name, only in (("A", a.groups.keys() - b.groups), ("B", b.groups.keys() - a.groups)):
        if only:
            warnings.append(f"only in {name}, left out: group {', '.join(sorted(only))}")
    warnings += differences(a.model, b.model, ("fingerprint", "architecture"))
    warnings += differences(a.parameters, b.parameters, EXPERT_SET_SETTINGS)
    warnings += chat_differences(a.profile, b.profile)
    return warnings + differences(a.profile, b.profile, ("prompts_hash", "template_hash", "upstream_id"))


def _common_parameters(a: ExpertSet, b: ExpertSet) -> Row:
    from safex import __version__

    same = {k: v for k, v in a.parameters.items() if k in EXPERT_SET_SETTINGS and b.parameters.get(k) == v}
    return {**same, "tool_version": __version__}


def _score_correlation(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> float | None:
    """Spearman's correlation of the scores of shared experts; None where fewer than 3 have both."""
    first, second = ({Expert(e["layer"], e["expert"]): e.get("score") for e in rows} for rows in (a, b))
    shared = [(first[e], second[e]) for e in first if e in second]
    scores = np.array([pair for pair in shared if None not in pair], np.float64).reshape(-1, 2)
    return rank_correlation(scores[:, 0], scores[:, 1]) if len(scores) >= 3 else None
