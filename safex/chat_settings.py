"""What a model is shown beside the prompts: a system message, variables of its template, thinking, the date."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError

# Variables that the tool fills itself: a template that got others would be shown something else than is recorded.
RESERVED = (
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "raise_exception",
    "strftime_now",
    *(f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")),
)
# What result files say of the settings, where there is something to say.
CHAT_KEYS = ("chat.system", "chat.template_kwargs", "chat.thinking", "chat.date")
DATE_FORM = "YYYY-MM-DD"
EXAMPLE = '{"enable_thinking": false}'


@dataclass(frozen=True)
class ChatSettings:
    """Checked settings of a chat. ``date`` None: the day on which the model was opened."""

    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    thinking: bool | None = None
    date: datetime.date | None = None

    @classmethod
    def of(
        cls,
        system: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        thinking: bool | str | None = None,
        date: datetime.date | str | None = None,
    ) -> ChatSettings:
        """Check what ``Model`` is given. Raises InputError: which setting, what was expected."""
        if not (system is None or isinstance(system, str)):
            raise InputError(f"system is {type(system).__name__}, expected a text")
        if isinstance(system, str) and re.search("[\ud800-\udfff]", system):
            raise InputError("system holds half a surrogate pair, which is no character")
        kwargs = {} if template_kwargs is None else check_template_kwargs(template_kwargs)
        return cls(system, kwargs, _switch(thinking), None if date is None else to_date(date))


def recorded_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What a result file's facts of its model say of the settings, as ``safex.Model`` takes them."""
    found = {key.removeprefix("chat."): recorded[key] for key in CHAT_KEYS if recorded.get(key) is not None}
    if "template_kwargs" in found:
        found["template_kwargs"] = parse_template_kwargs(str(found["template_kwargs"]))
    return found


def _switch(thinking: bool | str | None) -> bool | None:
    known = {"on": True, "off": False}
    if isinstance(thinking, str) and thinking in known:
        return known[thinking]
    if thinking is None or isinstance(thinking, bool):
        return thinking
    raise InputError(f"thinking is {thinking!r}, expected 'on', 'off', True, False or None")


def to_date(date: datetime.date | str) -> datetime.date:
    """A date, or one written as YYYY-MM-DD. Raises InputError.

    >>> to_date("2026-02-28")
    datetime.date(2026, 2, 28)
    """
    if isinstance(date, datetime.datetime):
        return date.date()
    if isinstance(date, datetime.date):
        return date
    try:
        if isinstance(date, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", date):
            return datetime.date.fromisoformat(date)
    except ValueError:
        pass
    raise InputError(f"date is {date!r}, expected a day as {DATE_FORM}, for example 2026-11-30")


def check_template_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Template variables as plain JSON values, sorted by name. Raises InputError naming what can't be one."""
    if not isinstance(kwargs, Mapping):
        raise InputError(f"template_kwargs is {type(kwargs).__name__}, expected an object such as {EXAMPLE}")
    for name in kwargs:
        if not (isinstance(name, str) and name.isidentifier()):
            raise InputError(f"template_kwargs: {name!r} can't be the name of a template variable")
        if name in RESERVED:
            raise InputError(
                f"template_kwargs: {name!r} is filled by safex-native and can't be set; leave it out"
            )
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(kwargs), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"template_kwargs: holds a value that is not JSON: {error}") from None
    for name, value in plain.items():
        if name in ("tools", "documents") and not (
            value is None or (isinstance(value, list) and all(isinstance(item, dict) for item in value))
        ):
            raise InputError(f"template_kwargs: {name!r} must be a list of objects, or null")
    return {name: plain[name] for name in sorted(plain)}


def parse_template_kwargs(text: str) -> dict[str, Any]:
    """Template variables written as a JSON object. Raises InputError.

    >>> parse_template_kwargs('{"reasoning_effort": "low"}')
    {'reasoning_effort': 'low'}
    """
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"template_kwargs is no JSON ({error}); expected an object such as {EXAMPLE}"
        ) from None
    return check_template_kwargs(value)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"template_kwargs: {name!r} occurs twice; give it once")
        found[name] = value
    return found


def read_system(given: str) -> str:
    """A system message as given, or the text of the file that ``@FILE`` names. Raises InputError.

    One line feed at the end of the file is its line's end and no part of the message.
    """
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    if path == Path():
        raise InputError(f"system {given!r} names no file; expected @FILE, as in @system.txt")
    try:
        text = path.read_bytes().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; --system @FILE reads the system message from a file"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: can't be read: {reason}; check the path") from None
    if not text.strip():
        raise InputError(f"{path}: is empty; write the system message into it, or give --system ''")
    return text
