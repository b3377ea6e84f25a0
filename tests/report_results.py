"""Evaluations and sweeps for tests of the report: drawn answers and effects, counted by the package's own code."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from report_files import FINGERPRINT

from safex.attribution import Sweep
from safex.attribution.conclusion import conclude as conclude_sweep
from safex.evaluation import Evaluation
from safex.evaluation.conclusion import conclude, evidence
from safex.evaluation.counting import count
from safex.judges import agreements
from safex.responses import Record

MASK = ["1:3", "3:2", "5:5"]
KINDS = {"uniform": 19, "layer": 19, "active": 1}
PROMPTS = 24
REFUSED = {"regular": 0.9, "jailbreak": 0.6, "benign": 0.1}  # share without a mask
SESSION = {
    "session.n_ctx": 2048,
    "session.n_ubatch": 256,
    "session.kv_type": "f32",
    "session.flash_attn": "off",
}


def make_records(
    masks: dict[str, float],
    judges: tuple[str, ...] = ("keyword",),
    sets: tuple[str, ...] = tuple(REFUSED),
    categories: tuple[str | None, ...] = ("fraud", "theft"),
    seed: int = 0,
) -> list[Record]:
    """Answers of each set under each mask, whose number is the share of refusals that are left."""
    rng = random.Random(seed)

    def label(share: float) -> str:
        return "refuse" if rng.random() < share else rng.choice(["comply", "comply", "other", "other"])

    return [
        Record(
            f"{name}-{i}",
            name,
            f"prompt {i}",
            "text",
            category=categories[i % len(categories)],
            pair=f"pair-{i}" if name != "benign" else None,
            mask=mask,
            verdicts={judge: {"label": label(left * REFUSED.get(name, 0.5))} for judge in judges},
        )
        for mask, left in masks.items()
        for name in sets
        for i in range(PROMPTS)
        if mask in ("none", "mask") or name == sets[0]
    ]


def make_evaluation(
    judges: tuple[str, ...] = ("keyword",),
    left: float | None = 0.2,
    kinds: dict[str, int] | None = None,
    **parts: Any,
) -> Evaluation:
    """``left`` of the refusals stay with the mask; None: no mask was given."""
    kinds = (KINDS if kinds is None else kinds) if left is not None else {}
    controls = {kind: [f"control-{kind}-{i}" for i in range(1, n + 1)] for kind, n in kinds.items()}
    names = [name for of_kind in controls.values() for name in of_kind]
    records = make_records(
        {"none": 1.0, **({} if left is None else {"mask": left}), **dict.fromkeys(names, 0.95)}, judges
    )
    results = {judge: _judged(records, judge, controls, 0 if left is None else len(MASK)) for judge in judges}
    given: dict[str, Any] = {
        "conclusion": results[judges[0]]["conclusion"],
        "evidence": results[judges[0]]["evidence"],
        "model": {"model.fingerprint": FINGERPRINT, "model.name": "Synthetic", **SESSION},
        "parameters": {
            **{
                "mode": "reroute",
                "gain": 0.0,
                "phase": "both",
                "max_new": 32,
                "n_samples": 1,
                "temperature": 0.0,
            },
            **{
                "top_p": 1.0,
                "seed": 7,
                "control_sets": ["regular"],
                "prompts": dict.fromkeys(REFUSED, PROMPTS),
            },
        },
        "mask": None if left is None else {"experts": MASK, "activation": 1.25},
        "controls": [
            {"mask": name, "kind": kind, "experts": ["1:0"], "activation": 0.5 + i / 100}
            for kind, of_kind in controls.items()
            for i, name in enumerate(of_kind)
        ],
        "judges": list(judges),
        "results": results,
        "agreement": [
            {**vars(pair), "judges": list(pair.judges)} for pair in agreements([r.labels for r in records])
        ],
        "utility": None if left is None else utility(),
        "responses": "made.responses.jsonl",
    }
    return Evaluation(**{**given, **parts})


def _judged(
    records: list[Record], judge: str, controls: dict[str, list[str]], n_experts: int
) -> dict[str, Any]:
    found = count(records, judge, controls)
    return found | {"conclusion": conclude(found, n_experts), "evidence": evidence(found)}


def utility() -> dict[str, Any]:
    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [0.9 * value, min(1.1 * value, 99.0)]}

    values = {
        "kl": 0.0012345,
        "perplexity": 8.25,
        "masked_perplexity": 9.0,
        "ratio": 1.0909,
        "agreement": 0.9375,
    }
    return {"n_tokens": 1000, "n_windows": 8, **{name: estimate(value) for name, value in values.items()}}


def make_sweep(
    shape: tuple[int, int] = (3, 8),
    experts: list[tuple[int, int]] | None = None,
    sets: tuple[str, ...] = tuple(REFUSED),
    gradient: bool = True,
    pairs: int = 3,
    seed: int = 0,
    **parts: Any,
) -> Sweep:
    """Drawn effects of the experts (row of the layer, number), by default all; most refusal-lowering first."""
    rng = np.random.default_rng(seed)
    layers = [2 * i + 1 for i in range(shape[0])]
    chosen = experts or [(i, e) for i in range(shape[0]) for e in range(shape[1])]
    rows = [_row(layers[i], e, sets, gradient, rng) for i, e in chosen]
    rows.sort(key=lambda row: row["effect"][sets[0]])
    for row in rows[:1]:
        row |= {"lowers": True, "p_adjusted": 0.004, "specific": row["specificity_interval"][1] < 0}
    first = [f"{row['layer']}:{row['expert']}" for row in rows[: pairs + 1]]
    start = {"tokens": [43], "text": "I can't"}
    given: dict[str, Any] = {
        "pairs": [_pair(first[0], other, rng) for other in first[1 : pairs + 1]],
        "baseline": {
            name: {"prompts": PROMPTS, "logit": 4.5 - i, "interval": [3.5 - i, 5.0 - i]}
            for i, name in enumerate(sets)
        },
        "starts": {
            "refuse": [start],
            "comply": [{"tokens": [5, 6], "text": "Sure, here"}],
            "coverage": {"refuse": 0.95, "comply": 1.0},
            "answers": {"refuse": 20, "comply": 28},
        },
        "model": {
            "fingerprint": FINGERPRINT,
            "name": "Synthetic",
            "layers": layers,
            "n_experts": shape[1],
            **SESSION,
        },
        "parameters": {
            **{"mode": "zero", "gain": 0.0, "pairs": pairs and 4, "step": 0.2, "seed": 5, "bootstrap": 200},
            **{"correction": "bh", "alpha": 0.05, "neighbours": 0, "computed": 100, "skipped": 10},
        },
    }
    made = Sweep(rows, **{**given, **parts})
    made.conclusion = made.conclusion or conclude_sweep(made)
    return made


def _row(
    layer: int, expert: int, sets: tuple[str, ...], gradient: bool, rng: np.random.Generator
) -> dict[str, Any]:
    effect = {name: float(rng.normal(0, 0.5)) for name in sets}
    specificity = effect[sets[0]] - effect[sets[-1]]
    slope = {"gradient": -effect[sets[0]], "gradient_interval": [-1.0, 1.0], "gradient_change": 0.015625}
    return {
        **{"layer": layer, "expert": expert, "role": "listed", "effect": effect},
        "interval": {name: [value - 0.25, value + 0.125] for name, value in effect.items()},
        **{"used": 0.5, "p_value": 0.01, "p_adjusted": 0.2, "lowers": False},
        **{
            "specificity": specificity,
            "specificity_interval": [specificity - 0.5, specificity + 0.5],
            "specific": False,
        },
        **(slope if gradient else {}),
    }


def _pair(first: str, second: str, rng: np.random.Generator) -> dict[str, Any]:
    extra = float(rng.normal())
    interval = [extra - 0.5, extra + 0.5]
    p = {"p_value": 0.01, "p_adjusted": 0.03}
    return {
        "experts": [first, second],
        "effect": -1.5,
        "interaction": extra,
        "interaction_interval": interval,
        **p,
    }
