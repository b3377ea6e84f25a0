"""An extension of griffe: the examples of docstrings, which Markdown would take for quotations, as blocks of code."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Fences examples that no section of a docstring holds."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence those of one object."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The docstring with its examples fenced: paragraphs that begin with a prompt."""
    parts = (f"```pycon\n{part}\n```" if part.startswith(">>> ") else part for part in text.split("\n\n"))
    return "\n\n".join(parts)
