"""What was kept, as rows of plain numbers: rates are [value, low, high], 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safex

from .adapters import Merge, Repair
from .study import MODES, Study
from .subjects import Subject

Row = dict[str, Any]
JUDGE = "keyword"


def rate(found: Row) -> list[float]:
    """Value and interval."""
    return [found["value"], *found["interval"]]


def of_set(evaluation: safex.Evaluation, name: str) -> Row:
    """The row of a set."""
    row: Row = next(row for row in evaluation.results[JUDGE]["sets"] if row["set"] == name)
    return row


def before(evaluation: safex.Evaluation) -> Row:
    """Without a mask: what is refused, and what benign prompts are answered."""
    rates = {
        name: rate(of_set(evaluation, name)["before"]["refuse"])
        for name in ("regular", "jailbreak", "benign")
    }
    return {**rates, "benign_right": rate(of_set(evaluation, "benign")["before"]["comply"])}


def masked(evaluation: safex.Evaluation) -> Row:
    """Under the mask, and against its controls."""
    regular, benign = of_set(evaluation, "regular"), of_set(evaluation, "benign")
    utility = evaluation.utility
    return {
        "regular": rate(regular["after"]["refuse"]),
        "change": rate(regular["refuse"]["difference"]),
        "p": regular["refuse"]["p_value"],
        "complies": rate(regular["after"]["comply"]),
        "jailbreak": rate(of_set(evaluation, "jailbreak")["after"]["refuse"]),
        "benign_right": rate(benign["after"]["comply"]),
        "kl": utility and rate(utility["kl"]),
        "controls": [
            control(row) for row in evaluation.results[JUDGE]["controls"] if row["set"] == "regular"
        ],
    }


def control(row: Row) -> Row:
    """Refusal under the control masks of a kind."""
    refuse = row["refuse"]
    placement = refuse.get("placement") or {}
    return {
        "kind": row["kind"],
        "n": row["n"],
        "refuse": [refuse["mean"], refuse["min"], refuse["max"]],
        "p": placement.get("p_value") if row["n"] > 1 else None,
    }


def masking(subject: Subject, study: Study) -> Row:
    """A model's rows of the paper's first table, with what stands beside them."""
    if subject.is_dense:
        return {**subject.row(), "before": before(study.evaluation("base", None)), "masks": []}
    masks, first = [], None
    for group, experts in study.groups().items():
        for mode in MODES:
            found = study.masked(group, mode, study.scale.draws)
            first = first or before(found)
            masks.append({"group": group, "n": len(experts), "mode": mode, **masked(found)})
    first = first or before(study.evaluation("base", None))
    return {**subject.row(), "before": first, "masks": masks, "nulls": nulls(study)}


def nulls(study: Study) -> Row:
    """How many experts each rule found, and what shuffled labels give."""
    found = {}
    for method in ("ses", "contrast"):
        experts = study.experts(method)
        rows = experts.controls["null"]["groups"]
        found[method] = {
            name: {
                "n": len(members),
                "shuffled": [rows[name]["median"], *rows[name]["interval"]],
                "p": rows[name]["p_value"],
            }
            for name, members in experts.groups.items()
        }
    return found


MEASURES = ("accuracy", "precision", "recall", "f1", "auc")


def probing(subject: Subject, study: Study) -> list[Row]:
    """Groups against random experts of their layers."""
    result = study.probing()
    if result is None:
        return []
    (task,) = result.tasks
    rows = []
    for group in task["groups"]:
        layer = next((row for row in group["controls"] if row["kind"] == "layer"), None)
        rows.append(
            {
                **subject.row(),
                "group": group["group"],
                "n": len(group["experts"]),
                "prompts": group["n"],
                **{name: rate(group[name]) for name in MEASURES},
                "random_accuracy": layer and [layer["accuracy"][key] for key in ("mean", "min", "max")],
                "random_auc": layer and [layer["auc"][key] for key in ("mean", "min", "max")],
                "p": layer and layer["auc"]["p_value"],
                "words": rate(task["words"]["accuracy"]) if task["words"] else None,
            }
        )
    return rows


def merging(subject: Subject, repair: Repair) -> list[Row]:
    """The paper's third table."""
    study, rows = repair.study, []
    for row in repair.rows():
        found = before(safex.Evaluation.load(study.folder / f"{row['eval']}.eval.json"))
        left = None
        if row["group"]:
            left = read(study.folder / f"{Merge(row['how'], row['group']).name}.merge.json")["cosine"]
        rows.append({**subject.row(), **row, **found, "survival": left})
    return rows


def read(path: Path) -> Any:
    """A file of ``write_json``."""
    from safex.result_file import read_json

    return read_json(path, "a file of reproduce.py", lambda value: value)


def types(subject: Subject, group: str, studies: Iterable[tuple[str, Study]]) -> list[Row]:
    """One model in several tensor types: refusal, the mask's effect, drift of routing from the first."""
    rows, reference = [], None
    for kind, study in ((kind, study) for kind, study in studies if group in study.groups()):
        found = study.masked(group, "zero")
        profile = study.profile()
        reference = reference or profile
        drift = safex.compare(reference, profile, phase="suffix")
        regular = next(row for row in drift.overall if row["set"] == "regular")
        rows.append(
            {
                **subject.row(),
                "type": kind,
                "bytes": study.model.stat().st_size,
                "before": before(found),
                "mask": {"group": group, **masked(found)},
                "agreement": regular["agreement"],
                "rank_correlation": regular["rank_correlation"],
            }
        )
    return rows


def redundancy(subject: Subject, study: Study) -> Row | None:
    """The curve of refusal and compliance, its half-point and area, against control orders."""
    found = study.curve()
    if found is None:
        return None
    return {
        **subject.row(),
        "sizes": found.sizes,
        "refuse": [rate(row["refuse"]) for row in found.curve("regular")],
        "comply": [rate(row["comply"]) for row in found.curve("regular")],
        "half": found.half,
        "area": rate(found.area["refuse"]),
        "controls": [
            {
                "kind": row["kind"],
                "n": row["n"],
                "area": [row["refuse"][key] for key in ("mean", "min", "max")],
                "p": row["refuse"]["placement"]["p_value"] if row["n"] > 1 else None,
            }
            for row in found.controls
        ],
    }
