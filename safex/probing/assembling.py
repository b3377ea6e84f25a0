"""From the probes of a task to its part of the result: groups, experts, layers, and what controls gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from safex.experts import Expert
from safex.probing.conclusion import conclude, evidence
from safex.probing.measuring import Bench, Found
from safex.probing.scores import Row, summary
from safex.probing.settings import Subject
from safex.rates import rate

COMPARED = ("accuracy", "balanced_accuracy", "auc")


def task_result(bench: Bench) -> Row:
    """All of a task as plain values; see ``Probing``."""
    problem, subjects = bench.problem, bench.subjects
    task, own = problem.task, problem.own
    result: Row = {
        "task": task.name,
        "positive": list(task.positive),
        "negative": list(task.negative),
        "transfer": list(task.transfer),
        "n": int(own.sum()),
        "n_positive": int((problem.labels & own).sum()),
        "units": len(np.unique(problem.units[own])),
        "majority": _majority(bench),
        "words": None if bench.of_words is None else bench.of_words.row,
        "groups": [_group(bench, name) for name in subjects.groups],
        "experts": [_expert(bench, expert) for expert in subjects.singles],
        "layers": _layers(bench),
        "control_groups": [_control_group(bench, draw) for draw in subjects.draws],
        "control_experts": [
            {"layer": e.layer, "expert": e.expert, **_compared(bench.found[subject])}
            for e, subject in subjects.control_singles.items()
        ],
    }
    for row in result["groups"]:
        row["evidence"] = evidence(row)
        row["conclusion"] = conclude(row, result)
    return result


def _majority(bench: Bench) -> Row | None:
    """What always naming the larger class gets right."""
    problem = bench.problem
    labels = problem.labels[problem.own]
    larger = labels == (labels.mean() >= 0.5)
    found = rate(larger.tolist(), problem.blocks[problem.own].tolist())
    return None if found is None else found.to_json()


def _group(bench: Bench, name: str) -> Row:
    subject = bench.subjects.groups[name]
    found = bench.found[subject]
    row = {"group": name, "experts": [str(expert) for expert in subject.experts], **found.row}
    alone = _mean_single(bench, subject.experts)
    return row | {
        "mean_single": {key: _plain(value) for key, value in alone.items()},
        "controls": [
            _against_draws(bench, found, alone, kind, draws)
            for kind, draws in bench.subjects.control_draws(name).items()
        ],
    }


def _mean_single(bench: Bench, experts: Sequence[Expert]) -> dict[str, float]:
    """Means over the experts' own probes, of those that have one; NaN where none has."""
    singles = bench.subjects.singles | bench.subjects.control_singles
    known = [found.values for e in experts if (found := bench.found[singles[e]]).values]
    return {name: float(np.mean([one[name] for one in known])) if known else math.nan for name in COMPARED}


def _against_draws(
    bench: Bench, found: Found, alone: dict[str, float], kind: str, draws: Sequence[Subject]
) -> Row:
    """The group among its draws of a kind, by the probe on all its experts together and by the mean of single ones."""
    of_draws = [bench.found[draw] for draw in draws]
    single = [_mean_single(bench, draw.experts) for draw in draws]
    row: Row = {"kind": kind, "n": sum(bool(one.values) for one in of_draws)}
    for name in COMPARED:
        row[name] = _summary(found.values.get(name), [one.values.get(name) for one in of_draws])
        row[f"mean_single_{name}"] = _summary(alone[name], [one[name] for one in single])
    if found.transfer:
        row["transfer_auc"] = _summary(found.transfer["auc"], [one.transfer.get("auc") for one in of_draws])
    return row


def _summary(value: float | None, others: Sequence[float | None]) -> Row | None:
    known = [other for other in others if other is not None and not math.isnan(other)]
    return None if value is None or math.isnan(value) or not known else summary(value, known)


def _expert(bench: Bench, expert: Expert) -> Row:
    subjects = bench.subjects
    found = bench.found[subjects.singles[expert]]
    others = [
        bench.found[subject].values
        for e, subject in subjects.control_singles.items()
        if e.layer == expert.layer
    ]
    controls: Row = {"n": sum(map(bool, others))}
    for name in COMPARED:
        controls[name] = _summary(found.values.get(name), [one.get(name) for one in others])
    groups = [name for name, subject in subjects.groups.items() if expert in subject.experts]
    place = {"layer": expert.layer, "expert": expert.expert, "groups": groups}
    return {**place, **found.row, "controls": controls}


def _layers(bench: Bench) -> list[Row]:
    """Mean accuracy and AUC of single experts by layer: those of the groups, and random ones."""
    sides = {"": bench.subjects.singles, "control_": bench.subjects.control_singles}
    layers = sorted({expert.layer for side in sides.values() for expert in side})
    rows = []
    for layer in layers:
        row: Row = {"layer": layer}
        for prefix, side in sides.items():
            experts = [expert for expert in side if expert.layer == layer]
            means = _mean_single(bench, experts)
            row["n_controls" if prefix else "n"] = len(experts)
            row |= {f"{prefix}{name}": _plain(means[name]) for name in ("accuracy", "auc")}
        rows.append(row)
    return rows


def _control_group(bench: Bench, draw: Subject) -> Row:
    found = bench.found[draw]
    experts = [str(expert) for expert in draw.experts]
    row = {"group": draw.group, "kind": draw.kind, "draw": draw.draw, "experts": experts, **_compared(found)}
    return row | ({"transfer_auc": _plain(found.transfer["auc"])} if found.transfer else {})


def _compared(found: Found) -> Row:
    return {"n": found.row["n"], **{name: _plain(found.values.get(name, math.nan)) for name in COMPARED}}


def _plain(value: float) -> Any:
    """A number as JSON holds it; None where it is undefined."""
    return None if math.isnan(value) else float(value)
