"""``safex-native report``: one HTML page from result files, its pictures and its tables as files too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import InputError

from .export import add_export_options, check_export, export, wants_export
from .options import new_file
from .output import Output, size

if TYPE_CHECKING:
    from safex.report import Sources

USAGE = "FILE... [options]"
DESCRIPTION = """\
One HTML page with maps, curves, tables and methods from result files of profile, identify, probe, eval, sweep,
redundancy and compare, or the folder of an audit, in any order. The page holds all that it shows and loads nothing
from any network."""
EXAMPLE = """\
  safex-native report demo.profile.gguf demo.experts.json
  safex-native report demo.audit -o audit.html
  safex-native report demo.profile.gguf demo.experts.json demo.eval.json demo.sweep.json -o audit.html --png figures"""
DEFAULT = Path("report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add(
        "files",
        metavar="FILE",
        nargs="+",
        help="a profile, an expert set, a probing, an evaluation, a sweep, a redundancy curve, a comparison, or the "
        "folder of an audit",
    )
    add("-o", "--output", metavar="OUT", help=f"the HTML file (default: {DEFAULT}, here)")
    add("--title", metavar="T", help="the page's title (default: the model's name)")
    add("--png", metavar="DIR", help="write the pictures as PNG files of 300 dpi into this folder")
    add("--force", action="store_true", help="replace files that exist")
    add_export_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check where everything goes, then read, write and say what was written."""
    from safex.report import build_page, read_sources, write_page

    out = Output(args)
    files = expanded(args.files)
    output = new_file(args.output, DEFAULT, args.force, inputs=files)
    sources = read_sources(files)
    page = build_page(sources, args.title)
    tables = tables_of(sources) if wants_export(args) else {}
    check_export(args, tables)
    check_pictures(args, page)
    write_page(page, sources, output)
    pictures = write_png(args, page, out)
    exported = export(args, tables, out)
    for warning in page.warnings:
        out.note(f"warning: {warning}")
    out.text(f"Report: {output} ({size(output.stat().st_size)})")
    out.result({"report": str(output), "png": pictures, "tables": exported, "warnings": page.warnings})
    return 0


def expanded(names: list[str]) -> list[str]:
    """The files, with the folder of an audit replaced by what it holds for a page."""
    from safex.auditing.stages import MANIFEST, page_files

    return [
        name
        for given in names
        for name in (page_files(Path(given)) if (Path(given) / MANIFEST).is_file() else [given])
    ]


def check_pictures(args: argparse.Namespace, page: Any) -> None:
    """Refuse a folder where the pictures can't go, before anything is written."""
    if args.png is None:
        return
    from safex.report.png import pictures

    folder = Path(args.png)
    if not args.png or (folder.exists() and not folder.is_dir()):
        raise InputError(f"--png {args.png!r} names no folder; expected a path such as figures")
    there = [folder / picture.name for picture in pictures(page) if (folder / picture.name).exists()]
    if there and not args.force:
        raise InputError(f"{there[0]}: exists: choose another --png, or replace it with --force")


def write_png(args: argparse.Namespace, page: Any, out: Output) -> list[str]:
    """The pictures, where they are asked for."""
    if args.png is None:
        return []
    from safex.report.png import write_pictures

    paths = write_pictures(page, Path(args.png))
    out.note(f"{len(paths)} pictures in {args.png}")
    return [str(path) for path in paths]


def tables_of(sources: Sources) -> dict[str, Any]:
    """The tables of all files; where there are several files, a table's name starts with that of its file."""
    from safex.report.exports import source_tables

    return source_tables(sources)
