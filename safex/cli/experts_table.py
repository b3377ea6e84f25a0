"""The most selected experts of each set of a profile, and what the profile holds, as tables."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .options import PHASES
from .output import number, table
from .parser import positive

if TYPE_CHECKING:
    from rich.table import Table

    from safex.profile import Profile

Rows = list[dict[str, Any]]


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Which phase the table shows, and how much of it."""
    parser.add_argument(
        "--phase",
        choices=PHASES,
        default="prompt",
        help="phase of the printed table: prompt = all tokens of the prompt, suffix = those after the user's text, "
        "response = generated ones (default prompt; the file holds all that were counted)",
    )
    parser.add_argument(
        "--top", type=positive, default=10, metavar="N", help="rows of the printed table (default 10)"
    )


def most_selected(profile: Profile, phase: str, top: int) -> dict[str, Rows]:
    """For each set the ``top`` experts by activation: layer, expert, share of the phase's tokens.

    Experts that no token selected are left out; equal ones stand in order of layer and number.
    """
    import numpy as np

    result: dict[str, Rows] = {}
    tokens = tokens_by_set(profile)
    for name in profile.set_names:
        if not tokens[name][phase]:
            result[name] = []
            continue
        activation = profile.activation(name, phase)
        order = np.argsort(-activation, axis=None, kind="stable")[:top]
        places = zip(*np.unravel_index(order, activation.shape), strict=True)
        result[name] = [
            {"layer": profile.layers[layer], "expert": int(expert), "share": float(activation[layer, expert])}
            for layer, expert in places
            if activation[layer, expert]
        ]
    return result


def tokens_by_set(profile: Profile) -> dict[str, dict[str, int]]:
    """Tokens of each phase, and ``prompts``, for each set."""
    import numpy as np

    sets = np.array(profile.sets)
    return {
        name: {"prompts": int((sets == name).sum())}
        | {phase: int(profile.phase(phase).n_tokens[sets == name].sum()) for phase in profile.phases}
        for name in profile.set_names
    }


def experts_heading(phase: str) -> str:
    """The line above the table."""
    return f"Most selected experts (layer:expert) by share of tokens, phase {phase}"


def experts_table(rows: dict[str, Rows]) -> Table:
    """Sets side by side, ``layer:expert`` and its share."""
    columns = [""] + [column for name in rows for column in (name, "share")]
    depth = max((len(experts) for experts in rows.values()), default=0)
    body = [
        [str(i + 1)] + [cell for experts in rows.values() for cell in _cells(experts[i : i + 1])]
        for i in range(depth)
    ]
    return table(columns, body, right=[0, *range(2, len(columns), 2)])


def _cells(row: Rows) -> tuple[str, str]:
    return (f"{row[0]['layer']}:{row[0]['expert']}", f"{row[0]['share']:.1%}") if row else ("", "")


def sets_table(tokens: dict[str, dict[str, int]]) -> Table:
    """Prompts and tokens of each set."""
    phases = [key for key in next(iter(tokens.values())) if key != "prompts"]
    columns = ["set", "prompts", *(f"{phase} tokens" for phase in phases)]
    body = [[name, *(number(value) for value in counts.values())] for name, counts in tokens.items()]
    return table(columns, body, right=range(1, len(columns)))
