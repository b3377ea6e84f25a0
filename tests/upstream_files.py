"""Real chat templates and tokenizers from the pinned source of llama.cpp; tests skip where it was never fetched."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from jinja2 import Template, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SCRIPT = Path(__file__).parents[1] / "native" / "upstream" / "upstream.py"


class Generation(Extension):
    """``{% generation %}``, which marks what a model is trained on: rendered as its contents."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def source() -> Path:
    """The pinned archive in the cache, or a local tree."""
    if local := os.environ.get("SAFEX_LLAMA_CPP_DIR"):
        return Path(local)
    spec = importlib.util.spec_from_file_location("upstream_of_files", SCRIPT)
    assert spec is not None and spec.loader is not None
    upstream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upstream)
    pin = upstream.read_pin()
    return Path(upstream.cache_dir()) / f"{pin.package}-{pin.version}-{pin.sha256[:12]}.tar.gz"


@cache
def read_models(ending: str, folder: str = "models") -> dict[str, bytes]:
    """The files right in a folder of upstream's tree with a name's ending, by their names."""
    path = source()
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted((path / folder).glob(f"*{ending}"))}
    if not path.exists():
        pytest.skip(f"llama.cpp's source was not fetched: {path.name} is not in the cache")
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name)
            if (
                member.isfile()
                and name.name.endswith(ending)
                and name.parent.as_posix().endswith(f"llama.cpp/{folder}")
            ):
                content = archive.extractfile(member)
                assert content is not None
                files[name.name] = content.read()
    return files


def templates() -> dict[str, str]:
    """The sources of the real chat templates by their names without ending."""
    found = read_models(".jinja", "models/templates")
    return {name.removesuffix(".jinja"): text.decode() for name, text in found.items()}


def write_vocabularies(folder: Path) -> dict[str, Path]:
    """The vocabularies of models that write text (no encoders), as GGUF files in a folder, by name."""
    found = {
        name.removeprefix("ggml-vocab-"): data
        for name, data in read_models(".gguf").items()
        if name.startswith("ggml-vocab-") and "bert" not in name
    }
    for name, data in found.items():
        (folder / name).write_bytes(data)
    return {name.removesuffix(".gguf"): folder / name for name in sorted(found)}


def _refuse(message: str) -> None:
    raise ValueError(message)


@cache
def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up, on a fixed day."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = datetime.datetime(2026, 11, 29).strftime
    made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return made


@cache
def compiled(template: str) -> Template:
    """A template, compiled once."""
    return environment().from_string(template)


def render(template: str, add_generation_prompt: bool = True, **settings: Any) -> str:
    """One user message, rendered."""
    messages = [{"role": "user", "content": "QQQ"}]
    shown = {"bos_token": "<s>", "eos_token": "</s>", "functions": "", "datetime": "today"}
    return compiled(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt, **{**shown, **settings}
    )
