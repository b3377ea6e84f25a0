"""Unpatched llama.cpp as the independent truth: its quantization by ctypes, its logits in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class _Traits(ctypes.Structure):
    """ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class Quantizer:
    """ggml's own functions, from the unpatched build."""

    def __init__(self, folder: Path) -> None:
        self.ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
        self.ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        self.ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.ggml.ggml_quantize_chunk.argtypes = (
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        )

    def traits(self, type_id: int) -> _Traits:
        traits: _Traits = self.ggml.ggml_get_type_traits(type_id).contents
        return traits

    def quantize(self, type_id: int, rows: np.ndarray, imatrix: np.ndarray | None = None) -> bytes:
        traits = self.traits(type_id)
        rows = np.ascontiguousarray(rows, np.float32)
        out = ctypes.create_string_buffer(rows.size // traits.blck_size * traits.type_size)
        weights = None if imatrix is None else imatrix.ctypes.data
        n_rows = rows.size // rows.shape[-1]
        self.ggml.ggml_quantize_chunk(type_id, rows.ctypes.data, out, 0, n_rows, rows.shape[-1], weights)
        return out.raw

    def dequantize(self, type_id: int, blocks: bytes) -> np.ndarray:
        traits = self.traits(type_id)
        values = np.empty(len(blocks) // traits.type_size * traits.blck_size, np.float32)
        traits.to_float(blocks, values.ctypes.data, values.size)
        return values


LOGITS = """
import json, os, sys
import numpy as np
sys.path.insert(0, os.environ["ORDINARY"])
import llama_cpp
assert llama_cpp.__file__.startswith(os.environ["ORDINARY"])
job = json.load(sys.stdin)
for number, path in enumerate(job["paths"]):
    model = llama_cpp.Llama(path, n_ctx=job["n_ctx"], logits_all=True, verbose=False, n_threads=2,
                            flash_attn=False, type_k=0, type_v=0)
    model.eval(job["tokens"])
    np.save(f"{job['folder']}/{number}.npy", np.array(model.scores[: len(job["tokens"])]))
    del model
"""


def logits(ordinary: Path, paths: Sequence[Path], tokens: Sequence[int], folder: Path) -> list[np.ndarray]:
    """float32 [n_tokens, n_vocab] of each model: no flash attention, F32 KV cache, as the fixture ``exact``."""
    job = {"paths": list(map(str, paths)), "tokens": list(tokens), "n_ctx": 256, "folder": str(folder)}
    environment = {
        **os.environ,
        "ORDINARY": str(ordinary),
        "LLAMA_CPP_LIB_PATH": str(ordinary / "llama_cpp" / "lib"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOGITS],
        input=json.dumps(job),
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [np.load(folder / f"{number}.npy") for number in range(len(paths))]
