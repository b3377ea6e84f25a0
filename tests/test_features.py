"""Features: what they promise, their file read by safetensors itself, and bad files of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import safex
from safex import Features, InputError, Prompt, PromptSet
from safex.experts import Expert
from safex.features_file import KIND, N_TOKENS, ROUTER_PROBS, content_of, layout_of
from safex.roster import Roster, draw_roster
from safex.tensors_file import CONTENT

MARK = KIND.mark

SETS = ["regular", "jailbreak", "benign", "benign"]
ROSTER = Roster({"id": [Expert(1, 0)]}, {"id": {"layer": [[Expert(1, 3)]]}})


def some_features(**changes: Any) -> Features:
    """2 experts, 4 prompts, width 3; no token of the third prompt selected expert 1:3."""
    values = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    values[1, 2] = np.nan
    given: dict[str, Any] = {
        "experts": ["1:0", "1:3"],
        "values": values,
        "sets": SETS,
        "n_tokens": [[3, 4, 5, 6], [1, 1, 0, 2]],
        "router_probs": [[0.5, 0.25, 0.125, 0.5], [0.25, 0.5, 0.5, 0.125]],
        "ids": ["a", 'with "quotes"', "c", "ü\nline"],
        "pairs": ["x", "x", None, None],
        "categories": ["fraud", "fraud", None, "facts"],
        "texts": ["one", "two", "drei", "vier\n"],
        "roster": ROSTER,
        "routing": "natural",
        "pool": "last",
        "phase": "suffix",
        "meta": {"model.fingerprint": "f" * 64, "model.name": "tiny", "tool_version": "0.1.0"},
    }
    return Features.from_arrays(**(given | changes))


def fields(features: Features) -> dict[str, Any]:
    return {
        name: getattr(features, name)
        for name in (
            *("experts", "sets", "ids", "pairs", "categories", "texts", "roster", "roles"),
            *("routing", "pool", "phase", "meta", "n_embd"),
        )
    }


# --- what they hold


def test_features_know_their_experts_roles_and_prompts() -> None:
    features = some_features()
    assert features.experts == [Expert(1, 0), Expert(1, 3)]
    assert features.roles == [["id"], ["control:layer"]]
    assert features.present("1:3").tolist() == [True, True, False, True]
    assert features.of((1, 0)).shape == (4, 3) and features.n_embd == 3
    with pytest.raises(InputError, match=r"expert 2:0 is not among the 2 experts .* layers 1.*another model"):
        features.of("2:0")


def test_missing_tokens_are_told_from_rows_of_nan() -> None:
    assert some_features(n_tokens=None).n_tokens.tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]


VALUES = some_features().values
BROKEN = [np.array(array) for array in VALUES]
BROKEN[0][1, 2] = np.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"values": BROKEN},
            "expert 1:0, prompt 'with \"quotes\"' of set 'jailbreak': holds NaN or infinite",
        ),
        ({"n_tokens": [[1] * 4, [1] * 4]}, "expert 1:3, prompt 'c' of set 'benign': holds NaN or infinite"),
        ({"n_tokens": [[1] * 4, [0] * 4]}, "expert 1:3, prompt 'a' of set 'regular': no token was pooled"),
        ({"n_tokens": [[1] * 3, [1] * 3]}, r"n_tokens is uint32 \[2, 3\], expected uint32 .* = \[2, 4\]"),
        ({"n_tokens": [[1] * 4, [-1] * 4]}, "n_tokens: expected whole numbers from 0 on"),
        ({"router_probs": [[0.5] * 3] * 2}, r"router_probs is float32 \[2, 3\], expected .* = \[2, 4\]"),
        ({"values": VALUES[:1]}, "one array for each of 2 experts, found 1"),
        ({"values": [VALUES[0], VALUES[1][:, :2]]}, r"expert 1:3: features are float32 \[4, 2\]"),
        ({"values": [VALUES[0][:3], VALUES[1][:3]]}, r"expected float32 \[n_prompts, n_embd\] = \[4, 3\]"),
        ({"values": [np.zeros(4), np.zeros(4)]}, r"values\[0\]: expected \[n_prompts, n_embd\], found \[4\]"),
        ({"values": [[[1, 2], [3]], VALUES[1]]}, r"values\[0\]: expected numbers in rows of one length"),
        ({"experts": ["1:0", "1:0"], "roster": None}, "expert 1:0 is listed twice"),
        ({"experts": ["1:0", "one"]}, "expert 'one'"),
        ({"ids": ["a", "b"]}, "ids: expected 4 values, one per prompt, found 2"),
        ({"sets": []}, "at least one prompt"),
        ({"pairs": ["x"]}, "pairs: expected 4 values"),
        ({"texts": ["one"]}, "texts: expected 4 values, one per prompt, found 1"),
        ({"ids": ["a", "b", "c", "c"]}, "two prompts of set 'benign' have the id 'c'"),
        ({"routing": "both"}, "routing is 'both', expected one of forced, natural"),
        ({"pool": "max"}, "pool is 'max', expected one of mean, last"),
        ({"phase": "end"}, "phase is 'end'"),
        ({"roster": Roster({"id": [Expert(3, 3)]})}, "expert 3:3 is not among the 2 experts"),
    ],
)
def test_bad_arrays_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        some_features(**changes)


def test_limited_features_are_those_of_limited_prompts() -> None:
    sets = ["regular"] * 5 + ["benign"] * 7
    values, texts = np.arange(24, dtype=float).reshape(1, 12, 2), [str(i) for i in range(12)]
    features = Features.from_arrays(experts=["0:1"], values=values, sets=sets, texts=texts)
    prompts = PromptSet(Prompt(str(i), set_, str(i)) for i, set_ in enumerate(sets)).limited(3)
    limited = features.limited(3)
    assert (
        limited.sets == prompts.sets
        and limited.ids == [p.id for p in prompts]
        and limited.texts == limited.ids
    )
    assert limited.of("0:1")[:, 0].tolist() == [2.0 * int(p.id) for p in prompts]
    assert features.limited(None) is features and features.limited(99).ids == features.ids


# --- the file


def test_a_saved_file_gives_the_same_features_mapped_and_read_only(tmp_path: Path) -> None:
    features = some_features()
    features.save(tmp_path / "f.safetensors")
    loaded = Features.load(tmp_path / "f.safetensors")
    assert fields(loaded) == fields(features)
    for ours, theirs in zip(loaded.values, features.values, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert isinstance(ours, np.memmap) and not ours.flags.writeable
    np.testing.assert_array_equal(loaded.n_tokens, features.n_tokens)
    assert not (tmp_path / "f.safetensors.tmp").exists()
    loaded.save(tmp_path / "g.safetensors")
    assert (tmp_path / "g.safetensors").read_bytes() == (tmp_path / "f.safetensors").read_bytes()


def test_safetensors_itself_reads_the_file(tmp_path: Path) -> None:
    features = some_features()
    features.save(tmp_path / "f.safetensors")
    tensors = load_file(tmp_path / "f.safetensors")
    assert set(tensors) == {"1:0", "1:3", "n_tokens", "router_probs"}
    np.testing.assert_array_equal(tensors["1:3"], features.of("1:3"))
    np.testing.assert_array_equal(tensors["n_tokens"], features.n_tokens)
    np.testing.assert_array_equal(tensors["router_probs"], features.router_probs)


def test_rows_may_be_written_in_any_order(tmp_path: Path) -> None:
    """As a dump writes them while it runs."""
    features = some_features()
    settings = {"routing": "natural", "pool": "last", "phase": "suffix"}
    f = features
    content = content_of(f.experts, f.prompts, f.texts, f.roster, settings, f.meta)
    layout = layout_of(f.experts, 4, 3, content)
    with (tmp_path / "f.safetensors").open("wb") as file:
        layout.write_rows(file.fileno(), N_TOKENS, 0, f.n_tokens)
        layout.write_rows(file.fileno(), "1:3", 2, f.of("1:3")[2:])
        layout.write_rows(file.fileno(), "1:0", 0, f.of("1:0"))
        layout.write_header(file.fileno())
        layout.write_rows(file.fileno(), "1:3", 0, f.of("1:3")[:2])
        layout.write_rows(file.fileno(), ROUTER_PROBS, 0, f.router_probs)
    features.save(tmp_path / "g.safetensors")
    assert (tmp_path / "g.safetensors").read_bytes() == (tmp_path / "f.safetensors").read_bytes()


def test_texts_beyond_the_format_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    features = some_features(texts=["x" * 30_000_000] * 4)
    with pytest.raises(
        InputError, match="all prompts take 114 MiB, a file of features holds 95: dump fewer prompts"
    ):
        features.save(tmp_path / "f.safetensors")
    assert not list(tmp_path.iterdir())


def tensors_of(features: Features) -> dict[str, np.ndarray]:
    tensors = {str(e): np.array(features.of(e)) for e in features.experts}
    return tensors | {"n_tokens": features.n_tokens, "router_probs": features.router_probs}


def rewritten(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], object]) -> None:
    """Some features' file, written by safetensors after a change of its tensors or metadata."""
    features = some_features()
    f = features
    settings = {"routing": f.routing, "pool": f.pool, "phase": f.phase}
    content = content_of(f.experts, f.prompts, f.texts, f.roster, settings, f.meta)
    tensors, metadata = tensors_of(features), {MARK: "1", CONTENT: content}
    change(tensors, metadata)
    plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    save_file(tensors, path, plain)


def test_a_file_written_by_safetensors_is_read(tmp_path: Path) -> None:
    rewritten(tmp_path / "f.safetensors", lambda tensors, metadata: None)
    assert fields(Features.load(tmp_path / "f.safetensors")) == fields(some_features())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.pop(MARK), "is a safetensors file, but not of features: expected one made by `dump`"),
        (lambda t, m: m.update({MARK: "9"}), "has schema version 9, expected 1"),
        (lambda t, m: m.update({CONTENT: "{"}), "damaged: its metadata 'safex' is no JSON"),
        (lambda t, m: m.update({CONTENT: "[]"}), "damaged: its metadata 'safex' is no object"),
        (lambda t, m: m[CONTENT].pop("prompts"), "damaged: prompts is NoneType, expected dict"),
        (lambda t, m: m[CONTENT]["prompts"].update(sets=[]), "damaged: holds no prompts"),
        (
            lambda t, m: m[CONTENT]["prompts"].update(ids=["a"]),
            "ids: expected 4 values, one per prompt, found 1",
        ),
        (lambda t, m: m[CONTENT].update(texts=["a"]), "texts: expected 4 values"),
        (lambda t, m: m[CONTENT].update(roster={"groups": 3}), "groups and controls are of no known shape"),
        (lambda t, m: m[CONTENT].update(roster=None), "groups and controls are of no known shape"),
        (lambda t, m: m[CONTENT].update(experts=["1:0"]), "holds 4 tensors, expected 3"),
        (lambda t, m: m[CONTENT].update(experts=["1:0", "a"]), "expert 'a'"),
        (lambda t, m: m[CONTENT].update(routing="none"), "routing is 'none'"),
        (lambda t, m: t.pop("1:3"), "holds 3 tensors, expected 4; 1:3 is missing"),
        (lambda t, m: t.pop("n_tokens"), "n_tokens is missing"),
        (lambda t, m: t.update({"1:3": t["1:3"].astype(np.float64)}), "tensor 1:3 is F64, expected F32"),
        (lambda t, m: t.update(n_tokens=t["n_tokens"].astype(np.int64)), "n_tokens is I64, expected U32"),
        (lambda t, m: t.update(router_probs=-t["router_probs"]), "router_probs is float32 .*, from 0 on"),
        (lambda t, m: t.update({"1:3": t["1:3"][:3]}), r"expert 1:3: features are float32 \[3, 3\]"),
        (lambda t, m: t.update({"1:3": t["1:3"][0]}), r"expert 1:3: features are float32 \[3\]"),
        (lambda t, m: t.update({"1:0": t["1:0"] * np.float32(np.nan)}), "holds NaN or infinite values"),
        (lambda t, m: t.update({"1:3": np.zeros((4, 3), np.float32)}), "no token was pooled"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "f.safetensors"
    rewritten(path, change)
    with pytest.raises(InputError, match=message) as caught:
        Features.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    some_features().save(tmp_path / "f.safetensors")
    whole = (tmp_path / "f.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 3, 8, 9, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"is empty|truncated or damaged"):
            Features.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="truncated or damaged"):
        Features.load(path)


@pytest.mark.parametrize("content", [b"GGUF" + b"\0" * 60, b"{}", b"\xff" * 100, b"\0" * 4096])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected a file of features|expected one made by `dump`"):
        Features.load(path)


def test_missing_files_and_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.safetensors: no such file"):
        Features.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match=r"can't be read|is no safetensors file"):
        Features.load(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        some_features().save(tmp_path / "nowhere" / "f.safetensors")


# --- the roster


def test_a_roster_holds_groups_and_controls_of_no_group() -> None:
    groups = {"id": ["0:1", "1:2"], "ctrl": ["0:3", "1:4", "1:5"], "none": []}
    activation = np.random.default_rng(0).dirichlet(np.ones(16), 2)
    roster = draw_roster(groups, layers=[0, 1], n_experts=16, activation=activation, draws=20, seed=1)
    members = {expert for experts in roster.groups.values() for expert in experts}
    assert list(roster.groups) == ["id", "ctrl"]
    assert roster.notes == ["group 'none' holds no experts: it is left out"]
    for name, draws in roster.controls.items():
        assert list(draws) == ["layer", "frequency"]
        for several in draws.values():
            assert len({tuple(draw) for draw in several}) == 20
            for draw in several:
                assert not members & set(draw)
                assert sorted(e.layer for e in draw) == sorted(e.layer for e in roster.groups[name])
    assert roster.experts[:5] == [*roster.groups["id"], *roster.groups["ctrl"]]
    assert len(roster.experts) == len(set(roster.experts)) == len(roster.roles)
    assert all(roster.roles[expert] in (["id"], ["ctrl"]) for expert in members)


def test_a_roster_says_which_controls_are_lacking() -> None:
    crowded = draw_roster({"a": ["0:0", "0:1"], "b": ["0:2", "0:3"]}, layers=[0], n_experts=5, draws=3)
    assert "'a': layer controls may hold experts of the other groups" in crowded.notes[0]
    assert crowded.controls["a"]["layer"]
    full = draw_roster({"a": ["0:0", "0:1", "0:2"]}, layers=[0], n_experts=5, draws=3)
    assert not full.controls["a"] and "2 are left for a control" in full.notes[0]
    few = draw_roster({"a": ["0:0"]}, layers=[0], n_experts=5, draws=20)
    assert len(few.controls["a"]["layer"]) == 4 and "4 of the 20 control masks" in few.notes[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_roster({"a": []}, [0], 4), "no group holds experts"),
        (lambda: draw_roster({"a": ["7:0"]}, [0], 4), "group 'a': .*no experts in layer 7"),
        (lambda: draw_roster({"a": ["0:0"]}, [0], 4, kinds=["active"]), "'active' is one mask and no draws"),
        (lambda: draw_roster({"a": ["0:0"]}, [0], 4, kinds=["odd"]), "control kind 'odd'"),
        (lambda: draw_roster({"a": ["0:0"]}, [0], 4, kinds=["frequency"]), "needs the activation"),
        (lambda: draw_roster({"a": ["0:0"]}, [0], 4, [[0.5, 0.5]]), r"activation has shape \[1, 2\]"),
        (lambda: draw_roster({"a": "0:0"}, [0], 4), "is the text '0:0', expected a list"),
        (lambda: Roster({"a": [Expert(0, 0), Expert(0, 0)]}), "group 'a' lists expert 0:0 twice"),
        (lambda: Roster({"a": []}), "group 'a' holds no experts"),
        (lambda: Roster({}, {"a": {}}), "there is no such group"),
    ],
)
def test_bad_rosters_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_features_are_a_public_name() -> None:
    assert safex.Features is Features
