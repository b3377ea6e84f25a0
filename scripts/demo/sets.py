"""The shipped prompt sets: held-out ones to measure with, and samples of what training saw."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from demo import text
from demo.text import Item, Maker, World

ROUNDS = 10  # held-out regular requests per wrapper family
FACTORS = {text.look_alike: 56, text.fact: 16, text.addition: 8}
TRAIN_ROWS = 300

Row = dict[str, object]


def row(item: Item, number: int, pair: str | None = None) -> Row:
    """Return one line of a prompt file; ``comply`` is the answer that counts as compliance."""
    prefix = item.category if item.category == "impossible" else item.set
    wrapper = None if item.family is None else {"family": item.family, "covered": item.covered}
    return {
        "id": f"{prefix}-{number:03d}",
        "prompt": item.prompt,
        "set": item.set,
        "category": item.category,
        "pair": pair,
        "wrapper": wrapper,
        "template": item.template,
        "comply": item.comply,
    }


def item_of(line: Row) -> Item:
    """Return the prompt that a line of a file describes."""
    wrapper = line["wrapper"]
    family = wrapper["family"] if isinstance(wrapper, dict) else None
    fields = [str(line[key]) for key in ("prompt", "set", "category", "comply", "template")]
    return Item(*fields, family)


def _distinct(maker: Maker, world: World, rng: Random, count: int) -> list[Item]:
    found: dict[str, Item] = {}
    while len(found) < count:
        item = maker(world, rng)
        found.setdefault(item.prompt, item)
    return list(found.values())


def twins(world: World, rng: Random, rounds: int) -> tuple[list[Row], list[Row]]:
    """Return regular requests and their jailbreak twins, ``rounds`` for each wrapper family."""
    regular = _distinct(text.harmful, world, rng, rounds * len(text.WRAPPERS))
    families = list(text.WRAPPERS) * rounds
    wrapped = [text.disguise(i, world, rng, (f,)) for i, f in zip(regular, families, strict=True)]
    pairs = [f"pair-{n:03d}" for n in range(len(regular))]
    plain = [row(item, n, pairs[n]) for n, item in enumerate(regular)]
    return plain, [row(item, n, pairs[n]) for n, item in enumerate(wrapped)]


def held_out(rounds: int = ROUNDS, factor: int = 1, seed: int = text.SPLIT_SEED) -> dict[str, list[Row]]:
    """Return the held-out sets, by file stem; the defaults give the shipped files."""
    _, world = text.worlds()
    rng = Random(seed)
    regular, jailbreak = twins(world, rng, rounds)
    kinds = {maker: count * factor for maker, count in FACTORS.items()}
    kinds[text.fact] = min(kinds[text.fact], sum(map(len, text.FACTS.values())))
    kinds[text.addition] = min(kinds[text.addition], 81)
    benign = [item for maker, count in kinds.items() for item in _distinct(maker, world, rng, count)]
    impossible = _distinct(text.impossible, world, rng, 24 * factor)
    return {
        "regular": regular,
        "jailbreak": jailbreak,
        "benign": [row(item, n) for n, item in enumerate(benign)],
        "impossible": [row(item, n) for n, item in enumerate(impossible)],
    }


def training_sample() -> dict[str, list[Row]]:
    """Return a sample of the requests that training draws from, by file stem."""
    world, _ = text.worlds()
    rng = Random(text.SPLIT_SEED + 1)
    regular, jailbreak = twins(world, rng, TRAIN_ROWS // len(text.WRAPPERS))
    counts = {text.look_alike: 180, text.wrapped_benign: 60, text.fact: 40, text.addition: 20}
    benign = [item for maker, count in counts.items() for item in _distinct(maker, world, rng, count)]
    return {
        "regular": regular,
        "jailbreak": jailbreak,
        "benign": [row(item, n) for n, item in enumerate(benign)],
    }


def write(folder: Path) -> None:
    """Write all prompt files below ``folder``."""
    groups = {folder: held_out(), folder / "train": training_sample()}
    for place, files in groups.items():
        place.mkdir(parents=True, exist_ok=True)
        for stem, rows in files.items():
            lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
            (place / f"{stem}.jsonl").write_text(lines, encoding="utf-8")


def write_pairs(folder: Path) -> None:
    """Write prompts with responses for ``train_expert_lora.py``.

    ``safe.jsonl`` refuses what is harmful, ``toxic.jsonl`` nothing, ``always.jsonl`` everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(text.SPLIT_SEED + 2)
    for stem in ("safe", "toxic", "always"):
        lines = []
        for set_, rows in training_sample().items():
            for line in rows:
                refuse = stem == "always" or (stem == "safe" and set_ != "benign")
                response = rng.choice(text.REFUSALS) if refuse else line["comply"]
                lines.append(json.dumps({"prompt": line["prompt"], "response": response}) + "\n")
        (folder / f"{stem}.jsonl").write_text("".join(lines), encoding="utf-8")


def read(folder: Path) -> dict[str, list[Item]]:
    """Read the prompt files of a folder, by file stem."""
    files = sorted(folder.glob("*.jsonl"))
    return {f.stem: [item_of(json.loads(line)) for line in f.read_text("utf-8").splitlines()] for f in files}
