"""Tables of an expert set: its groups, its controls with what they mean in plain words, its clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from safex.expert_set import Entry, ExpertSet

from .content import Cell, Column, Table, expert_cell, number_cell, p_cell, text_cell
from .values import (
    MISSING,
    fixed,
    items,
    listing,
    number,
    p_text,
    part,
    per_layer,
    plural,
    rows,
    small,
    span,
)

Maker: TypeAlias = Callable[[int, Entry], Cell]  # of the cell of a column, from rank and entry

FLAGS = {"specific": "specific", "hot_in_benign": "hot in benign"}
SIGNIFICANT = 0.05
SAME_GROUP, LIKE_GROUP = 0.8, 0.5  # split-half Jaccard: what is called nearly the same, and partly
GROUP_NAMES = {"id": "E_id, harmful content detection", "ctrl": "E_ctrl, harmful response control"}


def group_title(name: str) -> str:
    """A group's name with what it stands for, where that is known."""
    return f"{name} ({GROUP_NAMES[name]})" if name in GROUP_NAMES else name


EVIDENCE = {
    "ses": (
        "both groups together (Holm)",
        "Beyond chance, both groups taken together: the conclusion rests on it.",
        "Not beyond chance, both groups taken together: the conclusion does not rest on it.",
    ),
    "contrast": (
        "test of each expert",
        "Each of these experts passed its own test.",
        "No expert passed its test.",
    ),
}


# --- groups


def group_table(name: str, entries: list[Entry]) -> Table:
    """One row an expert; columns for what any entry knows."""
    made: list[tuple[Column, Maker]] = [
        (Column("rank", True), lambda i, _: Cell(str(i + 1), i + 1)),
        (Column("expert", True), lambda _, e: expert_cell(e["layer"], e["expert"])),
        *((Column(key, True), _number_of(key)) for key in ("score", "frequency") if _any(entries, key)),
        *(
            (Column("p", True), lambda _, e: p_cell(e.get("p_value")))
            for _ in range(_any(entries, "p_value"))
        ),
        *_activations(entries),
        *_differences(entries),
        *((Column(title), _yes_no(key)) for key, title in FLAGS.items() if _any(entries, key)),
    ]
    body = [[make(i, entry) for _, make in made] for i, entry in enumerate(entries)]
    caption = f"Group {group_title(name)}: {plural(len(entries), 'expert')}"
    return Table(caption, [column for column, _ in made], body)


def _any(entries: list[Entry], key: str) -> bool:
    return any(entry.get(key) is not None for entry in entries)


def _number_of(key: str) -> Maker:
    return lambda _, entry: number_cell(entry.get(key))


def _yes_no(key: str) -> Maker:
    return lambda _, entry: text_cell({True: "yes", False: "no"}.get(entry.get(key, ""), MISSING))


def _activations(entries: list[Entry]) -> list[tuple[Column, Maker]]:
    def maker(name: str) -> Maker:
        return lambda _, e: number_cell(part(e, "activation").get(name), ends=part(e, "interval").get(name))

    return [
        (Column(f"p({name})", True, intervals=True), maker(name)) for name in _keys(entries, "activation")
    ]


def _differences(entries: list[Entry]) -> list[tuple[Column, Maker]]:
    def maker(name: str) -> Maker:
        def make(_: int, entry: Entry) -> Cell:
            found = part(entry, "difference", name)
            return number_cell(found.get("value"), ends=found.get("interval"))

        return make

    names = _keys(entries, "difference")
    return [
        (Column(f"p({name.replace('-', ') − p(')})", True, intervals=True), maker(name)) for name in names
    ]


def _keys(entries: list[Entry], name: str) -> list[str]:
    return list(dict.fromkeys(key for entry in entries for key in part(entry, name)))


# --- controls


def controls_table(experts: ExpertSet) -> Table | None:
    """One row a control and group, each with its reading; None where the file holds no controls."""
    body = [
        *_null_rows(experts.controls),
        *_evidence_rows(experts),
        *_half_rows(experts.controls),
        *_hot_rows(experts.controls),
        *_baseline_rows(experts.controls, items(experts.model.get("layers"))),
    ]
    columns = [Column(title) for title in ("control", "group", "observed", "expected by chance", "reading")]
    caption = (
        "Each row sets what was found against what would be found if the set labels or the choice of "
        "prompts were arbitrary."
    )
    return Table(caption, columns, body, tools=False) if body else None


def _null_rows(controls: dict[str, Any]) -> list[list[Cell]]:
    n = part(controls, "null").get("permutations")
    shuffles = f"shuffled set labels ({fixed(n, 0)} shuffles)" if number(n) else "shuffled set labels"
    return [
        [
            text_cell(shuffles),
            text_cell(_group_label(name)),
            text_cell(plural_experts(part(null).get("observed"))),
            text_cell(_null_median(part(null))),
            text_cell(null_reading(null)),
        ]
        for name, null in part(controls, "null", "groups").items()
    ]


def _null_median(null: dict[str, Any]) -> str:
    if number(null.get("median")) is None:
        return MISSING
    return f"median {small(null['median'])}" + _in_brackets(span(null.get("interval"), small))


def _group_label(name: str) -> str:
    """A group, or with ``_specific`` behind its name those members that tell its sets apart."""
    group, specific, _ = name.partition("_specific")
    return f"{group}, specific experts only" if specific else name


def null_reading(null: Any) -> str:
    """Whether a group is larger than under shuffled labels, in words.

    >>> null_reading({"observed": 8, "median": 8, "p_value": 0.6})
    'Within what shuffled labels give (p = 0.600): no evidence that these experts go with the labels.'
    """
    observed, p = (number(part(null).get(key)) for key in ("observed", "p_value"))
    if observed is None or p is None:
        return "Not tested."
    if observed == 0:
        return "The group is empty."
    shown = f"p {p_text(p)}" if p < 0.001 else f"p = {p_text(p)}"
    if p <= SIGNIFICANT:
        return f"More than under shuffled labels ({shown}): the labels matter for this group."
    return f"Within what shuffled labels give ({shown}): no evidence that these experts go with the labels."


def _evidence_rows(experts: ExpertSet) -> list[list[Cell]]:
    """What follows for each group when all is taken together, where the file says so."""
    what, yes, no = EVIDENCE["contrast" if experts.parameters.get("method") == "contrast" else "ses"]
    return [
        list(
            map(
                text_cell, (what, name, "evidence" if found else "no evidence", MISSING, yes if found else no)
            )
        )
        for name, found in part(experts.controls, "evidence").items()
        if isinstance(found, bool)
    ]


def _half_rows(controls: dict[str, Any]) -> list[list[Cell]]:
    n = part(controls, "split_half").get("splits")
    splits = f"two halves of the prompts ({fixed(n, 0)} splits)" if number(n) else "two halves of the prompts"
    return [
        [
            text_cell(splits),
            text_cell(name),
            text_cell(
                f"Jaccard {fixed(half.get('median'), 2)}"
                + _in_brackets(span(half.get("interval"), lambda end: fixed(end, 2)))
            ),
            text_cell("near 0"),
            text_cell(half_reading(half, n)),
        ]
        for name, half in part(controls, "split_half", "groups").items()
    ]


def half_reading(half: Any, splits: Any = None) -> str:
    """How far a group depends on which prompts were drawn, in words.

    >>> half_reading({"median": 0.9})
    'Both halves give nearly the same group.'
    """
    median = number(part(half).get("median"))
    undefined = number(part(half).get("undefined"))
    empty = f" In {undefined:.0f} of {fixed(splits, 0)} splits both groups were empty." if undefined else ""
    if median is None:
        return "Undefined: the halves give empty groups." if not empty else empty.strip()
    if median >= SAME_GROUP:
        return "Both halves give nearly the same group." + empty
    if median >= LIKE_GROUP:
        return "The halves agree in part: some of these experts depend on which prompts were drawn." + empty
    return "The halves hardly agree: the group depends on which prompts were drawn." + empty


def _hot_rows(controls: dict[str, Any]) -> list[list[Cell]]:
    hot = part(controls, "hot_everywhere")
    n = len(items(hot.get("experts")))
    return [
        [
            text_cell("also stable in benign prompts"),
            text_cell(name),
            text_cell(MISSING if number(share) is None else f"{share:.0%} of the group"),
            text_cell(f"{plural(n, 'expert')} stable in every set"),
            text_cell(hot_reading(share)),
        ]
        for name, share in part(hot, "share").items()
    ]


def hot_reading(share: Any) -> str:
    """Whether a group holds experts that are active for any prompt, in words.

    >>> hot_reading(0.0)
    'None of these experts is also among the most active for benign prompts.'
    """
    found = number(share)
    if found is None:
        return "Undefined: the group is empty."
    if found == 0:
        return "None of these experts is also among the most active for benign prompts."
    whole = "All" if found == 1 else f"{found:.0%}"
    return f"{whole} of these experts are among the most active for benign prompts too: they are hot for any text."


def _baseline_rows(controls: dict[str, Any], layers: list[Any]) -> list[list[Cell]]:
    baseline = items(controls.get("baseline"))
    if not baseline:
        return []
    where = f" in {plural(len(layers), 'layer')}" if layers else ""
    shown = per_layer(baseline, fixed)
    return [
        [
            text_cell("equal use of all experts"),
            text_cell("any"),
            text_cell(MISSING),
            text_cell(f"activation {shown}{where}"),
            text_cell(
                "What every expert would have if the router had no preference: top-k / number of experts."
            ),
        ]
    ]


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def plural_experts(value: Any) -> str:
    """A count of experts that may be missing."""
    found = number(value)
    return MISSING if found is None else plural(int(found), "expert")


# --- clusters


def cluster_table(clusters: dict[str, Any]) -> Table | None:
    """One row a cluster: its size, its experts, the sets, categories and prompts that drive it."""
    found = rows(clusters.get("clusters"))
    columns = [Column("cluster", True), Column("experts", True)]
    columns += [Column(title) for title in ("by set", "driven by categories", "by prompts", "members")]
    body = [
        [
            number_cell(row.get("cluster")),
            number_cell(row.get("size")),
            text_cell(_driven(row.get("sets"), "set")),
            text_cell(_driven(row.get("categories"), "category")),
            text_cell(_driven(row.get("prompts"), "id")),
            text_cell(listing(items(row.get("experts")))),
        ]
        for row in found
    ]
    caption = (
        "Clusters of experts that rise and fall with the same prompts. Numbers in brackets are mean z-scores of the "
        "cluster's experts: above 0, more active there than over all prompts."
    )
    return Table(caption, columns, body) if found else None


def _driven(values: Any, key: str) -> str:
    return "; ".join(_one_driver(row, key) for row in rows(values)) or MISSING


def _one_driver(row: dict[str, Any], key: str) -> str:
    where = f" in {row['set']}" if key == "category" and row.get("set") else ""
    z = number(row.get("z"))
    return f"{row.get(key, MISSING)}{where}" + (f" ({z:+.2f})".replace("-", "−") if z is not None else "")
