"""Result files that are JSON: read with every failure as one line, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safex import disk
from safex.errors import InputError
from safex.profile_arrays import shorten

T = TypeVar("T")


def read_json(path: str | os.PathLike[str], expected: str, parse: Callable[[Any], T]) -> T:
    """What ``parse`` makes of a file. Raises InputError: the path, then what ``parse`` says or what was expected."""
    try:
        return parse(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({error}); expected {expected}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_kind(value: Any, mark: str, version: int, what: str) -> None:
    """Refuse parsed JSON that isn't an object whose ``mark`` has this schema version. Raises InputError.

    >>> check_kind({"safex_sweep": 1}, "safex_sweep", 1, "sweep")
    """
    if not isinstance(value, Mapping) or mark not in value:
        raise InputError(f"is no {what}: expected an object with {mark!r}")
    if value[mark] != version:
        found = shorten(value[mark])
        raise InputError(f"has schema version {found}, expected {version}: use the version that wrote it")


def checked_parts(value: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of parsed JSON that ``default`` has too, each of its type (any, where that is None). Raises InputError.

    >>> checked_parts({"rows": [1], "more": 2}, {"rows": [], "note": ""})
    {'rows': [1]}
    """
    parts = {name: value[name] for name in default if name in value}
    for name, part in parts.items():
        if default[name] is not None and not isinstance(part, type(default[name])):
            raise InputError(f"{name!r} is {type(part).__name__}, expected {type(default[name]).__name__}")
    return parts


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write through a temporary file; the same value gives the same bytes. Raises DiskError, InputError."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with disk.replacing(Path(path)) as (fd, _):
        disk.write_at(fd, 0, text.encode())
