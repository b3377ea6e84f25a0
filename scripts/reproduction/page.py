"""docs/reproduction.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .paper import MASKING

Row = dict[str, Any]
KINDS = {"layer": "same layers", "frequency": "as often selected", "active": "most active"}

TEMPLATE = Path(__file__).with_name("template.md")


def made(found: Row) -> str:
    """The whole page."""
    about = found["about"]
    return TEMPLATE.read_text(encoding="utf-8").format(
        about=_about(about),
        masking=_masking(found["masking"]),
        paper=_paper(),
        reading=_reading(found["masking"]),
        controls=_controls(found["masking"]),
        nulls=_nulls(found["masking"]),
        probing=_probing(found["probing"]),
        merging=_merging(found["merging"]),
        repair=_repair(found["merging"]),
        types=_types(found["types"]),
        redundancy=_redundancy(found["redundancy"]),
        rank=about["rank"],
        **about["merge_scales"],
    )


def _about(about: Row) -> str:
    seconds = about["seconds"]
    counts = ", ".join(f"{n} {name}" for name, n in about["held_out"].items())
    times = ", ".join(f"{name} {value / 60:.0f}" for name, value in seconds.items())
    return (
        f"Run of {about['date']}, commit {about['commit']}, on {about['cores']} cores. "
        f"Core minutes: {sum(seconds.values()) / 60:.0f} ({times}). Held-out prompts: {counts}. "
        f"{about['scale']['draws']} control masks of each drawn kind."
    )


# --- words and numbers


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are text."""
    line = ["---" if number < left else "---:" for number in range(len(columns))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, line, *rows])


def percent(rate: Sequence[float] | None) -> str:
    """A rate with its interval.

    >>> percent([0.9, 0.815, 0.948])
    '90.0 [81.5, 94.8]'
    """
    return "" if rate is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * one for one in rate))


def points(rate: Sequence[float]) -> str:
    """A change with its interval.

    >>> points([-0.125, -0.2, 0])
    '-12.5 [-20.0, +0.0]'
    """
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * one for one in rate))


def number(value: float | None, form: str = ".3f") -> str:
    """A number, or nothing."""
    return "" if value is None else format(value, form)


def label(row: Row) -> str:
    """A model's name in a table."""
    if row["bundled"]:
        return f"{row['bundled']} (ships)"
    return f"{row['title']}, {row['kind']}, seed {row['seed']}"


def main_mask(row: Row, group: str = "ctrl", mode: str = "zero") -> Row | None:
    """The mask of a group, if the model has it."""
    return next((mask for mask in row["masks"] if (mask["group"], mask["mode"]) == (group, mode)), None)


# --- sections


def _masking(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        mask, first = main_mask(row), row["before"]
        size = str(mask["n"]) if mask else "0" if row["masks"] else ""
        after = percent(mask["regular"]) if mask else ""
        kind = "dense" if row["arch"] == "dense" else "MoE"
        lines.append([kind, label(row), size, percent(first["regular"]), after, percent(first["jailbreak"])])
    return table(["type", "model", "experts in ctrl", "before", "after mask", "jailbreak"], lines, 2)


def _paper() -> str:
    lines = [
        [
            "MoE",
            one.model,
            str(one.experts),
            *(f"{value:.1f}" for value in (one.before, one.after, one.jailbreak)),
        ]
        for one in MASKING.values()
    ]
    return table(["type", "model", "experts in ctrl", "before", "after mask", "jailbreak"], lines, 2)


def is_beyond(mask: Row) -> bool:
    """Whether refusal fell, and further than under every drawn kind of control."""
    drawn = [row["p"] for row in mask["controls"] if row["p"] is not None]
    return mask["change"][0] < 0 and mask["p"] < 0.05 and bool(drawn) and max(drawn) <= 0.05


def _reading(rows: Sequence[Row]) -> str:
    lines = []
    for group in ("ctrl", "id ∪ ctrl", "contrast ctrl", "planted"):
        masks = [(row, mask) for row in rows if (mask := main_mask(row, group)) is not None]
        hits = [f"{label(row)} ({points(mask['change'])})" for row, mask in masks if is_beyond(mask)]
        what = "; ".join(hits)
        if masks:
            lines.append(f"- **{group}**: in {len(hits)} of {len(masks)} models{': ' * bool(hits)}{what}")
    return "\n".join(lines)


def _controls(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for mask in row["masks"]:
            by_kind = {one["kind"]: one for one in mask["controls"]}
            lines.append(
                [
                    label(row),
                    mask["group"],
                    mask["mode"],
                    str(mask["n"]),
                    points(mask["change"]),
                    *(_control(by_kind.get(kind)) for kind in KINDS),
                    percent(mask["complies"]),
                    percent(mask["benign_right"]),
                    number(mask["kl"] and mask["kl"][0], ".4f"),
                ]
            )
    columns = [
        "model",
        "group",
        "mode",
        "experts",
        "change of refusal",
        *(f"refusal, {name}" for name in KINDS.values()),
    ]
    return table([*columns, "complies after", "benign right after", "KL, nats"], lines, 3)


def _control(row: Row | None) -> str:
    if row is None:
        return ""
    p = "" if row["p"] is None else f", p {row['p']:.2f}"
    return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * one for one in row["refuse"])) + p


def _nulls(rows: Sequence[Row]) -> str:
    lines = [
        [
            label(row),
            f"{method} {name}",
            str(group["n"]),
            "{:g} ({:g} to {:g})".format(*group["shuffled"]),
            number(group["p"]),
        ]
        for row in rows
        for method, groups in row.get("nulls", {}).items()
        for name, group in groups.items()
    ]
    return table(["model", "group", "experts", "with shuffled labels", "p"], lines, 2)


def _probing(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["title"],
            row["group"],
            str(row["n"]),
            *(percent(row[name]) for name in ("accuracy", "precision", "recall", "f1")),
            ""
            if row["random_accuracy"] is None
            else "{:.1f} ({:.1f} to {:.1f})".format(*(100 * v for v in row["random_accuracy"])),
            number(row["p"], ".2f"),
            percent(row["words"]),
        ]
        for row in rows
    ]
    columns = [
        "model",
        "group",
        "experts",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "random experts, accuracy",
        "p",
        "words, accuracy",
    ]
    return table(columns, lines, 2)


def _merging(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        how = f"{row['how']}, {row['group'].replace('-', ' ')}" if row["group"] else "base"
        rates = [percent(row[name]) for name in ("jailbreak", "regular", "benign_right")]
        size = str(row["n"]) if row["group"] else ""
        lines.append([row["title"], how, size, *rates, number(row["survival"])])
    columns = [
        "model",
        "merge",
        "experts",
        "jailbreak refused",
        "regular refused",
        "benign right",
        "survival",
    ]
    return table(columns, lines, 2)


def _repair(rows: Sequence[Row]) -> str:
    """Additive merges into the paper's group beside those into draws of random experts."""
    lines = []
    for title in dict.fromkeys(row["title"] for row in rows):
        rates = {
            row["group"]: row["jailbreak"]
            for row in rows
            if (row["title"], row["how"]) == (title, "additive")
        }
        if "ctrl" not in rates:  # a model may have no such experts
            continue
        ctrl, drawn = rates["ctrl"], [rates[name][0] for name in rates if name.startswith("random-")]
        as_high = sum(value >= ctrl[0] for value in drawn)
        lines.append(
            [
                title,
                percent(ctrl),
                ", ".join(f"{100 * value:.1f}" for value in sorted(drawn)),
                number((1 + as_high) / (1 + len(drawn)), ".2f"),
            ]
        )
    return table(["model", "ctrl", "draws of random experts", "p, ctrl repairs better"], lines)


def _types(rows: Sequence[Row]) -> str:
    lines = [
        [
            label(row),
            row["type"].upper(),
            f"{row['bytes'] / 1e6:.1f}",
            percent(row["before"]["regular"]),
            percent(row["before"]["jailbreak"]),
            percent(row["before"]["benign_right"]),
            f"{row['mask']['group']}: {points(row['mask']['change'])}",
            number(row["agreement"]),
            number(row["rank_correlation"]),
        ]
        for row in rows
    ]
    columns = [
        "model",
        "type",
        "MB",
        "regular refused",
        "jailbreak refused",
        "benign right",
        "mask",
        "agreement",
        "rank correlation",
    ]
    return table(columns, lines, 2)


def _redundancy(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        half = row["half"]
        reached = half.get("value") is not None
        interval = half.get("interval") or [None, None]
        ends = " to ".join("not reached" if end is None else f"{end:.1f}" for end in interval)
        lines.append(
            [
                label(row),
                str(row["sizes"][-1]),
                f"{half['value']:.1f} ({ends})" if reached else f"not reached by {row['sizes'][-1]}",
                "{:.3f} [{:.3f}, {:.3f}]".format(*row["area"]),
                "; ".join(_order(one) for one in row["controls"]),
            ]
        )
    return table(
        ["model", "experts masked at most", "half-point", "area", "area of control orders, p"], lines, 2
    )


def _order(control: Row) -> str:
    p = "" if control["p"] is None else f" (p {control['p']:.2f})"
    return f"{control['kind']} {control['area'][0]:.3f}{p}"
