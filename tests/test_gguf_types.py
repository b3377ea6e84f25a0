"""Tensor types: decoding, encoding and multiplying, against unpatched ggml and the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import quant_models
from stock_llama import Quantizer

import safex
from safex import _native

TYPES = {kind.name.upper(): kind for kind in _native.tensor_types()}
DECODED = [name for name, kind in TYPES.items() if kind.decodes]
ROWS, COLUMNS = 6, 512


@pytest.fixture(scope="module")
def stock(stock_bin: Path) -> Quantizer:
    return Quantizer(stock_bin)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rows = np.random.default_rng(5).normal(0, 2, (ROWS, COLUMNS)).astype(np.float32)
    rows[np.abs(rows) < 0.01] = 1  # an F16 may be too small to be halved exactly
    rows[2] = 0
    return rows


def imatrix_of(name: str) -> np.ndarray | None:
    weights = np.random.default_rng(6).uniform(0.1, 2, COLUMNS).astype(np.float32)
    return weights if TYPES[name].needs_imatrix else None


def blocks(name: str, values: np.ndarray, stock: Quantizer) -> bytes:
    return stock.quantize(TYPES[name].id, values, imatrix_of(name))


def test_the_types_are_upstreams(stock: Quantizer) -> None:
    for kind in TYPES.values():
        traits = stock.traits(kind.id)
        assert (kind.name, kind.block_size, kind.block_bytes) == (
            traits.type_name.decode(),
            traits.blck_size,
            traits.type_size,
        )


def test_every_type_that_upstream_quantizes_to_can_be_encoded() -> None:
    assert {name for name, kind in TYPES.items() if kind.encodes} == set(quant_models.TYPES)
    assert {name: TYPES[name].id for name in quant_models.TYPES} == quant_models.TYPES


@pytest.mark.parametrize("name", DECODED)
def test_blocks_of_zero_bytes_are_zeros(name: str, stock: Quantizer) -> None:
    zeros = bytes(TYPES[name].block_bytes * 3)
    assert not _native.decode(TYPES[name].id, zeros).any()
    if name != "F32":  # has no to_float of its own
        assert not stock.dequantize(TYPES[name].id, zeros).any()


@pytest.mark.parametrize("name", quant_models.TYPES)
def test_decoding_equals_upstream_and_the_gguf_package(
    name: str, values: np.ndarray, stock: Quantizer
) -> None:
    data = blocks(name, values, stock)
    decoded = _native.decode(TYPES[name].id, data)
    if name != "F32":
        np.testing.assert_array_equal(decoded, stock.dequantize(TYPES[name].id, data))
    kind = gguf.GGMLQuantizationType.__members__.get(name)
    try:
        expected = gguf.quants.dequantize(np.frombuffer(data, np.uint8).reshape(ROWS, -1), kind)
    except (NotImplementedError, AttributeError):
        return  # the package does not know the type
    np.testing.assert_allclose(decoded, expected.ravel(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", quant_models.TYPES)
def test_encoding_equals_upstream(name: str, values: np.ndarray, stock: Quantizer) -> None:
    weights = imatrix_of(name)
    assert _native.encode(TYPES[name].id, values, weights) == blocks(name, values, stock)
    other = np.random.default_rng(8).uniform(0.1, 2, COLUMNS).astype(np.float32)
    assert _native.encode(TYPES[name].id, values, other) == stock.quantize(TYPES[name].id, values, other)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_encoding_equals_the_gguf_package(name: str, values: np.ndarray) -> None:
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).tobytes()
    assert _native.encode(TYPES[name].id, values, None) == expected


@pytest.mark.parametrize("factor", [0.5, 2.0, 0.125, -1.0])
@pytest.mark.parametrize("name", quant_models.TYPES)
def test_powers_of_two_are_exact_where_a_type_has_scales(
    name: str, factor: float, values: np.ndarray, stock: Quantizer
) -> None:
    data = blocks(name, values[:2], stock)
    scaled, how = _native.scale_blocks(TYPES[name].id, data, factor)
    if how == "impossible":
        assert name in ("IQ1_M", "NVFP4") or (name == "MXFP4" and factor < 0)
        assert scaled == data
        return
    assert how == "exact"
    expected = _native.decode(TYPES[name].id, data) * np.float32(factor)
    np.testing.assert_array_equal(_native.decode(TYPES[name].id, scaled), expected)


@pytest.mark.parametrize("factor", [0.3, 1.7])
@pytest.mark.parametrize("name", quant_models.TYPES)
def test_other_factors_round_the_scales_only(
    name: str, factor: float, values: np.ndarray, stock: Quantizer
) -> None:
    data = blocks(name, values[:2], stock)
    scaled, how = _native.scale_blocks(TYPES[name].id, data, factor)
    if how == "impossible":
        assert name in ("IQ1_M", "NVFP4", "MXFP4")
        return
    wanted = _native.decode(TYPES[name].id, data).astype(float) * factor
    error = np.abs(_native.decode(TYPES[name].id, scaled) - wanted)
    assert error.max() <= 2.0**-8 * np.abs(wanted).max()
    assert how == "rounded"


def test_a_scale_that_would_overflow_is_left_alone() -> None:
    data = np.array([60000, 1], "<f2").tobytes()
    assert _native.scale_blocks(TYPES["F16"].id, data, 2.0) == (data, "impossible")


def test_a_scale_that_underflows_is_not_called_exact() -> None:
    data = np.array([2.0**-24, 1], "<f2").tobytes()
    scaled, how = _native.scale_blocks(TYPES["F16"].id, data, 0.5)
    assert how == "rounded"
    assert np.frombuffer(scaled, "<f2").tolist() == [0, 0.5]


def test_what_can_t_be_encoded_is_refused() -> None:
    row = np.ones((1, 256), np.float32)
    for name, rows, imatrix, message in (
        ("IQ2_XS", row, None, "needs an importance matrix"),
        ("Q4_K", row[:, :100], None, "rows of 100 values, expected a multiple of 256"),
        ("Q8_0", row * np.float32("nan"), None, "not finite"),
        ("F16", row * 1e6, None, "too large"),
        ("Q8_0", row, np.ones(32, np.float32), "importance matrix of 32 columns for rows of 256"),
    ):
        with pytest.raises(safex.InputError, match=message):
            _native.encode(TYPES[name].id, np.ascontiguousarray(rows), imatrix)
    with pytest.raises(safex.UnsupportedError, match="nothing can be encoded"):
        _native.encode(TYPES["Q8_K"].id, row, None)
    with pytest.raises(safex.InputError, match="no tensor type 999"):
        _native.decode(999, b"")
    with pytest.raises(safex.InputError, match="17 bytes, expected a multiple of 34"):
        _native.decode(TYPES["Q8_0"].id, bytes(17))
