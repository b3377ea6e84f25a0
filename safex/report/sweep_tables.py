"""Tables of a sweep: the logit without a mask, every expert with its effects, pairs of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .content import Cell, Column, Table, expert_cell, number_cell, p_cell, small_table, text_cell
from .values import (
    MISSING,
    items,
    number,
    part,
    percent,
    plural,
    rows,
    signed,
    whole_number,
    whole_numbers,
)

Sweep: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]
Maker: TypeAlias = Callable[[Row], Cell]

MOST = 8192  # rows of the table in the page; the file has all of them
FLAGS = {"lowers": "lowers refusal", "specific": "more than benign"}


def sweep_tables(sweep: Sweep) -> list[Table]:
    """Those that the file has numbers for, in the order of the section."""
    made = [experts_table(sweep), pairs_table(sweep)]
    return [table for table in made if table.rows]


def baseline_table(sweep: Sweep) -> Table:
    """One row a set."""
    body = [
        [text_cell(name), number_cell(part(row).get("prompts")), _logit(part(row), "logit", "interval")]
        for name, row in part(sweep, "baseline").items()
    ]
    columns = [Column("set"), Column("prompts", True), Column("refusal logit", True, intervals=True)]
    caption = "Without a mask: above 0, refusal starts are more probable than compliance starts."
    return Table(caption, columns, body, tools=False)


def sets_of(sweep: Sweep) -> list[str]:
    """The sets that effects are known of, regular prompts first."""
    names = dict.fromkeys(str(name) for row in rows(sweep.get("rows")) for name in part(row, "effect"))
    return sorted(names, key=lambda name: name != "regular")


def swept_all(sweep: Sweep) -> bool:
    """Whether every expert of the model was swept."""
    model = part(sweep, "model")
    n = len(whole_numbers(model.get("layers"))) * (whole_number(model.get("n_experts")) or 0)
    return 0 < n <= len({(row["layer"], row["expert"]) for row in rows(sweep.get("rows"))})


def signed_cell(value: object, ends: object = None) -> Cell:
    """A cell of an effect; six digits are kept, as there may be thousands of them."""
    return number_cell(_short(value), 3, [_short(end) for end in items(ends)], signed)


def _short(value: object) -> float | None:
    found = number(value)
    return None if found is None else float(f"{found:.6g}")


def _logit(row: Row, value: str, ends: str) -> Cell:
    return signed_cell(row.get(value), row.get(ends))


# --- experts


def experts_table(sweep: Sweep) -> Table:
    """One row an expert, in the order of the file: the most refusal-lowering first."""
    found = rows(sweep.get("rows"))
    made = _columns(found, sets_of(sweep))
    shown = sorted(found, key=_strength, reverse=True)[:MOST] if len(found) > MOST else found
    kept = {id(row) for row in shown}
    body = [[make(row) for _, make in made] for row in found if id(row) in kept]
    caption = (
        "Effect of masking one expert on the refusal logit, masked minus unmasked: below 0, less refusal."
    )
    if len(shown) < len(found):
        caption += f" The {len(shown):,} of {plural(len(found), 'expert')} with the largest effects; the file has all."
    return Table(caption, [column for column, _ in made], body)


def _strength(row: Row) -> float:
    return abs(number(part(row, "effect").get("regular")) or 0.0)


def _columns(found: list[Row], sets: list[str]) -> list[tuple[Column, Maker]]:
    """Columns for what any row knows."""

    def any_has(key: str) -> bool:
        return any(row.get(key) is not None for row in found)

    def estimate(key: str, title: str) -> list[tuple[Column, Maker]]:
        column = Column(title, True, intervals=True)
        return [(column, lambda row: _logit(row, key, f"{key}_interval"))] if any_has(key) else []

    neighbours = any(row.get("role") == "neighbour" for row in found)
    role: list[tuple[Column, Maker]] = [(Column("role"), lambda row: text_cell(row.get("role", "")))]
    return [
        (Column("expert", True), lambda row: expert_cell(row["layer"], row["expert"])),
        *(role if neighbours else []),
        *((Column(f"effect, {name}", True, intervals=True), _effect_of(name)) for name in sets),
        (Column("p adjusted", True), lambda row: p_cell(row.get("p_adjusted"))),
        *((Column(title), _yes_no(key)) for key, title in FLAGS.items() if any_has(key)),
        *estimate("specificity", "regular less benign"),
        *estimate("gradient", "gradient"),
        *(_change_of_step() if any_has("gradient_change") else []),
        (Column("used, %", True), lambda row: number_cell(percent(row.get("used")), 0)),
    ]


def _effect_of(name: str) -> Maker:
    return lambda row: signed_cell(part(row, "effect").get(name), part(row, "interval").get(name))


def _yes_no(key: str) -> Maker:
    return lambda row: text_cell({True: "yes", False: "no"}.get(row.get(key, ""), MISSING))


def _change_of_step() -> list[tuple[Column, Maker]]:
    return [(Column("gradient, half step", True), lambda row: signed_cell(_half_step(row)))]


def _half_step(row: Row) -> float | None:
    slope, change = number(row.get("gradient")), number(row.get("gradient_change"))
    return None if slope is None or change is None else slope + change


# --- pairs


def pairs_table(sweep: Sweep) -> Table:
    """One row a pair, the strongest interaction first."""
    body = [
        [
            text_cell(" and ".join(map(str, items(row.get("experts"))))),
            signed_cell(row.get("effect")),
            _logit(row, "interaction", "interaction_interval"),
            p_cell(row.get("p_value")),
            p_cell(row.get("p_adjusted")),
        ]
        for row in rows(sweep.get("pairs"))
    ]
    caption = (
        "Pairs of the experts with the largest effects, on regular prompts. Interaction: the effect of both masked "
        "beyond the sum of their single effects; below 0, they do more together."
    )
    columns = [Column("experts"), Column("effect of both", True)]
    columns += [Column("interaction", True, intervals=True), Column("p", True), Column("p adjusted", True)]
    return small_table(caption, columns, body)
