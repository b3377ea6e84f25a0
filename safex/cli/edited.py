"""What `mask` and `merge` have in common: an edit in place that is cut short, and where the result lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from safex.errors import DiskError

from .output import Output

T = TypeVar("T")


class Edited(Protocol):
    """A report of an edit."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files written."""

    @property
    def undo(self) -> Path | None:
        """The undo file of an edit in place."""

    @property
    def sidecar(self) -> Path | None:
        """Where the provenance lies if not in the file."""


def in_place(model: str, edit: Callable[[], T]) -> T:
    """Edit; where that is cut short, the message says how to go on."""
    from safex.shipping.undo import undo_path

    way_back = f"; run it again to finish, or `safex-native restore {model}`"
    try:
        return edit()
    except KeyboardInterrupt:
        cut_short = undo_path(Path(model)).exists()
        raise KeyboardInterrupt(
            "interrupted" + (way_back if cut_short else "; nothing was changed")
        ) from None
    except DiskError as error:
        cut_short = undo_path(Path(model)).exists()
        raise DiskError(f"{error}{way_back if cut_short else ''}") from error


def show_files(out: Output, report: Edited, model: str) -> None:
    """Where it was written, where it says so, and what comes next."""
    for path in report.paths:
        out.text(f"File: {path}")
    if report.undo:
        out.text(f"Undo: {report.undo} (safex-native restore {model}; delete it to keep the edit for good)")
    elif report.paths:
        out.text(f"Next: safex-native verify {model} {report.paths[0]}")
    if report.sidecar:
        out.note(f"note: the file's header has no room: that it was altered is said in {report.sidecar}")
