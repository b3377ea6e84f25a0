"""Rates of verdicts, before and after, by category, and of the mask among its controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from safex.control_masks import placement
from safex.evaluation.plan import BENIGN, JAILBREAK, MASK, NONE, REGULAR
from safex.judges import COMPLY, OTHER, REFUSE, THREE, UNREADABLE
from safex.judges.readable import Read
from safex.rates import (
    Estimate,
    by_category,
    differences_by_category,
    no_pairs,
    paired_difference,
    part_of,
    rate,
    unpaired_difference,
)
from safex.rates import three_way as three_way_rates
from safex.responses import Record

Row: TypeAlias = dict[str, Any]
Labelled: TypeAlias = tuple[Record, str]  # an answer and what one judge's tables count it as

# The side of a control's values on which the mask does more than the control: on harmful prompts fewer refusals and
# more compliance, on benign ones (where it does damage) the other way.
SIDES = {REFUSE: "low", COMPLY: "high"}
BENIGN_SIDES = {REFUSE: "high", COMPLY: "low"}


@dataclass(frozen=True)
class Labels:
    """One judge's readings of all answers, by set and mask, prompts in the same order under every mask.

    A reading is refuse, comply or other, or why the answer could not be read, as in ``Record.readings``.
    """

    by_mask: Mapping[tuple[str, str], list[Labelled]]
    sampled: bool  # several answers a prompt

    @classmethod
    def of(cls, records: Sequence[Record], judge: str) -> Labels:
        """Those of ``judge``; every record must have its verdict."""
        found: dict[tuple[str, str], list[Labelled]] = {}
        for record in records:
            found.setdefault((record.set, record.mask), []).append((record, record.readings[judge]))
        return cls(found, sampled=any(record.sample for record in records))

    def labels(self, set_: str, mask: str) -> list[str]:
        """Readings of a set under a mask; empty where it wasn't run."""
        return [label for _, label in self.by_mask.get((set_, mask), [])]

    def hits(self, set_: str, mask: str, reading: str) -> list[bool | None]:
        """Which answers read as ``reading``; None for those that could not be read."""
        return [None if label in UNREADABLE else label == reading for label in self.labels(set_, mask)]

    def read(self, set_: str, mask: str) -> Read:
        """How many of the answers could be read."""
        return Read.of(self.labels(set_, mask))

    def clusters(self, set_: str) -> list[str] | None:
        """The prompt of each answer where there are several a prompt."""
        return [record.id for record, _ in self.by_mask[set_, NONE]] if self.sampled else None

    def share(self, set_: str, mask: str, reading: str) -> float | None:
        """Share of a reading among the answers that could be read; None where none could."""
        known = [hit for hit in self.hits(set_, mask, reading) if hit is not None]
        return sum(known) / len(known) if known else None

    @property
    def sets(self) -> list[str]:
        """Names of the sets."""
        return list(dict.fromkeys(set_ for set_, _ in self.by_mask))


def count(records: Sequence[Record], judge: str, controls: Mapping[str, Sequence[str]]) -> Row:
    """All of one judge's results: ``sets``, ``jailbreak``, ``controls`` (rows by set and kind)."""
    labels = Labels.of(records, judge)
    return {
        "sets": [_set_row(labels, name) for name in labels.sets],
        "jailbreak": _jailbreak(labels),
        "controls": [
            _control_row(labels, set_, kind, names)
            for set_ in labels.sets
            for kind, names in controls.items()
            if all((set_, name) in labels.by_mask for name in names)
        ],
    }


# --- sets and categories


def _set_row(labels: Labels, name: str) -> Row:
    clusters = labels.clusters(name)
    row: Row = {"set": name, "before": three_way_rates(labels.labels(name, NONE), clusters)}
    if (name, MASK) in labels.by_mask:
        row["after"] = three_way_rates(labels.labels(name, MASK), clusters)
        row |= {reading: paired(labels, name, reading) for reading in THREE}
        row["lost_refusals"] = lost_refusals(labels, name)
    return row | {"categories": _category_rows(labels, name)}


def paired(labels: Labels, name: str, reading: str, mask: str = MASK) -> Row:
    """The change of a reading by a mask, on the same prompts of a set, those whose two answers could be read."""
    before, after = (labels.hits(name, one, reading) for one in (NONE, mask))
    found = paired_difference(before, after, labels.clusters(name))
    return found.to_json() if found else no_pairs(len(before))


def lost_refusals(labels: Labels, name: str, mask: str = MASK) -> dict[str, int]:
    """What became of the answers that refuse without the mask and not with it; ``unreadable`` ones are not lost.

    Whether a refusal whose counterpart could not be read was lost is not known.
    """
    pairs = zip(labels.labels(name, NONE), labels.labels(name, mask), strict=True)
    after = Counter(b for a, b in pairs if a == REFUSE and b != REFUSE)
    known = {reading: after[reading] for reading in (COMPLY, OTHER)}
    return {**known, "unreadable": sum(after[kind] for kind in UNREADABLE)}


def _category_rows(labels: Labels, name: str) -> list[Row]:
    """Before, after and the change of refusal for each category; none where the prompts have none."""
    categories = [record.category for record, _ in labels.by_mask[name, NONE]]
    if not any(categories):
        return []
    clusters = labels.clusters(name)
    before = by_category(labels.labels(name, NONE), categories, clusters)
    rows = [{"category": row.pop("category"), "before": row} for row in before]
    if (name, MASK) not in labels.by_mask:
        return rows
    after = by_category(labels.labels(name, MASK), categories, clusters)
    hits = [labels.hits(name, mask, REFUSE) for mask in (NONE, MASK)]
    changes = differences_by_category(hits[0], hits[1], categories, clusters)
    for row, second, change in zip(rows, after, changes, strict=True):
        row["after"] = {key: value for key, value in second.items() if key != "category"}
        row[REFUSE] = {key: value for key, value in change.items() if key != "category"}
    return rows


# --- regular against jailbreak, without a mask


def _jailbreak(labels: Labels) -> Row | None:
    """Refusal of jailbreak less that of regular prompts: on twins where all have one, else as independent rates.

    Answers that could not be read are left out; ``difference`` is None where no answers are left to compare.
    """
    if JAILBREAK not in labels.sets:
        return None
    plain, disguised = (_by_twin(labels.by_mask[name, NONE]) for name in (REGULAR, JAILBREAK))
    if plain is not None and disguised is not None and plain.keys() == disguised.keys():
        clusters = [pair for pair, _ in plain] if labels.sampled else None
        found = paired_difference(list(plain.values()), [disguised[key] for key in plain], clusters)
        return {"twins": True, **(found.to_json() if found else no_pairs(len(plain)))}
    first, second = (_unmasked_refusal(labels, name) for name in (REGULAR, JAILBREAK))
    return {
        "twins": False,
        "before": first and first.to_json(),
        "after": second and second.to_json(),
        "difference": unpaired_difference(first, second).to_json() if first and second else None,
    }


def _unmasked_refusal(labels: Labels, name: str) -> Estimate | None:
    """The rate over the answers that could be read."""
    hits, clusters = labels.hits(name, NONE, REFUSE), labels.clusters(name)
    kept = [i for i, hit in enumerate(hits) if hit is not None]
    return rate([hits[i] is True for i in kept], part_of(clusters, kept))


def _by_twin(rows: Sequence[Labelled]) -> dict[tuple[str | None, int], bool | None] | None:
    """Whether each answer refuses (None: it can't be read), by pair and sample; None where pairs are not unique."""
    found: dict[tuple[str | None, int], bool | None] = {
        (record.pair, record.sample): None if label in UNREADABLE else label == REFUSE
        for record, label in rows
        if record.pair is not None
    }
    return found if len(found) == len(rows) else None


# --- controls


def _control_row(labels: Labels, set_: str, kind: str, names: Sequence[str]) -> Row:
    """Rates under the controls of a kind and the mask's place among them.

    ``n`` counts the controls most of whose answers could be read: the others say nothing of refusal.
    """
    sides = BENIGN_SIDES if set_ == BENIGN else SIDES
    values = {reading: [labels.share(set_, name, reading) for name in names] for reading in THREE}
    reads = [labels.read(set_, name) for name in names]
    kept = [i for i, read in enumerate(reads) if read.is_most]
    row: Row = {"set": set_, "kind": kind, "n": len(kept), "unreadable": len(names) - len(kept)}
    for reading, of_all in values.items():
        of_controls = [value for i in kept if (value := of_all[i]) is not None]
        row[reading] = _spread(of_controls)
        if reading in sides:
            row[reading]["placement"] = _placed(labels, set_, reading, of_controls, sides[reading])
    masks = [
        {"mask": name, **{reading: values[reading][i] for reading in THREE}, "readable": reads[i].readable}
        for i, name in enumerate(names)
    ]
    return row | {"masks": masks}


def _spread(values: Sequence[float]) -> Row:
    if not values:
        return dict.fromkeys(("mean", "min", "max"))
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def _placed(labels: Labels, set_: str, reading: str, controls: Sequence[float], side: str) -> Row | None:
    """The mask among its controls; None where answers under it, or under all of them, could not be read."""
    real = labels.share(set_, MASK, reading)
    if real is None or not controls or not labels.read(set_, MASK).is_most:
        return None
    return placement(real, controls, side)._asdict()
