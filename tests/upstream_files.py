"""Real chat templates and vocabularies, out of the pinned source of llama.cpp: none of them is ours to commit."""

from __future__ import annotations

import importlib.util
import os
import tarfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES, VOCABULARIES = "models/templates/", "models/ggml-vocab-"
ENCODERS = ("bert-bge", "nomic-bert-moe")  # they continue no text


@lru_cache(maxsize=1)
def templates() -> dict[str, str]:
    """Source by name; empty where the pinned source was never fetched."""
    found = _read(TEMPLATES, ".jinja")
    return {name.removesuffix(".jinja"): data.decode() for name, data in sorted(found.items())}


def write_vocabularies(folder: Path) -> dict[str, Path]:
    """The vocabularies of models that write text, as GGUF files in a folder, by name."""
    paths = {}
    for name, data in sorted(_read(VOCABULARIES, ".gguf").items()):
        short = name.removesuffix(".gguf")
        if short not in ENCODERS:
            paths[short] = folder / f"{short}.gguf"
            paths[short].write_bytes(data)
    return paths


def _read(prefix: str, ending: str) -> dict[str, bytes]:
    """Files of the source whose path begins and ends so, by what is between."""
    local = os.environ.get("SAFEX_LLAMA_CPP_DIR")
    if local:
        paths = sorted(Path(local).glob(f"{prefix}*{ending}"))
        return {str(path.relative_to(local)).removeprefix(prefix): path.read_bytes() for path in paths}
    archive = _archive()
    if archive is None:
        return {}
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if name.startswith(prefix) and name.endswith(ending):
                file = tar.extractfile(member)
                assert file is not None
                found[name.removeprefix(prefix)] = file.read()
    return found


def _archive() -> Path | None:
    """The fetched source distribution; None where there is none, for a test downloads nothing."""
    upstream = _upstream()
    pin = upstream.read_pin()
    path: Path = upstream.cache_dir() / f"{pin.package}-{pin.version}-{pin.sha256[:12]}.tar.gz"
    return path if path.exists() else None


def _upstream() -> ModuleType:
    spec = importlib.util.spec_from_file_location("upstream", ROOT / "native" / "upstream" / "upstream.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
