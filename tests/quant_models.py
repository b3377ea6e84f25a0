"""Small models whose experts' last weights are in any tensor type: rows of 256, every type's block or a multiple."""

from __future__ import annotations

from pathlib import Path

import bench_model
import gguf
import numpy as np
from stock_llama import Quantizer

SHAPE = bench_model.Shape(
    layers=2,
    experts=4,
    top_k=2,
    width=256,
    expert_width=256,
    heads=4,
    kv_heads=2,
    head_dim=64,
    vocabulary=512,
)
# What ggml_quantize_chunk takes, by the file's number; the names are the gguf package's where it has the type.
TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21,
    "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40,
    "Q1_0": 41, "Q2_0": 42,
}  # fmt: skip
NEED_IMATRIX = ("IQ2_XXS", "IQ2_XS", "IQ1_S")


def weights(tensor: bench_model.Tensor) -> np.ndarray:
    """The tensor's float32 values, the same for every type."""
    if tensor.deviation is None:
        return np.ones(tensor.shape, np.float32)
    return bench_model.as_f32(bench_model.draw(tensor, 7), tensor.deviation)


def write(path: Path, kind: str, quantizer: Quantizer) -> Path:
    """Write the model with `ffn_down_exps` in the type, everything else in float32."""
    traits = quantizer.traits(TYPES[kind])
    gguf.constants.GGML_QUANT_SIZES.setdefault(TYPES[kind], (traits.blck_size, traits.type_size))
    writer = gguf.GGUFWriter(path, bench_model.ARCH)
    bench_model.add_metadata(writer, SHAPE, "f32")
    bench_model.add_tokenizer(writer, SHAPE.vocabulary)
    for tensor in bench_model.tensors(SHAPE):
        values = weights(tensor)
        if "down_exps" in tensor.name and kind != "F32":
            imatrix = np.ones(values.shape[-1], np.float32) if kind in NEED_IMATRIX else None
            raw = np.frombuffer(quantizer.quantize(TYPES[kind], values, imatrix), np.uint8)
            packed = raw.reshape(*values.shape[:-1], -1)
            writer.add_tensor(tensor.name, packed, raw_dtype=TYPES[kind])
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
