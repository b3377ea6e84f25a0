"""What ``safex-native eval`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Output, table

if TYPE_CHECKING:
    from rich.table import Table

    from safex.evaluation import Evaluation

READINGS = ("refuse", "comply", "other")
UNREADABLE = ("empty", "truncated", "reasoning", "degenerate")
UNKNOWN = "-"  # no answer could be read
CHANGES = (
    "Change by the mask, in points, on the same prompts; p of refusal; lost = refusals that were lost, and how many of "
    "them now comply"
)
NAMES = {"none": "none", "mask": "masked"}


def show(out: Output, evaluation: Evaluation, output: Path) -> None:
    """The tables of every judge, utility, and the conclusion."""
    for note in evaluation.notes:
        out.note(f"note: {note}")
    say_policy(out, evaluation.parameters)
    for judge in evaluation.judges:
        found = evaluation.results[judge]
        out.text(
            f"Rates in % of the answers that could be read, with 95 % intervals, judge {judge}",
            rates_table(found["sets"]),
        )
        if found["jailbreak"]:
            out.text(jailbreak_line(found["jailbreak"]) + "\n")
        if evaluation.mask:
            out.text(CHANGES, changes_table(found["sets"]))
        if found["controls"]:
            out.text(_controls_heading(found["controls"]), controls_table(found["controls"], evaluation))
        out.text(*_category_parts(found["sets"]))
    if evaluation.length_curve:
        judge = evaluation.length_curve[0]["judge"]
        out.text(f"Refusals in % of all answers, by the tokens read (judge {judge})", curve_table(evaluation))
    if evaluation.agreement:
        out.text("Agreement of judges (three-way)", agreement_table(evaluation.agreement))
    if evaluation.utility:
        out.text("Cost of the mask on harmless text", utility_table(evaluation.utility))
    if evaluation.at_limit:
        out.text(limit_line(evaluation))
    for judge in evaluation.judges:
        name = f" ({judge})" if len(evaluation.judges) > 1 else ""
        out.text(f"Conclusion{name}: {evaluation.results[judge]['conclusion']}")
    out.text(f"Answers: {evaluation.responses}", f"Result: {output}")


def limit_line(evaluation: Evaluation) -> str:
    """How many answers reached the token limit."""
    from safex.evaluation import notes

    return notes.limit_line(evaluation.at_limit, evaluation.parameters["max_new"])


def curve_table(evaluation: Evaluation) -> Table:
    """One line a length, one column a set and mask."""
    found = {(row["set"], row["mask"], row["tokens"]): row for row in evaluation.length_curve}
    sides = list(dict.fromkeys((set_, mask) for set_, mask, _ in found))
    body = [
        [str(n), *(_rate(found[set_, mask, n]["refuse"]) for set_, mask in sides)]
        for n in dict.fromkeys(n for _, _, n in found)
    ]
    columns = ["tokens", *(set_ if mask == "none" else f"{set_}, masked" for set_, mask in sides)]
    return table(columns, body, right=range(len(columns)))


def say_policy(out: Output, parameters: dict[str, Any]) -> None:
    """What counts as a refusal where help and refusal are mixed."""
    from safex.judges import POLICIES

    policy, n = parameters.get("policy"), len(parameters.get("refusal_phrases", ()))
    if policy:
        own = f"; {n} refusal phrase{'s' * (n > 1)} of a house style" if n else ""
        out.text(f"Policy {policy}: {POLICIES[policy]}{own}")


def rates_table(sets: Sequence[dict[str, Any]]) -> Table:
    """One line a set and mask: rates of the answers that could be read, and why the others could not."""
    body = [
        [
            row["set"],
            NAMES[mask],
            str(rates["n"]),
            str(rates["readable"]),
            *_rates(rates),
            unread_words(rates),
        ]
        for row in sets
        for mask, rates in (("none", row["before"]), ("mask", row.get("after")))
        if rates
    ]
    columns = ["set", "mask", "n", "read", *READINGS, "not read"]
    return table(columns, body, right=range(2, len(columns) - 1))


def unread_words(row: dict[str, Any]) -> str:
    """How many answers could not be read, by why.

    >>> unread_words({"empty": 0, "truncated": 12, "reasoning": 3, "degenerate": 0})
    'truncated 12, reasoning 3'
    """
    return ", ".join(f"{kind} {row[kind]}" for kind in UNREADABLE if row[kind])


def jailbreak_line(change: dict[str, Any]) -> str:
    """Refusal of jailbreak prompts against that of regular ones."""
    if change["difference"] is None:
        return "Refusal of jailbreak less regular prompts: not measurable, too few answers could be read"
    how = f"on twins; p = {change['p_value']:.2g}" if change["twins"] else "of different prompts"
    return f"Refusal of jailbreak less regular prompts, no mask: {_difference(change['difference'])} points ({how})"


def changes_table(sets: Sequence[dict[str, Any]]) -> Table:
    """One line a set: difference of each reading, McNemar's p for refusal, lost refusals."""
    body = [[row["set"], *_changes(row)] for row in sets]
    columns = ["set", *READINGS, "p", "lost", "now comply"]
    return table(columns, body, right=range(1, len(columns)))


def _controls_heading(rows: Sequence[dict[str, Any]]) -> str:
    return (
        f"{max(row['n'] for row in rows)} control masks a kind, each of as many other experts (rates: mean, least to "
        "most); used = summed activation; p = (1 + controls that do as much as the mask) / (1 + controls)"
    )


def controls_table(rows: Sequence[dict[str, Any]], evaluation: Evaluation) -> Table:
    """The mask itself, then one line a set and kind."""
    body = []
    for set_ in dict.fromkeys(row["set"] for row in rows):
        body.append([set_, "the mask", "", *_of_mask(set_, evaluation, rows)])
        body += [_control_line(row, evaluation) for row in rows if row["set"] == set_]
    columns = ["set", "kind", "n", "used", *READINGS, "p refuse", "p comply"]
    return table(columns, body, right=range(2, len(columns)))


def _of_mask(set_: str, evaluation: Evaluation, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Its rates, from the judge whose controls these are."""
    judge = next(found for found in evaluation.results.values() if found["controls"] is rows)
    rates = next(row["after"] for row in judge["sets"] if row["set"] == set_)
    mask = evaluation.mask or {}
    shares = [f"{100 * rates[reading]['value']:.1f}" if rates[reading] else UNKNOWN for reading in READINGS]
    return [_activation([mask.get("activation")]), *shares, "", ""]


def _control_line(row: dict[str, Any], evaluation: Evaluation) -> list[str]:
    activation = [one["activation"] for one in evaluation.controls if one["kind"] == row["kind"]]
    p_values = [_placed(row, reading) for reading in ("refuse", "comply")]
    spans = [_span(row[reading]) for reading in READINGS]
    return ["", row["kind"], str(row["n"]), _activation(activation), *spans, *p_values]


def _placed(row: dict[str, Any], reading: str) -> str:
    """The p-value; one mask alone has none worth the name."""
    placed = row[reading]["placement"]
    return f"{placed['p_value']:.3f}" if placed and row["n"] > 1 else ""


def _span(values: dict[str, Any]) -> str:
    if values["mean"] is None:
        return UNKNOWN
    mean, low, high = (f"{100 * values[name]:.1f}" for name in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low}-{high})"


def _activation(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else ""


def _category_parts(sets: Sequence[dict[str, Any]]) -> list[str | Table]:
    body = [
        [row["set"], str(part["category"] or "-"), str(part["before"]["n"]), *_category_cells(part)]
        for row in sets
        for part in row["categories"]
    ]
    if not body:
        return []
    columns = ["set", "category", "n", "refuse/comply/other %", "masked", "refusal, points", "p (Holm)"]
    columns = columns[: len(body[0])]
    return ["By category", table(columns, body, right=range(2, len(columns)))]


def _category_cells(part: dict[str, Any]) -> list[str]:
    before = _triple(part["before"])
    if "after" not in part:
        return [before]
    change = part["refuse"]
    p_value = "" if change["p_holm"] is None else f"{change['p_holm']:.2g}"
    return [before, _triple(part["after"]), _difference(change["difference"]), p_value]


def _triple(rates: dict[str, Any]) -> str:
    shares = [rates[reading] for reading in READINGS]
    return "/".join(f"{100 * share['value']:.0f}" if share else UNKNOWN for share in shares)


def agreement_table(pairs: Sequence[dict[str, Any]]) -> Table:
    """One line a pair of judges."""
    body = [
        [*pair["judges"], str(pair["n"]), agree_words(pair["agree"]), _kappa(pair["kappa"])] for pair in pairs
    ]
    return table(["judge", "and judge", "n", "agree", "kappa"], body, right=(2, 3, 4))


def agree_words(value: float | None) -> str:
    """The share of equal labels; there is none where neither judge could read any answer."""
    return UNKNOWN if value is None else f"{value:.1%}"


def _kappa(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def utility_table(utility: dict[str, Any]) -> Table:
    """Perplexity, divergence, agreement of the best token."""
    lines = (
        ("perplexity, no mask", "perplexity", ".3f"),
        ("perplexity, masked", "masked_perplexity", ".3f"),
        ("masked / no mask", "ratio", ".3f"),
        ("KL to the unmasked model, nats a token", "kl", ".4f"),
        ("same best token", "agreement", ".1%"),
    )
    body = [[text, *_estimate(utility[name], form)] for text, name, form in lines]
    return table([f"on {utility['n_tokens']} tokens", "value", "95 % interval"], body, right=(1, 2))


def _estimate(estimate: dict[str, Any], form: str) -> list[str]:
    low, high = estimate["interval"]
    return [format(estimate["value"], form), f"{low:{form}} to {high:{form}}"]


def _rates(rates: dict[str, Any]) -> list[str]:
    return [_rate(rates[reading]) for reading in READINGS]


def _changes(row: dict[str, Any]) -> list[str]:
    differences = [_difference(row[reading]["difference"]) for reading in READINGS]
    lost = row["lost_refusals"]
    p_value = "" if row["refuse"]["p_value"] is None else f"{row['refuse']['p_value']:.2g}"
    return [*differences, p_value, str(lost["comply"] + lost["other"]), str(lost["comply"])]


def _rate(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return UNKNOWN
    low, high = estimate["interval"]
    return f"{100 * estimate['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _difference(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return UNKNOWN
    low, high = estimate["interval"]
    return f"{100 * estimate['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
