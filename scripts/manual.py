"""A hook of MkDocs: pages that are written elsewhere, the commands' help, formulas as MathML.

Files of the repository link to each other as they lie there, so that links work in a checkout and on a code host. In
the manual, a link to a file that is one of its pages becomes a link to the page, any other one the file's name.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from safex.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # page of the manual: file of the repository
    "index.md": "README.md",
    "demo-models.md": "safex/data/README.md",
    "prompt-sets.md": "safex/data/prompts/README.md",
    "judges.md": "safex/data/judges/README.md",
    "exactness.md": "tests/reference/README.md",
    "native-core.md": "native/README.md",
}
PAGE_OF = {path: page for page, path in ELSEWHERE.items()}
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:]+)\)")
FORMULA = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)
COLUMNS = "88"  # of the help, so that it doesn't depend on who builds the manual


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files of docs/."""
    for page, path in ELSEWHERE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "cli.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    source = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda found: _link(found[1], found[2], source), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""
    return FORMULA.sub(lambda found: _formula(found[1], html.unescape(found[2])), content)


def _link(text: str, target: str, source: str) -> str:
    path, mark, anchor = target.partition("#")
    if not path:
        return f"[{text}]({target})"
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if file.startswith("docs/"):
        return f"[{text}]({file.removeprefix('docs/')}{mark}{anchor})"
    if file in PAGE_OF:
        return f"[{text}]({PAGE_OF[file]}{mark}{anchor})"
    return text if text.startswith("`") else f"{text} (`{file}`)"


def _formula(tag: str, tex: str) -> str:
    display = "block" if tag == "div" else "inline"
    return f'<{tag} class="formula">{convert(tex.strip(), display=display)}</{tag}>'


def commands() -> str:
    """The page of commands: the help that each prints."""
    os.environ["COLUMNS"] = COLUMNS
    parts = ["# Commands", "What each command's `--help` prints."]
    for name in COMMANDS:
        parts += [f"## {name}", f"```text\n{_help(name)}```"]
    return "\n\n".join(parts) + "\n"


def _help(name: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([name, "--help"])
    return printed.getvalue()
