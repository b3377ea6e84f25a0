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


# --- a tiny model with a real tokenizer: metadata is copied as bytes, since unpacking 777,000 strings takes a minute

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _HEADER, _ALIGNMENT = 8, 9, 24, 32


def _number(data: bytes, at: int, size: int = 8) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _end_of_value(data: bytes, at: int, kind: int) -> int:
    if kind == _STRING:
        return at + 8 + _number(data, at)
    if kind != _ARRAY:
        return at + _SIZES[kind]
    kind, count, at = _number(data, at, 4), _number(data, at + 4), at + 12
    if kind in _SIZES:
        return at + count * _SIZES[kind]
    for _ in range(count):
        at = _end_of_value(data, at, kind)
    return at


def _metadata(data: bytes) -> tuple[dict[str, bytes], int]:
    """Every entry of a GGUF file's metadata, packed, by its key; and where they end."""
    at, entries = _HEADER, {}
    for _ in range(_number(data, 16)):
        value = at + 8 + _number(data, at)
        key = data[at + 8 : value].decode()
        end = _end_of_value(data, value + 4, _number(data, value, 4))
        entries[key] = data[at:end]
        at = end
    return entries, at


def give_tokenizer(model: Path, vocabulary: bytes) -> None:
    """Put the tokenizer and template of one GGUF file into another that has none."""
    data = model.read_bytes()
    entries, infos = _metadata(data)
    entries |= {key: each for key, each in _metadata(vocabulary)[0].items() if key.startswith("tokenizer.")}
    at = infos
    for _ in range(_number(data, 8)):
        at = _end_of_value(data, at, _STRING)
        at += 4 + 8 * _number(data, at, 4) + 4 + 8  # dimensions, type, offset
    head = data[:16] + len(entries).to_bytes(8, "little") + b"".join(entries.values()) + data[infos:at]
    body = data[-(-at // _ALIGNMENT) * _ALIGNMENT :]
    model.write_bytes(head + bytes(-len(head) % _ALIGNMENT) + body)
