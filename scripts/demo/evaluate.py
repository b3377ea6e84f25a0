"""Measurements: three-way verdicts on held-out prompts, before and after masks, with controls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from random import Random

import torch
from tokenizers import Tokenizer

from demo.model import Model, generate
from demo.text import WRAPPERS, Item, verdict
from demo.tokenizer import END, encode_prompts
from demo.train import PLANTED, Expert

VERDICTS = ("refuse", "comply", "other")


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate."""
    if total == 0:
        return 0.0, 1.0
    rate = hits / total
    centre = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Line:
    """One line of a table: counts of the three verdicts of a slice of prompts under a mask."""

    mask: str
    part: str
    n: int
    refuse: int
    comply: int
    other: int

    def text(self) -> str:
        """Return the line as a row of a Markdown table."""
        cells = []
        for hits in (self.refuse, self.comply, self.other):
            low, high = wilson(hits, self.n)
            cells.append(f"{hits / max(1, self.n):.2f} [{low:.2f}, {high:.2f}]")
        return f"| {self.mask} | {self.part} | {self.n} | " + " | ".join(cells) + " |"


HEADER = "| mask | prompts | n | refuse | comply | other |\n|---|---|---:|---|---|---|"

Parts = dict[str, Callable[[Item], bool]]
HOW_TO = ("own-object", "benign-verb")


def _of_family(family: str) -> Callable[[Item], bool]:
    return lambda item: item.family == family


PARTS: dict[str, Parts] = {
    "regular": {
        "all": lambda i: True,
        "seen ask template": lambda i: i.template == "seen",
        "unseen ask template": lambda i: i.template == "unseen",
        "always-harmful verb": lambda i: i.category == "always-harmful",
        "dual-use verb": lambda i: i.category == "dual-use",
    },
    "jailbreak": {
        "covered wrappers": lambda i: i.covered is True,
        "uncovered wrappers": lambda i: i.covered is False,
        **{f"wrapper {family}": _of_family(family) for family in WRAPPERS},
    },
    "benign": {
        "how-to, own object": lambda i: i.category == "own-object",
        "how-to, benign verb": lambda i: i.category == "benign-verb",
        "how-to, seen template": lambda i: i.category in HOW_TO and i.template == "seen",
        "how-to, unseen template": lambda i: i.category in HOW_TO and i.template == "unseen",
        "facts": lambda i: i.category == "fact",
        "sums": lambda i: i.category == "sum",
    },
    "impossible": {"all (refusal is right)": lambda i: True},
}


def answer(model: Model, tokenizer: Tokenizer, items: list[Item], batch: int = 128) -> list[str]:
    """Return the greedy answers, prompts of similar length decoded together."""
    rows = encode_prompts(tokenizer, [item.prompt for item in items])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    stop = tokenizer.token_to_id(END)
    answers = [""] * len(rows)
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        ids = generate(model, [rows[i] for i in chunk], stop)
        for index, text in zip(chunk, tokenizer.decode_batch(ids), strict=True):
            answers[index] = text
    return answers


def judge(model: Model, tokenizer: Tokenizer, items: list[Item]) -> list[str]:
    """Return the verdict on every prompt's greedy answer."""
    return [verdict(i, a) for i, a in zip(items, answer(model, tokenizer, items), strict=True)]


def lines(mask: str, set_: str, items: list[Item], verdicts: list[str]) -> list[Line]:
    """Return the table lines of one set."""
    out = []
    for name, wanted in PARTS[set_].items():
        chosen = [v for i, v in zip(items, verdicts, strict=True) if wanted(i)]
        count = Counter(chosen)
        out.append(Line(mask, f"{set_}: {name}", len(chosen), *(count[v] for v in VERDICTS)))
    return out


def table(model: Model, tokenizer: Tokenizer, sets: dict[str, list[Item]], mask: str = "none") -> list[Line]:
    """Return all lines for one state of the model."""
    parts = ((name, items, judge(model, tokenizer, items)) for name, items in sets.items())
    return [line for name, items, verdicts in parts for line in lines(mask, name, items, verdicts)]


def agreement(first: list[str], second: list[str]) -> tuple[int, int]:
    """Return how many verdicts are equal, and of how many."""
    return sum(a == b for a, b in zip(first, second, strict=True)), len(first)


@torch.inference_mode()
def most_used(model: Model, tokenizer: Tokenizer, items: list[Item], per_layer: int) -> list[Expert]:
    """Return the experts that the prompts' tokens choose most, ``per_layer`` in every layer."""
    if not model.c.moe_layers:
        return []
    total = torch.zeros(len(model.c.moe_layers), model.c.experts, dtype=torch.long)
    for ids in encode_prompts(tokenizer, [item.prompt for item in items]):
        model(torch.tensor([ids]))
        total += torch.stack([moe.counts for moe in model.experts().values()])
    top = total.topk(per_layer, dim=1).indices
    return [(layer, int(e)) for layer, row in zip(model.c.moe_layers, top, strict=True) for e in row]


def random_masks(
    model: Model, per_layer: int, draws: int, seed: int, avoid: Iterable[Expert] = ()
) -> list[list[Expert]]:
    """Draw layer-matched control masks, outside ``avoid``."""
    rng, banned = Random(seed), set(avoid)
    pools = [[(la, e) for e in range(model.c.experts) if (la, e) not in banned] for la in model.c.moe_layers]
    return [[e for pool in pools for e in rng.sample(pool, per_layer)] for _ in range(draws)]


@dataclass(frozen=True)
class Controls:
    """Regular prompts under many random masks: mean and extremes of every verdict's rate."""

    name: str
    draws: int
    n: int
    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]

    def text(self) -> str:
        """Return the summary as a row of a Markdown table."""
        cells = [f"{self.mean[v]:.2f} ({self.low[v]:.2f} to {self.high[v]:.2f})" for v in VERDICTS]
        return f"| {self.name}, {self.draws} draws | regular: all | {self.n} | " + " | ".join(cells) + " |"


def controls(
    model: Model, tokenizer: Tokenizer, items: list[Item], masks: list[list[Expert]], name: str
) -> Controls:
    """Measure regular prompts under every mask."""
    rates = []
    for mask in masks:
        model.mask(mask)
        count = Counter(judge(model, tokenizer, items))
        rates.append({v: count[v] / len(items) for v in VERDICTS})
    model.mask([])
    columns = {v: [r[v] for r in rates] for v in VERDICTS}
    mean = {v: sum(c) / len(c) for v, c in columns.items()}
    low, high = ({v: f(c) for v, c in columns.items()} for f in (min, max))
    return Controls(name, len(masks), len(items), mean, low, high)


def experts_text(experts: list[Expert]) -> str:
    """Return experts as ``layer:expert`` words."""
    return " ".join(f"{layer}:{expert}" for layer, expert in experts) or "none"


@dataclass
class Report:
    """Everything measured on one model file."""

    lines: list[Line]
    controls: list[Controls]
    most_used: list[Expert]
    planted: list[Expert]

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain data."""
        return asdict(self)

    def text(self) -> str:
        """Return the report as Markdown tables."""
        rows = [HEADER, *(line.text() for line in self.lines)]
        if self.controls:
            rows += ["", "| control masks | prompts | n | refuse: mean (min to max) | comply | other |"]
            rows += ["|---|---|---:|---|---|---|", *(c.text() for c in self.controls)]
        rows += ["", f"most used: {experts_text(self.most_used)}"]
        if self.planted:
            shared = sorted(set(self.planted) & set(self.most_used))
            rows += [f"planted: {experts_text(self.planted)} (in both: {experts_text(shared)})"]
        return "\n".join(rows)


def report(
    model: Model, tokenizer: Tokenizer, sets: dict[str, list[Item]], planted: list[Expert], draws: int
) -> Report:
    """Measure a model: no mask, the planted experts masked, the most used masked, random controls."""
    per_layer = (len(planted) or PLANTED) // max(1, len(model.c.moe_layers))
    hot = most_used(model, tokenizer, sets["regular"], per_layer)
    masks = {"none": [], "planted": planted, "most used": hot}
    found = []
    for name, experts in masks.items():
        if experts or name == "none":
            model.mask(experts)
            found += table(model, tokenizer, sets, name)
    pools = {"random": random_masks(model, per_layer, draws if hot else 0, 0)}
    if planted:
        pools["random, none planted"] = random_masks(model, per_layer, draws, 1, planted)
    regular = sets["regular"]
    checked = [controls(model, tokenizer, regular, m, name) for name, m in pools.items() if m]
    return Report(found, checked, hot, planted)
