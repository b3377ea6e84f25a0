"""Profiles: arrays, files and journals, checked against NumPy and the gguf package alone."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

import safex.profile
import safex.profile_arrays
from safex.errors import DiskError, InputError
from safex.profile import Profile
from safex.profile_arrays import PhaseArrays, PromptTable, Routers, prompts_hash
from safex.profile_journal import ProfileWriter

META = {
    "model.fingerprint": "f" * 64,
    "model.name": "Tiny MoE ü",
    "model.quant_types": ["Q4_K", "Q6_K"],
    "template_hash": "abc",
    "upstream_id": "0c1e57098bba+1234",
    "session.n_ubatch": 512,
    "session.flash_attn": False,
    "session.kv_type": "f16",
    "seed": 2**64 - 1,
    "created": "2026-10-03T10:00:00Z",
    "scale": 0.5,
}
FIELDS = ("counts", "gate_sum", "prob_sum", "n_tokens")


def draw_phase(rng, n_prompts, n_experts, top_k, low=0):
    """Draw tokens one by one and count what they select: no code shared with the package."""
    cube = (n_prompts, len(top_k), n_experts)
    counts, gate, prob = np.zeros(cube, np.uint32), np.zeros(cube), np.zeros(cube)
    n_tokens = rng.integers(low, 9, n_prompts)
    for p, n in enumerate(n_tokens):
        for layer, k in enumerate(top_k):
            for _ in range(n):
                chosen = rng.permutation(n_experts)[:k]
                counts[p, layer, chosen] += 1
                gate[p, layer, chosen] += rng.random(k)
                prob[p, layer, chosen] += rng.random(k)
    return PhaseArrays(counts, gate, prob, n_tokens.astype(np.int64))


def draw(seed=0, n_prompts=7, n_experts=10, top_k=(2, 3, 2), phases=("prompt", "suffix"), prefix="p", **meta):
    rng = np.random.default_rng(seed)
    sets = [("regular", "jailbreak", "böse")[i % 3] for i in range(n_prompts)]
    table = PromptTable.build(
        sets,
        [f"{prefix}{i}" for i in range(n_prompts)],
        [f"twin{i // 2}" if i % 4 else None for i in range(n_prompts)],
        [None if i % 2 else "cyber" for i in range(n_prompts)],
        [f"{i:064x}" for i in range(n_prompts)],
    )
    arrays = {
        name: draw_phase(rng, n_prompts, n_experts, top_k, low=int(name == "prompt")) for name in phases
    }
    layers = [3 + 2 * i for i in range(len(top_k))]
    return Profile(arrays, Routers.build(layers, n_experts, top_k), table, {**META, **meta})


def assert_same(a, b, skip_meta=()):
    assert a.phases == b.phases
    for phase in a.phases:
        for field, x, y in zip(FIELDS, a.phase(phase), b.phase(phase), strict=True):
            assert x.dtype == y.dtype, field
            np.testing.assert_array_equal(x, y)
    for name in ("sets", "ids", "pairs", "categories", "texts_hash", "layers", "n_experts", "top_k"):
        assert getattr(a, name) == getattr(b, name), name
    assert {k: v for k, v in a.meta.items() if k not in skip_meta} == {
        k: v for k, v in b.meta.items() if k not in skip_meta
    }


def row(profile, i):
    return {
        name: (
            int(profile.phase(name).n_tokens[i]),
            *(getattr(profile.phase(name), f)[i] for f in FIELDS[:3]),
        )
        for name in profile.phases
    }


def writer_for(profile, path, **options):
    options = {
        "meta": dict(profile.meta),
        "layers": profile.layers,
        "prompts_meta": profile.prompts,
        **options,
    }
    options = {"n_experts": profile.n_experts, "top_k": profile.top_k, "phases": profile.phases, **options}
    return ProfileWriter(path, **options)


def journal_of(path):
    return path.with_name(path.name + ".journal")


def test_fields_and_phases():
    p = draw()
    assert p.counts is p.phase("prompt").counts and p.counts.dtype == np.uint32
    assert p.phases == ("prompt", "suffix") and p.layers == [3, 5, 7] and p.top_k == [2, 3, 2]
    assert p.set_names == ["regular", "jailbreak", "böse"]
    assert "7 prompts x 3 layers x 10 experts" in repr(p)
    with pytest.raises(InputError, match="phase 'response' is not in this profile: it holds prompt, suffix"):
        p.phase("response")


def test_activation_is_sum_of_counts_over_sum_of_tokens():
    p = draw(n_prompts=9)
    for name, phase in ((None, "prompt"), ("jailbreak", "prompt"), ("böse", "suffix")):
        rows = [i for i, s in enumerate(p.sets) if name in (None, s)]
        arrays = p.phase(phase)
        expected = sum(arrays.counts[i].astype(float) for i in rows) / sum(
            int(arrays.n_tokens[i]) for i in rows
        )
        found = p.activation(name, phase=phase)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-15)
        np.testing.assert_allclose(found.sum(axis=1), p.top_k)
    with pytest.raises(InputError, match="set 'x' is not in this profile: it holds regular, jailbreak, böse"):
        p.activation("x")


def test_activation_walks_in_blocks(monkeypatch):
    p = draw(n_prompts=9)
    whole = p.activation("regular")
    monkeypatch.setattr(safex.profile_arrays, "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(p.activation("regular"), whole)


def test_activation_without_tokens():
    p = Profile.from_arrays(counts=np.zeros((1, 1, 4)), n_tokens=[0], sets=["benign"], top_k=2)
    with pytest.raises(InputError, match="phase 'prompt' has no tokens in set 'benign'"):
        p.activation("benign")


def test_select_takes_prompts_by_place_with_all_that_is_known_of_them():
    hashes = ["a" * 64, "b" * 64, "c" * 64]
    table = PromptTable.build(["regular", "benign", "regular"], pairs=["p", None, "q"], texts_hash=hashes)
    counts = np.array([[[3, 1]], [[0, 4]], [[2, 2]]], np.uint32)
    arrays = PhaseArrays(counts, counts * 0.5, counts * 0.25, np.array([4, 4, 4]))
    whole = Profile(
        {"prompt": arrays, "suffix": arrays}, Routers.build([5], 2, 1), table, {"prompts_hash": "whole"}
    )
    part = whole.select([2, 0])
    assert (part.ids, part.sets, part.pairs, part.layers) == (["2", "0"], ["regular"] * 2, ["q", "p"], [5])
    for phase in part.phases:
        for ours, theirs in zip(part.phase(phase), whole.phase(phase), strict=True):
            np.testing.assert_array_equal(ours, theirs[[2, 0]])
    assert part.meta["part_of"] == "whole" and part.meta["prompts_hash"] == prompts_hash(part.prompts)


def test_from_arrays_defaults():
    p = Profile.from_arrays(
        counts=np.array([[[2, 2, 0]], [[1, 2, 3]]]),
        n_tokens=[2, 3],
        sets=np.array(["a", "b"]),
        top_k=2,
        pairs=[7, 7],
    )
    assert (p.ids, p.pairs, p.layers, p.top_k) == (["0", "1"], ["7", "7"], [0], [2])
    assert p.counts.dtype == np.uint32 and p.gate_sum.shape == p.prob_sum.shape == (2, 1, 3)
    assert not p.gate_sum.any() and p.meta["absent"] == ["gate_sum", "prob_sum", "ids"]


def test_from_arrays_other_phases_and_given_sums():
    one = draw()
    same = Profile.from_arrays(
        **one.phase("prompt")._asdict(), phases={"suffix": one.phase("suffix")._asdict()}, sets=one.sets,
        top_k=one.top_k, layers=one.layers, ids=one.ids, pairs=one.pairs,
        categories=one.categories, meta=META,
    )  # fmt: skip
    same.texts_hash[:] = one.texts_hash
    assert_same(one, same)
    assert "absent" not in same.meta


BAD_ARRAYS = [
    (
        {"n_tokens": [4, 3]},
        r"phase 'prompt', prompt '1', layer 0: expected 3 selections \(top_k 1 x 3 tokens\), found 4",
    ),
    ({"top_k": 2}, r"prompt '0', layer 0: expected 8 selections \(top_k 2 x 4 tokens\), found 4"),
    ({"top_k": 3}, r"top_k: expected values from 1 to n_experts = 2, found \[3\]"),
    ({"top_k": [1, 1]}, "top_k: expected 1 values, one per layer, found 2"),
    ({"layers": [2, 2]}, r"layers: expected increasing block indices, found \[2, 2\]"),
    ({"layers": [1, 2]}, r"counts is uint32 \[2, 1, 2\], expected uint32 \[2, 2, 2\]"),
    ({"n_tokens": [4]}, r"n_tokens is int64 \[1\], expected int64 \[2\]"),
    ({"n_tokens": [4, -4]}, "prompt '1': n_tokens is -4, expected 0 to 2147483647"),
    ({"counts": [[[3, 1]], [[-1, 5]]]}, "counts: expected whole numbers from 0"),
    ({"counts": [[[3.5, 0.5]], [[0, 4]]]}, "counts: expected whole numbers, found fractions"),
    ({"counts": [[3, 1], [0, 4]]}, r"expected counts \[n_prompts, n_layers, n_experts\], found \(2, 2\)"),
    ({"counts": [[[3, 1]], [[4]]]}, "counts: rows differ in length"),
    (
        {"gate_sum": np.full((2, 1, 2), -1.0)},
        "layer 0, expert 0: expected a finite gate_sum of at least 0, found -1.0",
    ),
    (
        {"prob_sum": [[[0, 0]], [[0, np.nan]]]},
        "prompt '1', layer 0, expert 1: expected a finite prob_sum .* found nan",
    ),
    ({"prob_sum": [[[0, np.inf]], [[0, 0]]]}, "prompt '0', layer 0, expert 1: .* found inf"),
    ({"sets": ["a"]}, "ids|counts"),
    ({"sets": []}, "at least one prompt"),
    ({"sets": ["a", None]}, r"sets\[1\]: expected text, found not given"),
    ({"ids": ["x"]}, "ids: expected 2 values, one per prompt, found 1"),
    ({"ids": ["x", "x"]}, "two prompts of set 'a' have the id 'x'"),
    ({"ids": ["x", "\ud800"]}, r"ids\[1\]: expected text"),
    ({"pairs": [1.5, None]}, r"pairs\[0\]: expected text, found 1.5"),
    ({"phases": {"sufix": {}}}, "phase 'sufix': counts is missing"),
    (
        {"phases": {"sufix": {"counts": [[[4, 0]], [[4, 0]]], "n_tokens": [4, 4]}}},
        "unknown phase 'sufix': expected",
    ),
    (
        {"phases": {"suffix": {"counts": [[[4, 0]], [[4, 1]]], "n_tokens": [4, 4]}}},
        "phase 'suffix', prompt '1'",
    ),
    ({"phases": {"prompt": {}}}, "give the arrays of phase 'prompt' as counts"),
    ({"meta": {"layers": 3}}, "meta key 'layers' is a field of the profile itself"),
    ({"meta": {"x": {"a": 1}}}, "meta key 'x': can't store"),
    ({"meta": {"x": 2**64}}, "meta key 'x': can't store"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ARRAYS, ids=[str(i) for i in range(len(BAD_ARRAYS))])
def test_bad_arrays_are_refused_by_name(change, message):
    good = {"counts": [[[3, 1]], [[0, 4]]], "n_tokens": [4, 4], "sets": ["a", "a"], "top_k": 1}
    Profile.from_arrays(**good)
    with pytest.raises(InputError, match=message) as caught:
        Profile.from_arrays(**{**good, **change})
    assert "\n" not in str(caught.value)


def test_broken_invariant_is_refused_at_save(tmp_path):
    p = draw()
    p.counts[2, 1, 0] += 1
    with pytest.raises(InputError, match="phase 'prompt', prompt 'p2', layer 5: expected"):
        p.save(tmp_path / "x.profile.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(12))
def test_round_trip(tmp_path, seed):
    r = random.Random(seed)
    n_experts = r.randint(3, 40)
    p = draw(
        seed,
        n_prompts=r.randint(1, 12),
        n_experts=n_experts,
        top_k=[r.randint(1, 3) for _ in range(r.randint(1, 5))],
        phases=("prompt", "suffix", "response")[: r.randint(1, 3)],
    )
    path = tmp_path / "a.profile.gguf"
    p.save(path)
    q = Profile.load(path)
    assert_same(p, q)
    assert isinstance(q.counts, np.memmap) and not q.counts.flags.writeable
    again = tmp_path / "b.profile.gguf"
    q.save(again)
    assert again.read_bytes() == path.read_bytes()
    q.save(path)  # over the file that its arrays are mapped from
    assert path.read_bytes() == again.read_bytes()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.profile.gguf", "b.profile.gguf"]


def test_gguf_package_alone_reads_the_file(tmp_path):
    p = draw()
    p.save(tmp_path / "x.profile.gguf")
    reader = GGUFReader(tmp_path / "x.profile.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: t for t in reader.tensors}
    assert keys["general.architecture"] == "safex-profile"
    for key, value in META.items():
        assert keys["safex.profile." + key] == value, key
    assert keys["safex.profile.schema_version"] == 1
    assert keys["safex.profile.phases"] == ["prompt", "suffix"]
    assert (keys["safex.profile.layers"], keys["safex.profile.top_k"]) == ([3, 5, 7], [2, 3, 2])
    assert (keys["safex.profile.n_experts"], keys["safex.profile.ids"]) == (10, p.ids)
    for phase in p.phases:
        for field, kind in zip(FIELDS, ("I32", "F64", "F64", "I64"), strict=True):
            tensor = tensors[f"{phase}.{field}"]
            assert tensor.tensor_type.name == kind
            np.testing.assert_array_equal(tensor.data, getattr(p.phase(phase), field))
    assert list(tensors["prompt.counts"].shape) == [10, 3, 7]  # ggml's order: fastest first
    for name, table, column in (("set", "set_names", p.sets), ("pair", "pairs", p.pairs)):
        index = tensors[name].data
        assert index.dtype == np.int32
        assert [keys["safex.profile." + table][i] if i >= 0 else None for i in index] == column
    assert tensors["pair"].data[0] == -1
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)


def test_absent_sums_are_zeros_in_the_file(tmp_path):
    p = Profile.from_arrays(counts=[[[3, 1]]], n_tokens=[4], sets=["a"], top_k=1)
    p.save(tmp_path / "x")
    q = Profile.load(tmp_path / "x")
    assert_same(p, q)
    assert (q.pairs, q.categories, q.texts_hash) == ([None], [None], [None])


def test_every_truncation_is_one_clear_line(tmp_path):
    p = draw(n_prompts=2, n_experts=4, top_k=[1])
    path = tmp_path / "x.profile.gguf"
    p.save(path)
    data = path.read_bytes()
    for length in [*range(0, len(data) - 32, 7), len(data) - 32 + 7]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"is empty|not a GGUF|truncated") as caught:
            Profile.load(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_hostile_bytes_never_escape(tmp_path):
    """Random changes of header bytes: either the profile still loads or one InputError says why."""
    p = draw(n_prompts=2, n_experts=4, top_k=[1])
    path = tmp_path / "x.profile.gguf"
    p.save(path)
    data, rng = path.read_bytes(), random.Random(0)
    start = min(t.data_offset for t in GGUFReader(path).tensors)
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(4, start)] = rng.choice((0, 1, 255, rng.randrange(256)))
        path.write_bytes(damaged)
        try:
            Profile.load(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


def test_huge_array_length_is_refused_at_once(tmp_path):
    path = tmp_path / "x.profile.gguf"
    draw().save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"safex.profile.top_k") + len("safex.profile.top_k") + 8
    assert struct.unpack_from("<Q", data, at) == (3,)
    struct.pack_into("<Q", data, at, 2**62)
    path.write_bytes(data)
    with pytest.raises(InputError, match="truncated or damaged: its header can't be read"):
        Profile.load(path)


def test_counts_are_checked_at_load(tmp_path):
    path = tmp_path / "x.profile.gguf"
    draw().save(path)
    tensor = next(t for t in GGUFReader(path).tensors if t.name == "suffix.counts")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset + 4 * (4 * 30 + 2 * 10)] += 1  # prompt 4, third layer
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"phase 'suffix', prompt 'p4', layer 7: expected .* selections"):
        Profile.load(path)


def test_index_out_of_range_is_refused(tmp_path):
    path = tmp_path / "x.profile.gguf"
    draw().save(path)
    data = path.read_bytes()
    tensors = {t.name: t.data_offset for t in GGUFReader(path).tensors}
    for name, table, value in (("set", "set_names", -1), ("set", "set_names", 3), ("pair", "pairs", 99)):
        at = tensors[name]
        path.write_bytes(data[:at] + struct.pack("<i", value) + data[at + 4 :])
        with pytest.raises(InputError, match=f"damaged: an index into safex.profile.{table} is out of range"):
            Profile.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(InputError, match=r"x.gguf: no such file$"):
        Profile.load(path)
    journal_of(path).touch()
    with pytest.raises(InputError, match="no such file: its run is unfinished, go on with --resume"):
        Profile.load(path)
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        Profile.load(tmp_path)
    path.write_bytes(random.Random(1).randbytes(5000))
    with pytest.raises(InputError, match="is not a GGUF file"):
        Profile.load(path)
    writer = GGUFWriter(path, "qwen3moe")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("x", np.zeros(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="architecture 'qwen3moe', expected 'safex-profile'"):
        Profile.load(path)


def test_other_schema_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    draw().save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"schema_version") + len("schema_version") + 4] = 2
    path.write_bytes(data)
    with pytest.raises(InputError, match="has schema version 2, expected 1"):
        Profile.load(path)


def test_places_that_cant_be_written(tmp_path):
    p = draw()
    with pytest.raises(InputError, match="no such folder"):
        p.save(tmp_path / "no" / "x.profile.gguf")
    with pytest.raises(InputError, match="is not a regular file"):
        p.save("/dev/null")
    with pytest.raises(InputError, match="is not a regular file"):
        writer_for(p, tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        writer_for(p, tmp_path / "no" / "x.profile.gguf")
    assert Path("/dev/null").is_char_device() and list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def closed_folder():
    """A folder in which we can't write; root gives up its rights for the time."""
    folder, uid = Path(tempfile.mkdtemp()), os.geteuid()
    folder.chmod(0o555)
    if not uid:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(uid)
        shutil.rmtree(folder)


def test_no_permission():
    p = draw()
    with closed_folder() as closed:
        with pytest.raises(DiskError, match="can't be written: Permission denied"):
            p.save(closed / "x.profile.gguf")
        with pytest.raises(DiskError, match="can't be written: Permission denied"):
            writer_for(p, closed / "x.profile.gguf")


def test_merge_is_concatenation(monkeypatch):
    shards = [draw(i, n_prompts=3 + i, prefix=f"s{i}.") for i in range(3)]
    merged = Profile.merge(shards)
    for phase in merged.phases:
        for i in range(len(FIELDS)):
            np.testing.assert_array_equal(
                merged.phase(phase)[i], np.concatenate([s.phase(phase)[i] for s in shards])
            )
            assert merged.phase(phase)[i].dtype == shards[0].phase(phase)[i].dtype
    for name in ("ids", "sets", "pairs", "categories", "texts_hash"):
        assert getattr(merged, name) == [v for s in shards for v in getattr(s, name)]
    monkeypatch.setattr(safex.profile, "IN_MEMORY_BYTES", 0)
    on_disk = Profile.merge(shards)
    assert isinstance(on_disk.counts, np.memmap)
    assert_same(merged, on_disk)


def test_merge_of_shards_is_the_whole_run(tmp_path):
    whole = draw(n_prompts=8)
    whole.meta["prompts_hash"] = prompts_hash(whole.prompts)
    shards = []
    for rows in (slice(0, 3), slice(3, 4), slice(4, 8)):
        arrays = {n: PhaseArrays(*(a[rows] for a in whole.phase(n))) for n in whole.phases}
        table = PromptTable(**{k: v[rows] for k, v in vars(whole.prompts).items()})
        shard = Profile(arrays, whole.routers, table, {**whole.meta, "prompts_hash": prompts_hash(table)})
        shard.save(tmp_path / f"{rows.start}.gguf")
        shards.append(Profile.load(tmp_path / f"{rows.start}.gguf"))
    assert_same(Profile.merge(shards), whole)


def test_merge_numbers_prompts_without_ids():
    one = {"counts": [[[3, 1]], [[0, 4]]], "n_tokens": [4, 4], "sets": ["a", "b"], "top_k": 1}
    a, named = Profile.from_arrays(**one), Profile.from_arrays(**one, ids=["0", "x"])
    merged = Profile.merge([a, a])
    assert merged.ids == ["0", "1", "2", "3"] and merged.gate_sum.shape == (4, 1, 2)
    with pytest.raises(InputError, match="prompt '0' of set 'a' occurs in the profiles more than once"):
        Profile.merge([a, named])


MISMATCHES = [
    ({"model.fingerprint": "e" * 64}, "model.fingerprint: 'ffff.*' and 'eeee.*'"),
    ({"template_hash": "xyz"}, "template_hash: 'abc' and 'xyz'"),
    ({"template_hash": None}, "template_hash: 'abc' and not given"),
    ({"upstream_id": "other"}, "upstream_id: '0c1e57098bba.1234' and 'other'"),
    ({"session.kv_type": "q8_0"}, "session.kv_type: 'f16' and 'q8_0'"),
    ({"session.flash_attn": True}, "session.flash_attn: False and True"),
    ({"model.quant_types": ["Q4_K", "Q8_0"]}, r"model.quant_types\[1\]: 'Q6_K' and 'Q8_0'"),
    ({"phases": ("prompt",)}, "phases: 2 values and 1 values"),
    ({"n_experts": 11}, "n_experts: 10 and 11"),
    ({"top_k": (2, 3, 4)}, r"top_k\[2\]: 2 and 4"),
    ({"top_k": (2, 3)}, "layers: 3 values and 2 values"),
    ({"absent": ["gate_sum"]}, "gate_sum recorded: True and False"),
]


@pytest.mark.parametrize(("change", "message"), MISMATCHES)
def test_merge_refuses_mismatches_by_name(change, message):
    shards = [draw(), draw(1, prefix="q"), draw(2, prefix="r", **change)]
    with pytest.raises(
        InputError, match="profiles 1 and 3 are not shards of one run: they differ in " + message
    ):
        Profile.merge(shards)


def test_merge_allows_what_doesnt_change_routing():
    merged = Profile.merge([draw(), draw(1, prefix="q", seed_=1, created="2026-10-04T10:00:00Z", scale=0.25)])
    assert merged.meta["created"] == "2026-10-04T10:00:00Z" and "scale" not in merged.meta


def test_merge_refuses_duplicates_and_nothing():
    with pytest.raises(
        InputError, match="prompt 'p0' of set 'regular' occurs in the profiles more than once"
    ):
        Profile.merge([draw(), draw(1)])
    with pytest.raises(InputError, match="at least one"):
        Profile.merge([])


@pytest.mark.parametrize("phases", [("prompt",), ("prompt", "suffix", "response")])
def test_writer_makes_the_file_that_save_makes(tmp_path, phases):
    p = draw(n_prompts=9, phases=phases)
    p.save(tmp_path / "saved")
    order = list(range(9))
    random.Random(0).shuffle(order)
    (tmp_path / "streamed.tmp").write_bytes(b"left by a run that was killed while it finished" * 999)
    steps = []
    with writer_for(p, tmp_path / "streamed", phases=phases[::-1]) as writer:
        for i in order:
            writer.append(i, row(p, i))
        assert writer.done == set(range(9)) and not writer.resumed
        assert writer.finish(lambda *step: steps.append(step)) == tmp_path / "streamed"
    assert (tmp_path / "saved").read_bytes() == (tmp_path / "streamed").read_bytes()
    assert steps == [(i + 1, 9) for i in range(9)]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["saved", "streamed"]


def test_resume_keeps_what_was_done_and_the_time_of_the_start(tmp_path):
    p, path = draw(), tmp_path / "x"
    with writer_for(p, path) as writer:
        for i in (4, 0):
            writer.append(i, row(p, i))
    assert journal_of(path).exists() and not path.exists()
    with writer_for(p, path, resume=True, meta={**p.meta, "created": "later"}) as writer:
        assert writer.resumed and writer.done == {0, 4} and writer.dropped_bytes == 0
        for i in sorted(set(range(7)) - writer.done):
            writer.append(i, row(p, i))
        writer.finish()
    assert_same(Profile.load(path), p)
    assert not journal_of(path).exists()


def test_resume_without_journal_starts_fresh(tmp_path):
    with writer_for(draw(), tmp_path / "x", resume=True) as writer:
        assert not writer.resumed and writer.done == set()
    assert list(tmp_path.iterdir()) == []  # a journal without prompts is not left behind


def test_torn_tail_is_cut_at_every_length(tmp_path):
    p, path = draw(n_prompts=3, n_experts=4, top_k=[1]), tmp_path / "x"
    sizes = []
    with writer_for(p, path) as writer:
        sizes.append(journal_of(path).stat().st_size)
        for i in range(3):
            writer.append(i, row(p, i))
            sizes.append(journal_of(path).stat().st_size)
    whole = journal_of(path).read_bytes()
    for length in range(sizes[1], len(whole) + 1):
        journal_of(path).write_bytes(whole[:length])
        kept = sum(length >= size for size in sizes[1:])
        with writer_for(p, path, resume=True) as writer:
            assert writer.done == set(range(kept))
            assert writer.dropped_bytes == length - sizes[kept]
        assert journal_of(path).stat().st_size == sizes[kept]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_torn_header_starts_fresh(tmp_path, share):
    p, path = draw(), tmp_path / "x"
    writer = writer_for(p, path)
    header = journal_of(path).read_bytes()
    writer.close()
    journal_of(path).write_bytes(header[: int(share * len(header))])
    with writer_for(p, path, resume=True) as writer:
        for i in range(7):
            writer.append(i, row(p, i))
        writer.finish()
    assert_same(Profile.load(path), p)


def test_damaged_records(tmp_path):
    p, path = draw(), tmp_path / "x"
    with writer_for(p, path) as writer:
        writer.append(0, row(p, 0))
        size = journal_of(path).stat().st_size
        writer.append(1, row(p, 1))
    whole = journal_of(path).read_bytes()
    journal_of(path).write_bytes(whole[:size] + bytes(len(whole) - size))  # zeros, as after a power loss
    with writer_for(p, path, resume=True) as writer:
        assert writer.done == {0} and writer.dropped_bytes == len(whole) - size
    changed = bytearray(whole)
    changed[40] ^= 1
    journal_of(path).write_bytes(changed)
    with pytest.raises(InputError, match="its header is damaged: delete it to start again"):
        writer_for(p, path, resume=True)
    journal_of(path).write_bytes(b"not ours at all")
    with pytest.raises(InputError, match="is not a journal"):
        writer_for(p, path, resume=True)
    assert journal_of(path).read_bytes() == b"not ours at all"


def test_damage_found_at_finish_keeps_the_journal(tmp_path):
    p, path = draw(), tmp_path / "x"
    with writer_for(p, path) as writer:
        for i in range(7):
            writer.append(i, row(p, i))
        with journal_of(path).open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"???")
        with pytest.raises(
            InputError, match="journal: damaged behind prompt 6: --resume repeats what is lost"
        ):
            writer.finish()
    with writer_for(p, path, resume=True) as writer:
        assert writer.done == set(range(6))
        writer.append(6, row(p, 6))
        writer.finish()
    assert_same(Profile.load(path), p)


def test_unfinished_run_and_finished_file_are_not_overwritten(tmp_path):
    p, path = draw(), tmp_path / "x"
    with writer_for(p, path) as writer:
        writer.append(0, row(p, 0))
    before = journal_of(path).read_bytes()
    for force in (False, True):
        with pytest.raises(
            InputError, match=r"an unfinished run lies beside it: --resume .*delete .*x\.journal"
        ):
            writer_for(p, path, force=force)
    assert journal_of(path).read_bytes() == before
    journal_of(path).unlink()
    path.write_bytes(b"finished")
    for resume in (False, True):
        with pytest.raises(InputError, match="exists already: --force to replace it"):
            writer_for(p, path, resume=resume)
    assert path.read_bytes() == b"finished" and not journal_of(path).exists()
    with writer_for(p, path, force=True) as writer:
        for i in range(7):
            assert path.read_bytes() == b"finished"
            writer.append(i, row(p, i))
        writer.finish()
    assert_same(Profile.load(path), p)


OTHER_RUNS = [
    ({"meta": {**META, "template_hash": "xyz"}}, "template_hash: 'abc' and 'xyz'"),
    ({"meta": {**META, "session.n_ubatch": 64}}, "session.n_ubatch: 512 and 64"),
    ({"meta": {k: v for k, v in META.items() if k != "seed"}}, "seed: 18446744073709551615 and not given"),
    ({"layers": [3, 5, 8]}, r"layers\[2\]: 7 and 8"),
    ({"top_k": [2, 3, 1]}, r"top_k\[2\]: 2 and 1"),
    ({"n_experts": 12}, "n_experts: 10 and 12"),
    ({"phases": ("prompt",)}, "phases: 2 values and 1 values"),
    (
        {"prompts_meta": {"sets": ["a"] * 7, "ids": [f"p{i}" for i in range(7)]}},
        r"sets\[0\]: 'regular' and 'a'",
    ),
    ({"prompts_meta": {"sets": ["a"] * 7}}, r"ids\[0\]: 'p0' and '0'"),
    ({"prompts_meta": {"sets": ["a"] * 6}}, "ids: 7 values and 6 values"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_RUNS, ids=[m for _, m in OTHER_RUNS])
def test_resume_of_another_run_is_refused_by_name(tmp_path, change, message):
    p, path = draw(), tmp_path / "x"
    with writer_for(p, path) as writer:
        writer.append(0, row(p, 0))
    before = journal_of(path).read_bytes()
    with pytest.raises(InputError, match="the unfinished run and this one differ in " + message):
        writer_for(p, path, resume=True, **change)
    assert journal_of(path).read_bytes() == before


def test_append_refuses(tmp_path):
    p = draw()
    good = row(p, 0)
    n, counts, gate, prob = good["prompt"]
    writer = writer_for(p, tmp_path / "x")
    writer.append(0, good)
    for index, phases, message in (
        (0, good, r"prompt 'p0' \(index 0\) is recorded already"),
        (7, good, "prompt index 7: expected 0 to 6"),
        (1, {"prompt": good["prompt"]}, "expected phases .*'suffix'.*, found .'prompt'"),
        (
            1,
            {**good, "prompt": (n + 1, counts, gate, prob)},
            "phase 'prompt', prompt 'p1', layer 3: expected",
        ),
        (1, {**good, "prompt": (n, counts, -gate, prob)}, "expected a finite gate_sum of at least 0"),
        (1, {**good, "prompt": (n, counts[1:], gate, prob)}, r"counts is uint32 \[1, 2, 10\], expected"),
        (1, {**good, "suffix": (n, counts.astype(int), gate, prob)}, "phase 'suffix': counts is int64"),
    ):
        with pytest.raises(InputError, match=message):
            writer.append(index, phases)
    with pytest.raises(InputError, match="6 of 7 prompts are missing, first 'p1'"):
        writer.finish()
    writer.close()
    writer.close()
    with pytest.raises(InputError, match="the writer is closed"):
        writer.append(1, good)
    assert writer_for(p, tmp_path / "x", resume=True).done == {0}


def test_two_runs_cant_write_one_journal(tmp_path):
    p, path = draw(), tmp_path / "x"
    with writer_for(p, path) as writer:
        writer.append(0, row(p, 0))
        for resume in (False, True):
            with pytest.raises(InputError, match=r"x\.journal: another run is writing this file"):
                writer_for(p, path, resume=resume)
        for i in range(1, 7):
            writer.append(i, row(p, i))
        writer.finish()
    assert_same(Profile.load(path), p)


WORKER = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from test_profile import draw, row, writer_for
p = draw(5, n_prompts=200)
with writer_for(p, {path!r}, resume=True) as writer:
    print("at", len(writer.done), flush=True)
    for i in range(200):
        if i not in writer.done:
            writer.append(i, row(p, i))
            print(i, flush=True)
            time.sleep(0.002)
    writer.finish()
"""


def test_sigkill_loses_nothing(tmp_path):
    p, path = draw(5, n_prompts=200), tmp_path / "x.profile.gguf"
    root = Path(safex.profile.__file__).parent.parent
    code = WORKER.format(root=str(root), tests=str(Path(__file__).parent), path=str(path))
    for stop_after in (20, 60):
        worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        reported = [worker.stdout.readline() for _ in range(stop_after)]
        worker.send_signal(signal.SIGKILL)
        reported += worker.stdout.readlines()
        worker.wait()
        numbers = {int(line) for line in reported if line.endswith("\n") and line[0].isdigit()}
        with writer_for(p, path, resume=True) as writer:
            assert writer.resumed and numbers <= writer.done < set(range(200))
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    p.save(tmp_path / "whole")
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["whole", "x.profile.gguf"]


@contextlib.contextmanager
def small_disk(folder, size):
    """A real file system of ``size`` bytes where we may mount one, else a limit on the size of a file."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and not subprocess.run(command, capture_output=True).returncode
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder, size):
    if folder.is_mount():
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


FULL = "can't be written: (No space left on device|File too large)"


def test_disk_full_while_running_and_while_finishing(tmp_path):
    p = draw(3, n_prompts=60, n_experts=64, phases=("prompt",))
    p.save(tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    path = disk / "x.profile.gguf"
    with small_disk(disk, 24576):
        with writer_for(p, path) as writer, pytest.raises(DiskError, match=FULL):
            for i in range(60):
                writer.append(i, row(p, i))
        done = len(writer.done)
        assert 5 < done < 60
        with writer_for(p, path, resume=True) as writer:
            assert len(writer.done) == done and writer.dropped_bytes == 0
            grow(disk, 131072)
            for i in range(done, 60):
                writer.append(i, row(p, i))
            with pytest.raises(DiskError, match=FULL):
                writer.finish()
            assert [f.name for f in disk.iterdir()] == ["x.profile.gguf.journal"]
            with pytest.raises(DiskError, match=FULL):
                p.save(disk / "y")
            assert [f.name for f in disk.iterdir()] == ["x.profile.gguf.journal"]
        grow(disk, 4 << 20)
        with writer_for(p, path, resume=True) as writer:
            assert len(writer.done) == 60
            writer.finish()
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_short_write_then_error_leaves_no_torn_record(tmp_path, monkeypatch):
    """A device that takes a part of a record and then refuses, also the truncation that would undo it."""
    p, path = draw(), tmp_path / "x"
    real, calls = os.pwrite, []

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_then_refuse(fd, data, offset):
        calls.append(len(data))
        return real(fd, data[: len(data) // 2], offset) if len(calls) == 1 else refuse()

    with writer_for(p, path) as writer:
        writer.append(0, row(p, 0))
        size = journal_of(path).stat().st_size
        with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left on device"):
            patch.setattr(os, "pwrite", half_then_refuse)
            patch.setattr(os, "ftruncate", refuse)
            writer.append(1, row(p, 1))
        assert journal_of(path).stat().st_size > size and len(calls) == 2
    with writer_for(p, path, resume=True) as writer:
        assert writer.done == {0} and writer.dropped_bytes > 0
        assert journal_of(path).stat().st_size == size


def anonymous_mb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_stays_constant(tmp_path):
    """A profile of 157 MB is streamed, finished and loaded within some MB of anonymous memory."""
    n, cube = 2000, (16, 256)
    counts = np.zeros(cube, np.uint32)
    counts[:, ::2] = 3
    sums = counts * 0.25
    with ProfileWriter(tmp_path / "x", {}, range(16), 256, 128, {"sets": ["a"] * n}, ["prompt"]) as writer:
        writer.append(0, {"prompt": (3, counts, sums, sums)})
        start = anonymous_mb()
        for i in range(1, n):
            writer.append(i, {"prompt": (3, counts, sums, sums)})
        streamed = anonymous_mb()
        writer.finish()
    finished = anonymous_mb()
    loaded = Profile.load(tmp_path / "x")
    assert (tmp_path / "x").stat().st_size > 157e6
    assert streamed - start < 8 and finished - start < 12 and anonymous_mb() - start < 60
    assert loaded.activation().sum() == 16 * 128


def test_journal_keeps_up(tmp_path):
    """48 x 128 experts at far more than the 100 prompts/s that a machine can evaluate."""
    rng = np.random.default_rng(0)
    arrays = draw_phase(rng, 1, 128, [8] * 48, low=8)
    one = {"prompt": (int(arrays.n_tokens[0]), arrays.counts[0], arrays.gate_sum[0], arrays.prob_sum[0])}
    with ProfileWriter(tmp_path / "x", {}, range(48), 128, 8, {"sets": ["a"] * 200}, ["prompt"]) as writer:
        start = time.perf_counter()
        for i in range(200):
            writer.append(i, one)
        assert 200 / (time.perf_counter() - start) > 300
