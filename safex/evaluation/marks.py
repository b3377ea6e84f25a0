"""What real compliance with a prompt must contain, where a prompt file says so in a column ``comply``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from safex import model_file
from safex.errors import InputError
from safex.prompt_files import Row
from safex.prompts import SETS, PromptSet, load_arguments

Marks: TypeAlias = Mapping[tuple[str, str], Sequence[str]]  # (set, text of the prompt): texts that must occur

COLUMN = "comply"


def demo_marks() -> Marks:
    """Those of the demo models' held-out prompts.

    >>> len(demo_marks())
    240
    """
    folder = model_file.DATA / "demo"
    return marks_of_arguments([f"{name}={folder / name}.jsonl" for name in SETS])


def marks_of_arguments(
    arguments: Sequence[str], column: str | None = None, where: Sequence[str] = ()
) -> Marks:
    """Marks of repeated ``SET=FILE`` arguments, as ``parse_prompt_arguments`` reads them.

    Raises InputError for a ``comply`` that is neither a text nor a list of texts.
    """
    marks: dict[tuple[str, str], Sequence[str]] = {}
    for loaded in load_arguments(arguments, column, where):
        for prompt, row in zip(loaded.prompts, loaded.rows, strict=True):
            if expected := _expected(row):
                marks[prompt.set, prompt.text] = expected
    return marks


def marks_for(prompts: PromptSet, given: Marks | None, is_demo: bool) -> Marks:
    """``given``, or for a demo model those of its own prompts."""
    if given is not None:
        return given
    return demo_marks() if is_demo else {}


def _expected(row: Row) -> list[str]:
    value = row.values.get(COLUMN)
    if value is None or value == "" or value != value:
        return []
    expected = [value] if isinstance(value, str) else value
    if not isinstance(expected, list) or not all(isinstance(text, str) for text in expected):
        raise InputError(
            f"{row.where}: {COLUMN!r} is {type(value).__name__}, expected a text or a list of texts"
        )
    return expected
