"""What an evaluation says, as a section: conclusions as plainly where nothing was found, figures, tables, notes."""

from __future__ import annotations

from typing import Any

from .content import Block, Prose, Section, Table
from .evaluation_figures import by_judge, controls_figure, rates_figure
from .evaluation_tables import (
    agreement_table,
    categories_table,
    changes_table,
    controls_table,
    curve_table,
    evidence_table,
    judged,
    rates_table,
    readable,
    utility_table,
)
from .values import (
    MISSING,
    fixed,
    interval,
    items,
    listing,
    number,
    p_text,
    part,
    percent,
    plural,
    rows,
    signed,
)

Evaluation = dict[str, Any]

MASKS = {"none": "without a mask", "mask": "with the mask", "controls": "under control masks"}


def evaluation_section(evaluation: Evaluation, number_: str = "", label: str = "") -> Section:
    """One section; ``number_`` and ``label`` tell several evaluations apart."""
    title = "What the mask does" if part(evaluation, "mask") else "How often the model refuses"
    blocks: list[Block] = [
        Prose([*conclusions(evaluation), *_facts(evaluation)]),
        *_tables(evidence_table(evaluation)),
        *_measured(evaluation, f"-{label}" if label else ""),
        *_notes(evaluation),
    ]
    anchor = f"evaluation-{number_}" if number_ else "evaluation"
    return Section(anchor, f"{title}: {label}" if label else title, blocks)


def _measured(evaluation: Evaluation, tail: str) -> list[Block]:
    """Figures, each with the tables of its numbers behind it."""
    return [
        *by_judge(evaluation, rates_figure, "rates", tail),
        *_tables(rates_table(evaluation), changes_table(evaluation)),
        *by_judge(evaluation, controls_figure, "controls", tail),
        *_tables(
            controls_table(evaluation),
            categories_table(evaluation),
            curve_table(evaluation),
            agreement_table(evaluation),
            utility_table(evaluation),
        ),
    ]


def _tables(*tables: Table) -> list[Table]:
    """Those that the file has numbers for."""
    return [table for table in tables if table.rows]


def conclusions(evaluation: Evaluation) -> list[str]:
    """Each judge's; or that of the file, where they have none."""
    found = [
        (name, str(results["conclusion"]))
        for name, results in judged(evaluation)
        if results.get("conclusion")
    ]
    return _by(evaluation, found) or [str(evaluation["conclusion"])]


def _by(evaluation: Evaluation, lines: list[tuple[str, str]]) -> list[str]:
    """Lines of judges; each says whose it is, where there are several."""
    many = len(judged(evaluation)) > 1
    return [f"Judge {name}: {line}" if many else line for name, line in lines]


def _facts(evaluation: Evaluation) -> list[str]:
    """What was masked, and the rates of a paper's table in words."""
    lines = [(name, line) for name, results in judged(evaluation) for line in _headline(results)]
    masked = _masked(evaluation)
    limit = _limit(evaluation)
    return [*([masked] if masked else []), *_by(evaluation, lines), *([limit] if limit else [])]


def _limit(evaluation: Evaluation) -> str:
    """How many answers reached the token limit."""
    found = rows(evaluation.get("at_limit"))
    sides = []
    for mask, words in MASKS.items():
        counts = [(number(r.get("at_limit")), number(r.get("n"))) for r in found if r.get("mask") == mask]
        hits, every = (sum(pair[i] or 0 for pair in counts) for i in (0, 1))
        if every:
            sides.append(f"{hits:,.0f} of {every:,.0f} {words}")
    limit = plural(int(number(part(evaluation, "parameters").get("max_new")) or 0), "token")
    return f"Answers that reached the limit of {limit}: {', '.join(sides)}." if sides else ""


def _masked(evaluation: Evaluation) -> str:
    experts = items(part(evaluation, "mask").get("experts"))
    if not experts:
        return ""
    parameters = part(evaluation, "parameters")
    mode, phase = parameters.get("mode", MISSING), parameters.get("phase", MISSING)
    gain = f", gain {parameters.get('gain', MISSING)}" if mode == "zero" else ""
    return f"Masked: {plural(len(experts), 'expert')} ({listing(experts)}); mode {mode}{gain}, phase {phase}."


def _headline(results: dict[str, Any]) -> list[str]:
    return [line for line in (_jailbreak(part(results, "jailbreak")), _over_refusal(results)) if line]


def _jailbreak(change: dict[str, Any]) -> str:
    found = part(change, "difference")
    if number(found.get("value")) is None:
        return ""
    low, high = interval(found.get("interval")) or (None, None)
    how = f"twins of the same requests; p {_p(change)}" if change.get("twins") else "other requests"
    return (
        f"Jailbreak, no mask: {_rate(change, 'after')} of the jailbreak prompts are refused, "
        f"{_rate(change, 'before')} of the regular ones: {_points(found.get('value'))} points ({_points(low)} to "
        f"{_points(high)}; {how})."
    )


def _p(change: dict[str, Any]) -> str:
    text = p_text(change.get("p_value"))
    return text if text.startswith("<") else f"= {text}"


def _over_refusal(results: dict[str, Any]) -> str:
    benign = next((row for row in rows(results.get("sets")) if row.get("set") == "benign"), {})
    if not benign:
        return ""
    before = f"{_refused(benign, 'before')} of the benign prompts are refused without a mask"
    after = f", {_refused(benign, 'after')} with it" if part(benign, "after") else ""
    return f"Over-refusal: {before}{after}."


def _refused(row: dict[str, Any], side: str) -> str:
    """A rate; of how many answers, where some could not be read."""
    rates = part(row, side)
    n, read = number(rates.get("n")), number(readable(rates))
    if n and not read:
        return "an unknown share (no answer could be read)"
    among = (
        f" (as far as {fixed(int(read), 0)} of {fixed(int(n), 0)} could be read)"
        if n and read and read < n
        else ""
    )
    return f"{_rate(rates, 'refuse')}{among}"


def _rate(rates: dict[str, Any], key: str) -> str:
    return f"{fixed(percent(part(rates, key).get('value')), 1)} %"


def _points(value: object) -> str:
    return signed(percent(value), 1)


def _notes(evaluation: Evaluation) -> list[Block]:
    notes = [f"Note: {note}" for note in items(evaluation.get("notes"))]
    return [Prose(notes)] if notes else []
