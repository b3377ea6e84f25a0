"""The manual: what it says of messages, files and functions is so, and its pages load nothing from anywhere else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import safex
from safex.cli import COMMANDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GAP = "…"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


# --- messages


def test_messages_of_the_page_exist() -> None:
    known = [*python_texts(), *cpp_texts()]
    quoted = re.findall(r"^### `(.+)`$", page("errors"), re.MULTILINE)
    assert len(quoted) >= 30
    assert [message for message in quoted if not any(fits(message, text) for text in known)] == []


def python_texts() -> list[str]:
    """Every text of the package, what is filled in replaced by a gap."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "safex").rglob("*.py")]
    return [
        text_of(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else GAP


def cpp_texts() -> list[str]:
    """The literals of every statement of the core, with gaps between them."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "native" / "src").glob("*.cpp")]
    statements = (statement for source in sources for statement in source.split(";\n"))
    return [GAP.join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', statement)) for statement in statements]


def fits(message: str, text: str) -> bool:
    """Whether the parts of a quoted message occur in a text, in order."""
    pattern = ".*".join(re.escape(part) for part in message.split(GAP))
    return re.search(pattern, text, re.DOTALL) is not None


# --- functions


def test_every_public_name_is_in_the_reference() -> None:
    shown = set(re.findall(r"^::: safex\.(\w+)$", page("reference"), re.MULTILINE))
    assert shown == set(safex.__all__) - {"__version__"}


# --- the pages as they are built


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual") / "site"
    call = f'source scripts/lib.sh; PY="{sys.executable}"; manual --site-dir "{folder}"'
    done = subprocess.run(["bash", "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_name_no_other_host_for_what_they_load(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"' >]+"""
    )
    html = [
        found for path in site.rglob("*.html") for found in loads.findall(path.read_text(encoding="utf-8"))
    ]
    css = [
        found
        for path in site.rglob("*.css")
        for found in re.findall(r"url\(['\"]?(?:https?:)?//[^)]+", path.read_text())
    ]
    assert html + css == []


def test_pages_hold_what_is_written_elsewhere(site: Path) -> None:
    commands = (site / "cli.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in commands for name in COMMANDS)
    assert "safex-native sweep MODEL (--experts SPEC | --all) [options]" in commands
    assert "<math" in (site / "methods.html").read_text(encoding="utf-8")
    reference = (site / "reference.html").read_text(encoding="utf-8")
    assert (
        "&gt;&gt;&gt;" in reference and "<blockquote>" not in reference
    )  # which Markdown would make of examples
    assert 'href="demo-models.html"' in (site / "tutorial.html").read_text(encoding="utf-8")


def test_pages_fit_a_phone_and_load_only_files(site: Path, browser: Browser) -> None:
    tab = browser.new_context(viewport={"width": 400, "height": 800}).new_page()
    asked: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    for path in sorted(site.glob("*.html")):
        if path.name != "404.html":  # which a server shows, with links from its root
            tab.goto(path.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= 400, path.name
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
