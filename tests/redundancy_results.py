"""Redundancy curves for tests: drawn verdicts, counted by the package's own code."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from report_files import FINGERPRINT
from report_results import SESSION, utility

from safex.experts import Expert
from safex.prompts import PromptSet
from safex.redundancy_curve import Redundancy
from safex.redundancy_curve.conclusion import conclude, evidence
from safex.redundancy_curve.counting import count
from safex.redundancy_curve.orders import Activity, control_orders
from safex.redundancy_curve.plan import Ladder
from safex.responses import Record

LAYERS, N_EXPERTS = [1, 3, 5], 8
ORDER = [Expert(3, 0), Expert(1, 3), Expert(3, 5), Expert(5, 2), Expert(1, 0)]
SIZES = [1, 2, 5]
KINDS = ("uniform", "active", "shuffled")


def toy_activity(layers: list[int] = LAYERS, n_experts: int = N_EXPERTS) -> Activity:
    return Activity(layers, np.random.default_rng(5).random((len(layers), n_experts)))


def drawn_answers(
    seed: int = 0, n: int = 12, draws: int = 3, left: float = 0.9
) -> tuple[list[Record], Ladder]:
    """Verdicts on n regular and n benign prompts; each masked expert of the order leaves ``left`` of the refusals."""
    rng = random.Random(seed)
    drawn, notes = control_orders(ORDER, N_EXPERTS, toy_activity(), KINDS, draws, seed)
    ladder = Ladder(PromptSet([]), ORDER, SIZES, "listed", toy_activity(), drawn, notes)

    def label(mask: str) -> str:
        share = 0.95 if mask.startswith("control") else left ** int("0" + mask.partition("-")[2])
        return "refuse" if rng.random() < 0.95 * share else rng.choice(["comply", "comply", "other"])

    records = [
        Record(str(i), name, f"p{i}", "r", mask=mask, verdicts={"j": {"label": label(mask)}})
        for mask in ladder.masks
        for name in ("regular", "benign")
        for i in range(n)
        if name == "regular" or not mask.startswith("control")
    ]
    return records, ladder


def counted(records: list[Record], ladder: Ladder) -> Redundancy:
    """Rates, half-point, areas and controls of the records."""
    parts = count(records, "j", ladder, 300, 0)
    return Redundancy("", experts=list(map(str, ladder.order)), sizes=[0, *ladder.sizes], **parts)


def make_redundancy(
    n: int = 24, draws: int = 19, left: float = 0.4, seed: int = 0, **parts: Any
) -> Redundancy:
    """A whole result, as from a file."""
    found = counted(*drawn_answers(seed, n, draws, left))
    found.model = {"model.fingerprint": FINGERPRINT, "model.name": "Synthetic", **SESSION}
    found.parameters = {
        **{"order": "listed", "mode": "zero", "gain": 0.0, "phase": "both", "max_new": 32, "seed": 7},
        **{"judge": "keyword", "draws": draws, "bootstrap": 300, "prompts": {"regular": n, "benign": n}},
    }
    found.activation = [0.25 * size for size in found.sizes]
    found.utility = [{"size": size, **utility()} for size in SIZES]
    found.responses, found.notes = "made.responses.jsonl", ["left out: something"]
    found.conclusion, found.evidence = conclude(found), evidence(found)
    for name, value in parts.items():
        setattr(found, name, value)
    return found
