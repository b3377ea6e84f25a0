"""A sweep in two or three sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy import stats

from safex.judges.readable import Read

if TYPE_CHECKING:
    from .result import Row, Sweep

CORRECTION_NAMES = {"holm": "Holm", "bh": "Benjamini-Hochberg"}


def conclude(sweep: Sweep) -> str:
    """What was found, and what it doesn't say."""
    parts = [_found(sweep), _strongest(sweep)]
    if sweep.pairs:
        parts.append(_interactions(sweep))
    if len(sweep.rows) > 2 and "gradient" in sweep.rows[0]:
        parts.append(_gradient(sweep))
    parts.append(_unread(sweep))
    parts.append("An effect on the logit of the first tokens is no refusal rate: `eval` measures that.")
    return " ".join(part for part in parts if part)


def _found(sweep: Sweep) -> str:
    lowering, n = [row for row in sweep.rows if row["lowers"]], len(sweep.rows)
    test = f"{CORRECTION_NAMES[sweep.parameters['correction']]} at {sweep.parameters['alpha']:g}"
    if not lowering:
        return f"None of {n} experts, masked alone, lowers the refusal logit on regular prompts ({test})."
    verb = "lowers" if len(lowering) == 1 else "lower"
    text = (
        f"{len(lowering)} of {n} experts, masked alone, {verb} the refusal logit on regular prompts ({test})"
    )
    if "specific" in lowering[0]:
        text += f", {sum(row['specific'] for row in lowering)} of them more than on benign prompts"
    return text + "."


def _strongest(sweep: Sweep) -> str:
    row, base = sweep.rows[0], sweep.baseline["regular"]["logit"]
    if row["effect"]["regular"] >= 0:
        return f"No mask lowers its mean; unmasked it is {base:+.2f}."
    effect = f"{_name(row)}, takes it from {base:+.2f} to {base + row['effect']['regular']:+.2f}"
    low, high = row["interval"]["regular"]
    return (
        f"The strongest, {effect} (effect {row['effect']['regular']:+.2f}, 95 % {low:+.2f} to {high:+.2f})."
    )


def _interactions(sweep: Sweep) -> str:
    passed = sum(pair["p_adjusted"] <= sweep.parameters["alpha"] for pair in sweep.pairs)
    first = sweep.pairs[0]
    return (
        f"{passed} of {len(sweep.pairs)} pairs interact; the strongest, {' and '.join(first['experts'])}, "
        f"by {first['interaction']:+.2f} beyond the sum of the two."
    )


def _gradient(sweep: Sweep) -> str:
    effects = [row["effect"]["regular"] for row in sweep.rows]
    slopes = [-row["gradient"] for row in sweep.rows]
    if len(set(effects)) < 2 or len(set(slopes)) < 2:
        return ""
    rank = float(stats.spearmanr(effects, slopes).statistic)
    return f"What the gradient of the gain predicts for a mask and its effect agree by rank {rank:.2f} (Spearman)."


def _unread(sweep: Sweep) -> str:
    """How many of the answers that the starts were found in could not be read."""
    found = sweep.starts.get("answers", {})
    read = Read.of([name for name, n in found.items() for _ in range(n)])
    if not read.unread:
        return ""
    return (
        f"Of the {read.n} answers that refusals were looked for in {read.unread} could not be read ({read.why}) and "
        "count for neither side."
    )


def _name(row: Row) -> str:
    return f"{row['layer']}:{row['expert']}"
