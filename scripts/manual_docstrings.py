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
    """The docstring with its examples, paragraphs that begin with a prompt, as blocks of code."""
    return "\n\n".join(
        _example(part, text) if part.startswith(">>> ") else part for part in text.split("\n\n")
    )


def _example(part: str, text: str) -> str:
    """Behind sections of NumPy's style an example is one too, or it would belong to the last of them."""
    part = part.replace("  # doctest: +SKIP", "")
    return f"Examples\n--------\n{part}" if "\n----" in text else f"```pycon\n{part}\n```"
