"""One self-contained HTML page, and pictures for papers, from result files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from safex import disk
from safex.errors import InputError

from .html import render
from .sections import Page, build_page
from .sources import Sources, read_sources

__all__ = ["Page", "Sources", "build_page", "read_sources", "write_page", "write_report"]


def write_report(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    png: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write one HTML page from result files, in any order; return its path.

    They are profiles, expert sets, probings, evaluations, sweeps, redundancy curves and comparisons.

    ``png`` names a folder, made where it is missing, for the page's pictures as PNG files of 300 dpi. Files that exist
    are replaced. Raises InputError for a file that is no result file or fits none of the others, DiskError.
    """
    files = read_sources(sources)
    page = build_page(files, title)
    path = write_page(page, files, output)
    if png is not None:
        from .png import write_pictures

        write_pictures(page, Path(png))
    return path


def write_page(page: Page, sources: Sources, output: str | os.PathLike[str]) -> Path:
    """Write the HTML file, whole or not at all. Raises InputError where it would replace one of its sources."""
    path = Path(output)
    if path.exists() and any(path.samefile(source.path) for source in sources.files):
        raise InputError(f"{path}: is one of the report's own sources: choose another -o")
    with disk.replacing(path) as (fd, _):
        disk.write_at(fd, 0, render(page).encode())
    return path
