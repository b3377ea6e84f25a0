"""Conversations of prompt files, in the forms that are published, as the turns that a model is shown."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from safex.prompt_columns import CONVERSATIONS
from safex.prompt_files import Row, shown

Turn: TypeAlias = tuple[str, ...]
"""Role, content, and where a turn has more that a template shows (calls of tools) that as JSON."""

ROLES = {
    "user": "user human prompter",
    "assistant": "assistant gpt chatgpt bot model ai bard bing claude function_call",
    "system": "system",
    "developer": "developer",
    "tool": "tool function observation function_response ipython",
}
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names.split()}
_TEXT_PARTS = ("text", "input_text", "output_text")
_SHOWN_TOO = ("tool_calls", "tool_call_id", "name", "reasoning_content")
_PREFILL = ("prefix", "partial", "prefill", "continue")
_MEDIA = ("images", "image", "audio", "videos", "video")
_STARTS_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):", re.ASCII)


def conversation(row: Row, column: str, value: object) -> object:
    """The list of turns that ``value`` is or spells out; any other value as it is.

    A list may stand in a table as JSON or as Python writes it, and a list of objects as an object of lists. Raises
    InputError for a column of conversations that holds another text.
    """
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        return [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if not isinstance(value, str):
        return value
    named = column.casefold() in CONVERSATIONS
    if not value.strip() or not (named or _STARTS_TURNS.match(value)):
        return value
    found = _parsed(value)
    if not isinstance(found, list):
        row.fail(f"column {column!r} is not JSON; expected a list of chat turns")
    return found


def _parsed(text: str) -> object:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def transcript(text: str) -> list[dict[str, str]] | None:
    """The turns of a dialogue written as ``Human: ...`` and ``Assistant: ...``; None for another text.

    >>> transcript("\\n\\nHuman: What is a fox?\\n\\nAssistant: An animal.")
    [{'role': 'user', 'content': 'What is a fox?'}, {'role': 'assistant', 'content': 'An animal.'}]
    """
    _, *pieces = _SPEAKER.split(text.strip())
    roles = ["user" if name == "Human" else "assistant" for name in pieces[::2]]
    if roles[:1] != ["user"]:
        return None
    contents = [content.strip() for content in pieces[1::2]]
    return [
        {"role": role, "content": content}
        for role, content in zip(roles, contents, strict=True)
        if content or role == "user"
    ]


def read_turns(row: Row, value: Sequence[object]) -> tuple[list[Turn], bool]:
    """The turns up to the answer that is asked for, and whether the file's own answer behind them was left out.

    Raises InputError, naming the turn: what is not text, a role that nobody knows, the beginning of an answer that
    the model is to go on with, several turns of the user without what was answered.
    """
    if value and all(isinstance(item, str) for item in value):
        return [("user", _only(row, [str(item) for item in value]))], False
    turns: list[Turn] = []
    for number, item in enumerate(value, start=1):
        turns += _turns(row, number, item)
    kept = list(turns)
    while kept and kept[-1][0] == "assistant":
        kept.pop()
    return kept, len(kept) < len(turns)


def _only(row: Row, texts: list[str]) -> str:
    if len(texts) > 1:
        row.fail(
            f"{len(texts)} turns of the user without the answers between them; keep one, or write turns with "
            "'role' and 'content'"
        )
    return texts[0]


def _turns(row: Row, number: int, item: object) -> list[Turn]:
    """The turn that an object is; two where it holds a question and its answer."""
    if isinstance(item, dict) and item and set(map(str, item)) <= set(_ROLE_OF):
        return [
            (_ROLE_OF[name], _content(row, number, text)) for name, text in item.items() if text is not None
        ]
    role = _first(item, ("role", "from"))
    if not isinstance(item, dict) or not isinstance(role, str):
        row.fail(f"chat turn {number} is not {{'role': text, 'content': text}}; write every turn so")
    known = _ROLE_OF.get(role.casefold())
    if known is None:
        row.fail(f"chat turn {number} is of {role!r}; expected one of {', '.join(ROLES)}")
    if any(item.get(name) is True for name in _PREFILL):
        row.fail(f"chat turn {number} is the beginning of an answer to go on with; leave it out")
    if media := next((name for name in _MEDIA if item.get(name)), None):
        row.fail(f"chat turn {number} holds {media}; only text is read, so leave the row out")
    more = {name: item[name] for name in _SHOWN_TOO if item.get(name) is not None}
    content = _first(item, ("content", "value", "text"))
    if content is None and "tool_calls" not in more:
        row.fail(f"chat turn {number} is not {{'role': text, 'content': text}}; write every turn so")
    text = "" if content is None else _content(row, number, content)
    return [(known, text, json.dumps(more, sort_keys=True))] if more else [(known, text)]


def _first(item: object, names: Sequence[str]) -> Any:
    if not isinstance(item, dict):
        return None
    return next((item[name] for name in names if item.get(name) is not None), None)


def _content(row: Row, number: int, content: object) -> str:
    """A turn's text; of a list of parts the texts, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        row.fail(f"chat turn {number} is not {{'role': text, 'content': text}}; write every turn so")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            row.fail(
                f"chat turn {number} has a part of type {shown([kind])}; only text is read, so leave the row out"
            )
        texts.append(text)
    return "\n".join(texts)
