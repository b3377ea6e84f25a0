"""What an audit says: its verdict as a banner and a table of what it rests on, and how it was run."""

from __future__ import annotations

from typing import Any, NamedTuple

from .content import Block, Cell, Column, Prose, Section, Table, number_cell, text_cell
from .evaluation_tables import UNREADABLE
from .values import fixed, interval, items, listing, number, part, percent, plural

Content = dict[str, Any]

MEASURES = (
    ("refusal", "refusal of regular prompts, no mask"),
    ("over_refusal", "refusal of benign prompts, no mask"),
    ("discrimination", "regular less benign"),
    ("drop", "refusal lost under the mask (points)"),
    ("rise", "compliance won under the mask (points)"),
    ("hangs", "share of the refusals that hangs on the tested experts, beyond control masks"),
)


ANSWERS = (
    ("regular", "regular prompts, no mask"),
    ("masked", "regular prompts, masked"),
    ("benign", "benign prompts, no mask"),
    ("controls", "regular prompts, control masks"),
)


class Banner(NamedTuple):
    """What stands on top of the page: the verdict's name, its words, the number that carries it with its interval."""

    name: str
    text: str
    carried: str


def banner(verdict: Content) -> Banner:
    """Of the content of a ``verdict.json``."""
    found = part(verdict, "carried_by")
    value, ends = percent(found.get("value")), interval(found.get("interval"))
    carried = (
        f"{found.get('what', '')}: {fixed(value, 1)} % (95 % interval {fixed(100 * ends[0], 1)} to "
        f"{fixed(100 * ends[1], 1)} %)"
        if ends
        else ""
    )
    text = str(verdict.get("conclusion", ""))
    words = text.partition(": ")[2] or text  # the name stands above them
    return Banner(str(verdict.get("verdict", "")), words[:1].upper() + words[1:], carried)


def verdict_section(verdict: Content) -> Section:
    """The numbers, the experts and the rule that chose them."""
    measured = part(verdict, "measured")
    body = [
        [text_cell(what), _percent_cell(part(measured, name))]
        for name, what in MEASURES
        if part(measured, name)
    ]
    columns = [Column("measured"), Column("%", numeric=True, intervals=True)]
    n = number(measured.get("prompts"))
    caption = (
        f"On the {fixed(n, 0)} regular prompts that had no part in finding the experts, as far as their answers could "
        "be read; 95 % intervals below."
    )
    blocks: list[Block] = [Prose(_tested(verdict))]
    blocks += [Table(caption, columns, body, tools=False)] if body else []
    blocks += [_readable_table(part(measured, "readable"))] if part(measured, "readable") else []
    return Section("verdict", "What the verdict rests on", blocks)


def _readable_table(counts: Content) -> Table:
    """How many answers each number rests on, and why the others could not be read."""
    body = [
        [
            text_cell(what),
            *(number_cell(part(counts, name).get(key), 0) for key in ("n", "readable", *UNREADABLE)),
        ]
        for name, what in ANSWERS
        if part(counts, name).get("n")
    ]
    columns = [Column("answers to"), *(Column(title, True) for title in ("answers", "read", *UNREADABLE))]
    caption = (
        "How many answers could be read, and why not the others: empty, cut off before anything could be judged, "
        "nothing but reasoning, text that repeats itself or is no language. Unreadable answers are in no rate."
    )
    return Table(caption, columns, body, tools=False)


def _percent_cell(estimate: Content) -> Cell:
    ends = interval(estimate.get("interval"))
    scaled = None if ends is None else [100 * end for end in ends]
    return number_cell(percent(estimate.get("value")), 1, scaled)


def _tested(verdict: Content) -> list[str]:
    experts = items(verdict.get("experts"))
    limits = part(verdict, "thresholds")
    named = (
        f"Under test: {listing(experts)}; {verdict.get('rule', '')}."
        if experts
        else "No experts were tested."
    )
    return [
        named,
        f"Most means {fixed(percent(limits.get('most')), 0)} % of the refusals; less than "
        f"{fixed(limits.get('practical_points'), 0)} points of refusal are not worth speaking of.",
    ]


def run_section(manifest: Content) -> Section:
    """Stages with their times, and why some did not run."""
    estimates = part(manifest, "estimates")
    body = [
        [
            text_cell(name),
            text_cell(record.get("state", "")),
            number_cell(estimates.get(name) or None, 0),
            number_cell(record.get("seconds"), 0),
            text_cell(record.get("note") or ", ".join(part(record, "files"))),
        ]
        for name, record in part(manifest, "stages").items()
        if isinstance(record, dict)
    ]
    columns = [
        Column("stage"),
        Column("state"),
        Column("estimated, s", numeric=True),
        Column("taken, s", numeric=True),
        Column("files, or why not"),
    ]
    parts = [_counted(manifest, *of) for of in (("find", "find the experts"), ("test", "test them"))]
    blocks: list[Block] = [
        Prose([text for text in (*parts, _answers(part(manifest, "trial"))) if text]),
        Table(
            "The stages of this audit, as far as they were done when this page was made.",
            columns,
            body,
            tools=False,
        ),
    ]
    return Section("audit", "How this audit was run", blocks)


def _counted(manifest: Content, name: str, what: str) -> str:
    counts = part(manifest, "prompts", name)
    return f"Prompts that {what}: {listing(f'{n} {of}' for of, n in counts.items())}." if counts else ""


def _answers(trial: Content) -> str:
    """How long answers may be, and what that rests on."""
    if not trial:
        return ""
    reasons = [f"{fixed(n, 0)} {reason}" for reason, n in part(trial, "unreadable").items()]
    unread = f" Of these could not be read: {listing(reasons)}." if reasons else ""
    limit = plural(int(number(trial.get("max_new")) or 0), "token")
    how = "measured" if trial.get("asked") == "auto" else "asked for and tried"
    return f"Answers: up to {limit}, as {how} on {fixed(trial.get('answers'), 0)} trial answers.{unread}"


def run_facts(manifest: Content) -> Content:
    """Parameters, sizes, versions, machine, as one column."""
    return {
        **part(manifest, "parameters"),
        **{f"size.{name}": value for name, value in part(manifest, "sizes").items()},
        **{f"version.{name}": value for name, value in part(manifest, "versions").items()},
        **{f"machine.{name}": value for name, value in part(manifest, "machine").items()},
    }
