"""Write, or with --check verify, hashes of what transformers renders: `golden/chat_templates.json`.

python tests/reference/generate_chat_templates.py [--check]

Needs transformers (no PyTorch) and the pinned source of llama.cpp, whose chat templates are rendered: of each its own
SHA-256, and that of the prompt that each conversation of `chat_cases.py` gives, or "fails". Made with transformers
5.24.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from chat_cases import BOS, CASES, DAY, EOS, FAILS  # noqa: E402
from upstream_files import templates  # noqa: E402

GOLDEN = TESTS / "golden" / "chat_templates.json"


def render(source: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str | None:
    """What transformers makes of it on DAY; None where it fails."""
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Fixed:
            return cls.fromisoformat(DAY)

    before, chat_template_utils.datetime = chat_template_utils.datetime, Fixed
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages],
            chat_template=source,
            add_generation_prompt=True,
            bos_token=BOS,
            eos_token=EOS,
            **variables,
        )
    except Exception:  # whatever a template raises
        return None
    finally:
        chat_template_utils.datetime = before
    return str(rendered[0])


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hashes(source: str) -> dict[str, str]:
    shown = {name: render(source, *case) for name, case in CASES.items()}
    return {
        "source": sha256(source),
        **{n: FAILS if text is None else sha256(text) for n, text in shown.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()
    made = {name: hashes(source) for name, source in templates().items()}
    if args.check:
        known = json.loads(GOLDEN.read_text())
        moved = [name for name in made if made[name] != known.get(name)]
        print("\n".join(moved) or f"{len(made)} templates as before")
        return int(bool(moved) or made.keys() != known.keys())
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
