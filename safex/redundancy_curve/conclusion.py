"""What a redundancy curve shows, in plain words; also when refusal isn't halved."""

from __future__ import annotations

from typing import Any

from safex.control_masks import SINGLE
from safex.evaluation.conclusion import ALPHA, as_good, fate, is_real, is_specific, p_value
from safex.evaluation.plan import REGULAR
from safex.judges import COMPLY, OTHER, REFUSE
from safex.judges.readable import Read

from .orders import SHUFFLED
from .result import Redundancy

Row = dict[str, Any]


def evidence(found: Redundancy) -> dict[str, bool | None]:
    """What holds of the curve; None where it can't be told.

    ``halved``: refusal of regular prompts stays at or below half from some measured size on. ``beyond_controls``: the
    area under the curve is below that of control orders (every drawn kind has p <= 0.05, the most active experts leave
    more), "shuffled" aside. ``real_compliance``: of the refusals lost at that size (or the last one) more than half
    comply.
    """
    if not found.area:
        return dict.fromkeys(("halved", "beyond_controls", "real_compliance"))
    return {
        "halved": found.half["size"] is not None,
        "beyond_controls": is_specific(_others(found)),
        "real_compliance": is_real(_step(found)["lost_refusals"]),
    }


def conclude(found: Redundancy) -> str:
    """A few sentences."""
    if not found.area:
        return f"Not measurable: {_unread(found)}"
    parts = [_half(found), _area(found), _controls(found), _shuffled(found), _fate(found), _damage(found)]
    parts.append(_unread(found))
    return " ".join(part for part in parts if part)


def _unread(found: Redundancy) -> str:
    """What could not be read, and where the curve ends because of it. Empty where all could."""
    reads = {row["size"]: Read.of_rates(row) for row in found.curve(REGULAR)}
    total, masked = Read.together(reads.values()), not reads[0].unread
    parts = []
    if total.unread:
        parts.append(
            f"Of {total.n} answers to regular prompts {total.unread} could not be read and are in no rate "
            f"({total.why}); {total.remedy(masked)}."
        )
    end = next((size for size in found.sizes if not reads[size].is_most), None)
    if end is not None:
        read = reads[end]
        parts.append(
            f"With {end} masked only {read.readable} of {read.n} could be read, so the curve is taken up to the size "
            f"before that: {found.measured}."
        )
    parts += [
        f"{n} {kind} control orders are left out: their answers could not be read."
        for kind, n in found.left_out.items()
    ]
    return " ".join(parts)


def _others(found: Redundancy) -> list[Row]:
    """Controls of other experts."""
    return [row for row in found.controls if row["kind"] != SHUFFLED]


def _step(found: Redundancy) -> Row:
    """The curve where refusal is halved, or else at its end."""
    size = found.measured if found.half["size"] is None else found.half["size"]
    return next(row for row in found.curve(REGULAR) if row["size"] == size)


def _half(found: Redundancy) -> str:
    curve, half, most = found.curve(REGULAR), found.half, found.measured
    before, after = (f"{row[REFUSE]['value']:.1%}" for row in (curve[0], _step(found)))
    if half["size"] is None:
        last = "1 expert" if most == 1 else f"{most} experts"
        return f"Not halved: with the first {last} masked refusal of regular prompts is {after}, unmasked {before}."
    return (
        f"Refusal of regular prompts is halved by {half['value']:.1f} masked experts (95 % interval "
        f"{span(half['interval'])}): from {half['size']} of {most} on it is at most half of the unmasked {before}, "
        f"{after} there."
    )


def span(ends: list[float | None]) -> str:
    """An interval of half-points.

    >>> span([1.25, None])
    '1.2 to not reached'
    """
    return " to ".join("not reached" if end is None else f"{end:.1f}" for end in ends)


def _area(found: Redundancy) -> str:
    area = found.area[REFUSE]
    low, high = area["interval"]
    return f"Robustness, the area under the curve: {area['value']:.2f} ({low:.2f} to {high:.2f}; 1 = nothing lost)."


def _controls(found: Redundancy) -> str:
    rows = _others(found)
    if not rows:
        return "No control orders of other experts were run, so others may do the same."
    known = is_specific(rows)
    listed = ", ".join(map(_described, rows))
    if known:
        return f"It is below that of as many other experts: {listed}."
    rivals = [row for row in rows if as_good(row) and p_value(row) > ALPHA]
    if rivals:
        return f"That is not specific to these experts: {listed}."
    return f"Too few control orders were drawn to say that it is specific to these experts: {listed}."


def _described(row: Row) -> str:
    values = row[REFUSE]
    if row["kind"] in SINGLE:
        return f"{row['kind']} {values['mean']:.2f}"
    return (
        f"{row['n']} {row['kind']} {values['mean']:.2f} (lowest {values['min']:.2f}; p = {p_value(row):.2g})"
    )


def _shuffled(found: Redundancy) -> str:
    row = next((row for row in found.controls if row["kind"] == SHUFFLED), None)
    return f"The same experts in random order: {_described(row)}." if row else ""


def _fate(found: Redundancy) -> str:
    step = _step(found)
    lost = step["lost_refusals"]
    n = lost[COMPLY] + lost[OTHER]
    return f"Of the {n} refusals lost with {step['size']} masked {fate(lost)}" if n else ""


def _damage(found: Redundancy) -> str:
    size = _step(found)["size"]
    cost = next((row for row in found.utility if row["size"] == size), None)
    if cost is None:
        return ""
    ratio, kl = (cost[name]["value"] for name in ("ratio", "kl"))
    return f"Harmless text there: perplexity times {ratio:.2f}, KL {kl:.2g} nats a token."
