"""What a reader of an evaluation must know of its answers, in words: limits reached, loops, texts that recur."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from safex.evaluation.plan import MASK, NONE, Plan, Settings
from safex.generation import split_reasoning
from safex.judges.content import problem, words_of
from safex.judges.text import plain
from safex.model import Model
from safex.responses import Record

Row: TypeAlias = dict[str, Any]

CONTROLS = "controls"
SIDES = {NONE: "without a mask", MASK: "with the mask", CONTROLS: "under control masks"}
SAME_PROMPTS = 5  # prompts with one answer, fewer may be chance,
SAME_SHARE = 0.2  # and their share of all, from which on the answer is worth a note
SHOWN = 60  # letters of an answer in a note
LIMIT = "length"  # how an answer ends that reaches the token limit


def at_limit(records: Iterable[Record]) -> list[Row]:
    """A row for each set and mask ("none", "mask", "controls"): how many of its answers reached the token limit."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        found[record.set, _side(record.mask)][record.finish] += 1
    return [
        {"set": set_, "mask": mask, "n": ends.total(), "at_limit": ends[LIMIT]}
        for (set_, mask), ends in found.items()
    ]


def limit_line(rows: Sequence[Mapping[str, Any]], max_new: int) -> str:
    """How many answers reached the limit, by mask, in one line.

    >>> limit_line([{"set": "regular", "mask": "none", "n": 20, "at_limit": 3}], 64)
    'Answers that reached the limit of 64 tokens: 3 of 20 without a mask'
    """
    sides = [
        f"{_sum(rows, side, 'at_limit'):,} of {_sum(rows, side, 'n'):,} {words}"
        for side, words in SIDES.items()
        if _sum(rows, side, "n")
    ]
    return f"Answers that reached the limit of {max_new} token{'s' * (max_new > 1)}: {', '.join(sides)}"


def _sum(rows: Sequence[Mapping[str, Any]], side: str, name: str) -> int:
    return sum(row[name] for row in rows if row["mask"] == side)


def _side(mask: str) -> str:
    return mask if mask in (NONE, MASK) else CONTROLS


def answer_notes(records: Sequence[Record], max_new: int, sides: Mapping[str, str] = SIDES) -> list[str]:
    """Notes on the answers under each mask of ``sides``, which gives its words by its name."""
    by_side = {words: [r for r in records if r.mask == mask] for mask, words in sides.items()}
    loops = [note for words, of_side in by_side.items() for note in _loops(of_side, words, max_new)]
    return [*_same_texts(by_side), *loops]


def _same_texts(by_side: Mapping[str, Sequence[Record]]) -> list[str]:
    """A note for each answer that many prompts share, the most frequent one under a mask."""
    found: dict[str, list[str]] = {}
    for words, records in by_side.items():
        prompts: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for record in records:
            if answer := " ".join(split_reasoning(record.response)[1].split()):
                prompts[answer].add((record.set, record.id))
        text, same = max(prompts.items(), key=lambda item: len(item[1]), default=("", set()))
        n, every = len(same), len({(record.set, record.id) for record in records})
        if n >= max(SAME_PROMPTS, SAME_SHARE * every):
            found.setdefault(text, []).append(f"{n} of {every} prompts {words}")
    return [
        f"the same text answers {' and '.join(counts)}: {_short(text)!r}" for text, counts in found.items()
    ]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _loops(records: Sequence[Record], words: str, max_new: int) -> list[str]:
    """Answers whose reasoning says the same again and again until the limit."""
    n = sum(_is_loop(record) for record in records)
    if not n:
        return []
    verb = "repeats itself" if n == 1 else "repeat themselves"
    return [
        f"{n} of {len(records)} answers {words} {verb} in the reasoning until the limit of {max_new} tokens: "
        "a higher limit would not end them"
    ]


def _is_loop(record: Record) -> bool:
    reasoning, answer = split_reasoning(record.response)
    if record.finish != LIMIT or answer.strip() or not reasoning:
        return False
    text = plain(reasoning)
    return (problem(text, words_of(text)) or "").startswith("repeats itself")


def unmet_mask(model: Model, plan: Plan, settings: Settings, records: Sequence[Record]) -> list[str]:
    """A note where no token of prompts and answers selects any of the masked experts.

    Selections are counted only where no answer differs from the one without the mask, in one more run of the prompts.
    """
    if not plan.mask or settings.mode == "force" or (plan.touched(MASK, model.layers) or 0) > 0:
        return []
    texts = {
        mask: [(r.set, r.id, r.sample, r.response) for r in records if r.mask == mask]
        for mask in (NONE, MASK)
    }
    if texts[NONE] != texts[MASK] or _is_met(model, plan, settings):
        return []
    where = "these prompts" if settings.temperature else "these prompts and their answers"
    return [
        f"no token of {where} selects any of the masked experts: the mask was never met and changes nothing"
    ]


def _is_met(model: Model, plan: Plan, settings: Settings) -> bool:
    """Whether the tokens that the mask acts on select one of its experts; sampled answers are not counted."""
    greedy = settings.temperature == 0 and settings.phase != "prompt"
    profile = model.profile(plan.prompts, response=greedy, max_new=settings.max_new)
    wanted = {"prompt": ("prompt",), "response": ("response",)}.get(settings.phase, ("prompt", "response"))
    row = {layer: place for place, layer in enumerate(model.layers)}
    return any(
        profile.phase(phase).counts[:, row[expert.layer], expert.expert].any()
        for phase in wanted
        if phase in profile.phases
        for expert in plan.mask
    )
