"""Messages as chat templates take them: checked, without nulls, and in the forms that templates differ in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .errors import InputError

Message = Mapping[
    str, Any
]  # role, content (a text, a list of parts, or None), and what a template knows besides

SYSTEM_ROLES = ("system", "developer")
# Names of a message's reasoning: most templates read the first, gpt-oss's the second.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
MEDIA = (
    *("image", "image_url", "input_image", "video", "video_url"),
    *("audio", "audio_url", "input_audio", "file"),
)


def plain(message: Message, number: int) -> dict[str, Any]:
    """A message without nulls, its reasoning under all names. Raises InputError for what is no message."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(
            f"message {number} is no object with a role: expected {{'role': ..., 'content': ...}}"
        )
    made = {key: value for key, value in message.items() if value is not None}
    content = made.get("content")
    if isinstance(content, (list, tuple)):
        made["content"] = [_part(part, number) for part in content]
    elif not (content is None or isinstance(content, str)):
        raise InputError(
            f"message {number}: its content is {type(content).__name__}, expected a text or a list of parts"
        )
    reasoning = next((made[key] for key in REASONING_KEYS if key in made), None)
    if reasoning is not None:
        made = {"thinking": reasoning, **made, "reasoning_content": reasoning}
    return made


def _part(part: object, number: int) -> dict[str, Any]:
    """A part of a content: an object with a type. Raises InputError for images and sounds, which nothing here sees."""
    part = {"type": "text", "text": part} if isinstance(part, str) else part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise InputError(
            f"message {number}: a part of its content has no type; expected {{'type': 'text', ...}}"
        )
    if kind in MEDIA:
        raise InputError(f"message {number}: holds a part of type {kind!r}, and safex-native takes text only")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise InputError(f"message {number}: a part of type 'text' has no text")
    return dict(part)


def text_of(message: Message) -> str | None:
    """The content as one text; None without one. Raises InputError for parts that have no text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content
    other = next((part["type"] for part in content if part["type"] != "text"), None)
    if other is not None:
        raise InputError(f"the model's chat template takes text only, found a part of type {other!r}")
    return "".join(part["text"] for part in content)


def last_text(message: Message) -> str:
    """The text of the content, or of its last part that has one; empty without any."""
    content = message.get("content", "")
    if isinstance(content, str):
        return content
    return next((part["text"] for part in reversed(content) if part.get("text")), "")


def with_last_text(message: dict[str, Any], text: str) -> dict[str, Any]:
    """The message with that text exchanged."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": text}
    at = next(i for i in reversed(range(len(content))) if content[i].get("text"))
    return {**message, "content": [*content[:at], {**content[at], "text": text}, *content[at + 1 :]]}


def with_word(messages: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    """The messages with a word at the end of their system message, which is made where there is none."""
    if messages and messages[0]["role"] in SYSTEM_ROLES:
        before = text_of(messages[0]) or ""
        return [{**messages[0], "content": f"{before} {word}".lstrip()}, *messages[1:]]
    return [{"role": "system", "content": word}, *messages]


# --- tool calls: templates differ in whether they take a null as content, and arguments as JSON text or as an object


def variants(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The same conversation with its tool calls in the other forms that templates take."""
    calling = [message for message in messages if message.get("tool_calls")]
    if not calling:
        return
    contents = ({}, {"content": None}, {"content": ""}) if any("content" not in m for m in calling) else ({},)
    for content, change in itertools.product(contents, (None, _as_object, _as_json)):
        yield [_with_calls(message, content, change) for message in messages]


def shows_calls(shown: str, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a rendered prompt names the functions that were called, and prints no null instead of a text."""
    calls = [
        call for message in messages for call in message.get("tool_calls") or () if isinstance(call, Mapping)
    ]
    names = [str((call.get("function") or call).get("name", "")) for call in calls]
    return all(name in shown for name in names) and not any(null in shown for null in ("None", "null"))


def _with_calls(
    message: Mapping[str, Any], content: Mapping[str, Any], change: Callable[[Any], Any] | None
) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    changed = calls if change is None else [_with_arguments(call, change) for call in calls]
    return {**content, **message, "tool_calls": changed}


def _with_arguments(call: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    made = dict(call)
    if "arguments" in made:
        made["arguments"] = change(made["arguments"])
    if isinstance(made.get("function"), Mapping):
        made["function"] = _with_arguments(made["function"], change)
    return made


def _as_object(arguments: Any) -> Any:
    try:
        value = json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_json(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, Mapping) else arguments
