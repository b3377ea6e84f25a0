"""The manual: what it says of messages, files and functions is so, and its pages load nothing from anywhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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
    return [text_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)]


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
