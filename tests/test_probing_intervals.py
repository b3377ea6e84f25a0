"""How often the intervals of out-of-fold measures hold what they claim to, in simulations with a known truth.

python tests/test_probing_intervals.py     # the table in safex/probing/scores.py

The truth of a case is the mean measure over all its data sets: what probes trained on so many prompts score on average.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from probe_cases import simulated

from safex.experts import Expert
from safex.probing.crossval import make_problem, out_of_fold
from safex.probing.folds import make_folds
from safex.probing.inputs import Outputs
from safex.probing.scores import METRICS, measured
from safex.probing.tasks import TASKS
from safex.roster import Roster

STRENGTHS = (0.1, 1.0, 10.0)
CASES = {  # triples of twins, signal, width, share of variance that twins have in common, task
    "60, no signal": (20, 0.0, 20, 0.5, "harmful"),
    "60, weak signal": (20, 1.0, 20, 0.5, "harmful"),
    "40, strong signal": (20, 3.0, 20, 0.0, "regular-benign"),
    "150, weak signal": (50, 1.0, 20, 0.5, "harmful"),
    "150, weak signal, wide": (50, 1.5, 300, 0.3, "harmful"),
    "100, strong signal": (50, 3.0, 20, 0.8, "regular-benign"),
    "100, close twins": (50, 1.0, 20, 0.9, "regular-jailbreak"),
}


def coverage(case: str, draws: int, repeats: int = 1) -> dict[str, tuple[float, float]]:
    """For each measure the truth, and the share of data sets whose interval holds it."""
    n, signal, width, twins, name = CASES[case]
    found: dict[str, list[dict[str, Any]]] = {metric: [] for metric in METRICS}
    roster = Roster({"id": [Expert(0, 0)]})
    for seed in range(draws):
        features = simulated(n, signal, roster=roster, width=width, twins=twins, seed=seed)
        folds = make_folds(features, [TASKS[name]], 5, repeats, None, seed)
        problem = make_problem(TASKS[name], np.array(features.sets), folds, STRENGTHS, 0)
        row = measured(out_of_fold(Outputs(features, features.experts), problem, repeats).real, problem)
        for metric in METRICS:
            if row[metric] is not None:
                found[metric].append(row[metric])
    held = {}
    for metric, rows in found.items():
        truth = float(np.mean([row["value"] for row in rows]))
        held[metric] = (
            truth,
            float(np.mean([low <= truth <= high for low, high in (row["interval"] for row in rows)])),
        )
    return held


@pytest.mark.parametrize("case", ["60, weak signal", "40, strong signal"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(case: str) -> None:
    held = coverage(case, 50)
    for metric in ("accuracy", "balanced_accuracy", "precision", "f1", "auc"):
        assert held[metric][1] >= 0.84, metric


def measure(draws: int) -> None:
    """Print a line a case and number of repeats."""
    print(f"{'prompts':<26}{'repeats':>8}" + "".join(f"{name:>20}" for name in METRICS))
    for case, repeats in [*((case, 1) for case in CASES), ("150, weak signal", 5)]:
        held = coverage(case, draws, repeats)
        cells = (f"{truth:.3f} {share:.3f}" for truth, share in held.values())
        print(f"{case:<26}{repeats:>8}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
