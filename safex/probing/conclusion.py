"""What the probes of a group show, in plain words; also when they show nothing."""

from __future__ import annotations

from collections.abc import Sequence

from safex.probing.scores import MAIN, Row

ALPHA = 0.05
CAVEAT = "A probe shows what can be read from an expert's output, not that the model uses it: `eval --mask` tests that."


def evidence(group: Row) -> dict[str, bool | None]:
    """What holds of a group's row; None where it can't be told. Compared by AUC, at p <= 0.05.

    ``signal``: above shuffled labels (without them: the interval is above one half). ``specific``: above the draws of
    every kind of control. ``beyond_words``: more right answers than the bag of words, by the difference's interval.
    """
    if group.get(MAIN) is None:
        return {"signal": None, "specific": None, "beyond_words": None}
    words = group.get("versus_words")
    return {
        "signal": _signal(group),
        "specific": _specific(group["controls"]),
        "beyond_words": None if words is None else bool(words["interval"][0] > 0),
    }


def _signal(group: Row) -> bool:
    p_value = _p_of_shuffles(group)
    return bool(group[MAIN]["interval"][0] > 0.5) if p_value is None else p_value <= ALPHA


def _p_of_shuffles(group: Row) -> float | None:
    """None where there are too few of them to tell."""
    shuffled = group.get("shuffled")
    if not shuffled or shuffled[MAIN] is None or 1 / (1 + shuffled["n"]) > ALPHA:
        return None
    return float(shuffled[MAIN]["p_value"])


def _specific(controls: Sequence[Row]) -> bool | None:
    placed = [row[MAIN] for row in controls if row[MAIN] is not None]
    if any(one["as_good"] and one["p_value"] > ALPHA for one in placed):
        return False
    enough = placed and all(one["p_value"] <= ALPHA for one in placed)
    return True if enough else None


def conclude(group: Row, task: Row) -> str:
    """A few sentences on a group in a task."""
    what = f"Group {group['group']} ({_count(len(group['experts']), 'expert')}), {_named(task)}"
    if group.get(MAIN) is None:
        return f"{what}: not probed ({group.get('skipped', 'no prompt was scored')})."
    auc, accuracy = group[MAIN], group["accuracy"]
    low, high = auc["interval"]
    parts = [
        f"{what}: AUC {auc['value']:.3f} (95 % interval {low:.3f} to {high:.3f}), accuracy {accuracy['value']:.1%} "
        f"where the larger class has {task['majority']['value']:.1%}."
    ]
    if not group["evidence"]["signal"]:
        p_value = _p_of_shuffles(group)
        against = "" if p_value is None else f" (p = {p_value:.2g} against shuffled labels)"
        return " ".join([*parts, f"No signal shown{against}."])
    parts += [_specificity(group), _words(group, task), _transfer(group, task)]
    return " ".join(part for part in parts if part)


def overall(tasks: Sequence[Row]) -> str:
    """The conclusion on every group in the first task, and what probes can't say."""
    return " ".join([*(row["conclusion"] for row in tasks[0]["groups"]), CAVEAT])


def _named(task: Row) -> str:
    sides = (" and ".join(task[side]) for side in ("positive", "negative"))
    return " against ".join(sides)


def _specificity(group: Row) -> str:
    placed = [(row["kind"], row[MAIN], row["n"]) for row in group["controls"] if row[MAIN] is not None]
    if not placed:
        return "No control experts were probed, so random experts may do as well."
    found = ", ".join(
        f"{_kind(kind)} AUC {one['mean']:.3f} on average, {one['as_good']} of {n} draws as good "
        f"(p = {one['p_value']:.2g})"
        for kind, one, n in placed
    )
    verdict = {
        True: "Better than random experts",
        False: "No better than random experts",
        None: "Too few control draws to tell it from random experts",
    }[group["evidence"]["specific"]]
    return f"{verdict}: {found}."


def _kind(kind: str) -> str:
    names = {
        "layer": "those of the same layers",
        "frequency": "those selected as often",
        "uniform": "those of any layer",
    }
    return names.get(kind, kind)


def _words(group: Row, task: Row) -> str:
    difference = group.get("versus_words")
    if difference is None or not task["words"]:
        return ""
    low, high = difference["interval"]
    verdict = "more" if low > 0 else "less" if high < 0 else "no more"
    return (
        f"It knows {verdict} than the words of the prompts: a bag of words gets "
        f"{task['words']['accuracy']['value']:.1%} right "
        f"({100 * difference['value']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f})."
    )


def _transfer(group: Row, task: Row) -> str:
    moved = group.get("transfer")
    if not moved or moved[MAIN] is None:
        return ""
    return (
        f"Tried on {' and '.join(task['transfer'])} against {' and '.join(task['negative'])}, the same probes have AUC "
        f"{moved[MAIN]['value']:.3f} and call {moved['recall']['value']:.1%} of the {' and '.join(task['transfer'])} "
        "prompts positive."
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
