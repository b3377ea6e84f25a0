"""Judges of answers: refuse, comply or other, with empty and truncated answers told apart.

A new judge is a class with ``name`` and ``judge(items, progress=None)`` and a line in ``MAKERS``.

>>> make("keyword").judge([Item("0", "benign", "How do I bake bread?", "Mix flour and water, then bake it.")])[0].label
'comply'
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safex.errors import InputError

from .agreement import Agreement, agreement, agreements, count_labels
from .endpoint import EndpointJudge
from .guard import GuardJudge, Template, choose_template, open_text_model, shipped_templates
from .keyword import KeywordJudge
from .logit import LogitJudge
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
    "OTHER",
    "REASONING",
    "REFUSE",
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
    "make",
    "reading",
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


def make(spec: str, **options: Any) -> Judge:
    """The judge that ``spec`` names: ``keyword``, ``logit``, ``gguf:PATH[:TEMPLATE]`` or ``openai:MODEL@URL``.

    ``options`` go to the judge: ``model`` (the model under test) for logit; ``settings`` of the guard model for
    gguf; ``cache``, ``timeout``, ``max_retries``, ``n_parallel``, ``api_key`` for openai. Raises InputError for a spec
    that is none, or what the judge itself raises.
    """
    kind, rest = check_spec(spec)
    return MAKERS[kind](rest, **options)


def _make_keyword(_: str, **options: Any) -> Judge:
    return KeywordJudge(**options)


def _make_logit(_: str, **options: Any) -> Judge:
    if options.get("model") is None:
        raise InputError("judge logit reads the model that gave the answers; name it (--model)")
    return LogitJudge(**options)


def _make_guard(rest: str, settings: dict[str, Any] | None = None) -> Judge:
    """A template's name or .json file may follow the path; a path may hold colons."""
    path, _, last = rest.rpartition(":")
    named = bool(path) and (last in shipped_templates() or last.endswith(".json") or "." not in last)
    path, name = (path, last) if named else (rest, None)
    template = choose_template(name, path)
    judge = f"gguf:{Path(path).stem}:{template.name}"
    return GuardJudge(open_text_model(path, **(settings or {})), template, judge)


def _make_endpoint(rest: str, **options: Any) -> Judge:
    model, at, url = rest.partition("@http")
    return EndpointJudge(model if at else rest, "http" + url if at else None, **options)


MAKERS: dict[str, Callable[..., Judge]] = {
    "keyword": _make_keyword,
    "logit": _make_logit,
    "gguf": _make_guard,
    "openai": _make_endpoint,
}
WITH_REST = ("gguf", "openai")
