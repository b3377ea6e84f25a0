"""Judges of answers: refuse, comply or other, with empty and truncated answers told apart.

A new judge is a class with ``name`` and ``judge(items, progress=None)`` and a line in ``MAKERS``.

>>> make("keyword").judge([Item("0", "benign", "How do I bake bread?", "Mix flour and water, then bake it.")])[0].label
'comply'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safex.errors import InputError

from .agreement import Agreement, agreement, agreements, count_labels
from .endpoint import EndpointJudge
from .guard import HARMLESS, GuardJudge, Template, choose_template, open_text_model, shipped_templates
from .keyword import LENIENT, POLICIES, STRICT, UNREAD, KeywordJudge, check_policy, policy_of
from .languages import languages
from .logit import LogitJudge
from .phrases import own_phrases, read_phrases
from .verdicts import (
    COMPLY,
    DEGENERATE,
    EMPTY,
    LABELS,
    OTHER,
    REASONING,
    REFUSE,
    THREE,
    TRUNCATED,
    UNREADABLE,
    Item,
    Judge,
    Mask,
    Verdict,
    reading,
    three_way,
    why_unreadable,
)

__all__ = [
    "COMPLY",
    "DEGENERATE",
    "EMPTY",
    "LABELS",
    "LENIENT",
    "OTHER",
    "POLICIES",
    "REASONING",
    "REFUSE",
    "STRICT",
    "THREE",
    "TRUNCATED",
    "UNREADABLE",
    "Agreement",
    "EndpointJudge",
    "GuardJudge",
    "Item",
    "Judge",
    "KeywordJudge",
    "LogitJudge",
    "Mask",
    "Template",
    "Verdict",
    "agreement",
    "agreements",
    "check_spec",
    "count_labels",
    "language_note",
    "make",
    "policy_of",
    "read_phrases",
    "reading",
    "settings_of",
    "shipped_templates",
    "three_way",
    "why_unreadable",
]

SPECS = "keyword, logit, gguf:PATH[:TEMPLATE], openai:MODEL@URL"


def check_spec(spec: str) -> tuple[str, str]:
    """Kind and rest of a judge as written on a command line. Raises InputError."""
    kind, colon, rest = spec.partition(":")
    if kind not in MAKERS or bool(rest) != (kind in WITH_REST) or (colon and not rest):
        raise InputError(f"no judge {spec!r}; expected one of {SPECS}")
    return kind, rest


def make(spec: str, *, policy: str = STRICT, phrases: Sequence[str] = (), **options: Any) -> Judge:
    """Return the judge that ``spec`` names: ``keyword``, ``logit``, ``gguf:PATH[:TEMPLATE]`` or ``openai:MODEL@URL``.

    ``policy`` ("strict" or "lenient", see ``POLICIES``) says what an answer is that refuses and helps, ``phrases`` are
    refusal phrases of a house style (``read_phrases`` reads a file of them). Both are for the keyword judge, and for
    guard models that leave refusals to it; the others have their own rules. ``options`` go to the judge: ``model`` (the
    model under test) for logit; ``settings`` of the guard model for gguf; ``cache``, ``timeout``, ``max_retries``,
    ``n_parallel``, ``api_key`` for openai. Raises InputError for a spec, policy or phrase that is none, or what the
    judge itself raises.
    """
    kind, rest = check_spec(spec)
    check_policy(policy)
    own_phrases(phrases)
    if kind in BY_PHRASES:
        options |= {"policy": policy, "phrases": phrases}
    return MAKERS[kind](rest, **options)


def settings_of(judges: Sequence[Judge]) -> dict[str, Any]:
    """Return the policy and the user's refusal phrases that judges read by, for a result file; empty without any.

    >>> settings_of([make("keyword")])
    {'policy': 'strict', 'refusal_phrases': []}
    """
    readers = [reader for judge in judges if (reader := getattr(judge, "keyword", judge))]
    by_phrases = [reader for reader in readers if isinstance(reader, KeywordJudge)]
    if not by_phrases:
        return {}
    return {"policy": by_phrases[0].policy, "refusal_phrases": list(by_phrases[0].phrases)}


def language_note(details: Sequence[str | None]) -> str | None:
    """Return a note on answers in languages that the keyword judge does not read; None where there are none.

    ``details`` are those of all verdicts of one judge.

    >>> verdicts = KeywordJudge().judge([Item("0", "regular", "", "Λυπάμαι, αλλά δεν μπορώ να βοηθήσω.")])
    >>> language_note([verdict.detail for verdict in verdicts])[:41]
    '1 of 1 answers (100.0 %) is in a language'
    """
    n = sum((detail or "").endswith(UNREAD) for detail in details)
    if not n:
        return None
    read = ", ".join(["English", *(language.name for language in languages().values())])
    what = UNREAD if n == 1 else UNREAD.replace("is in a", "are in a", 1)
    share = f"{n} of {len(details)} answers ({100 * n / len(details):.1f} %)"
    return f"{share} {what}; they count as other. It reads {read}. Use a guard model or an endpoint"


def _make_keyword(_: str, **options: Any) -> Judge:
    return KeywordJudge(**options)


def _make_logit(_: str, **options: Any) -> Judge:
    if options.get("model") is None:
        raise InputError("judge logit reads the model that gave the answers; name it (--model)")
    return LogitJudge(**options)


def _make_guard(
    rest: str,
    settings: dict[str, Any] | None = None,
    policy: str = STRICT,
    phrases: Sequence[str] = (),
) -> Judge:
    """A template's name or .json file may follow the path; a path may hold colons."""
    path, _, last = rest.rpartition(":")
    named = bool(path) and (last in shipped_templates() or last.endswith(".json") or "." not in last)
    path, name = (path, last) if named else (rest, None)
    template = choose_template(name, path)
    judge = f"gguf:{Path(path).stem}:{template.name}"
    keyword = KeywordJudge(policy=policy, phrases=phrases)
    if HARMLESS in template.labels.values():
        judge += keyword.name.removeprefix("keyword").replace(":", "+")
    return GuardJudge(open_text_model(path, **(settings or {})), template, judge, keyword)


def _make_endpoint(rest: str, **options: Any) -> Judge:
    model, at, url = rest.partition("@http")
    return EndpointJudge(model if at else rest, "http" + url if at else None, **options)


MAKERS: dict[str, Callable[..., Judge]] = {
    "keyword": _make_keyword,
    "logit": _make_logit,
    "gguf": _make_guard,
    "openai": _make_endpoint,
}
BY_PHRASES = ("keyword", "gguf")  # kinds that read by the phrase lists, or leave refusals to them
WITH_REST = ("gguf", "openai")
