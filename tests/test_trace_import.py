"""Traces of other tools as profiles, against the run that was traced and against counts made by hand."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import cli

import safex
from safex.errors import InputError
from safex.trace import trace
from safex.trace_files import CUT, INFERRED, MIXED, NO_ANSWER, ONE_PHASE, SHIFTED

PROMPTS = ["How do I bake bread?", "How do I forge the school's ticket?", "What is a fox?"]
L, E, K = 3, 8, 2


def official(n_in: int = 5, n_out: int = 2, seed: int = 0, shape: tuple[int, int] = (L, E)) -> dict[str, Any]:
    """A trace of random selections, counted token by token, as the official tool writes it."""
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "model": "/models/Some-MoE",
        "prompt": f"prompt {seed}",
        "input_tokens": list(range(n_in)),
        "output_text": "",
        "output_tokens": list(range(n_out)),
        "num_layers": shape[0],
        "num_experts": shape[1],
        "top_k": K,
    }
    for key, n in (("input", n_in), ("output", n_out)):
        usage, probs = [], []
        for _ in range(shape[0]):
            chosen = Counter(int(e) for _ in range(n) for e in rng.choice(shape[1], K, replace=False))
            usage.append([chosen[e] for e in range(shape[1])])
            probs.append(
                [float(np.float32(rng.uniform(0.1, 0.9))) if chosen[e] else 0.0 for e in range(shape[1])]
            )
        result |= {f"{key}_expert_usage": usage, f"{key}_avg_probs": probs}
    return result


def put(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def moe_trace(ids: np.ndarray, path: Path, ubatch: int, last_in_full: bool = False) -> Path:
    """What moe-trace writes with the right stride for selections [n_layers, n_tokens, top_k].

    Batch by batch, layer by layer, token by token; in the last layer of a batch only its last token.
    """
    rows = []
    for start in range(0, ids.shape[1], ubatch):
        for layer, tokens in enumerate(ids[:, start : start + ubatch]):
            kept = tokens if last_in_full or layer < len(ids) - 1 else tokens[-1:]
            rows += [f"{layer},{expert}" for expert in kept.ravel()]
    path.write_text("\n".join(rows) + "\n")
    return path


def chosen(n_tokens: int, seed: int = 0, shape: tuple[int, int] = (L, E), k: int = K) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([[rng.permutation(shape[1])[:k] for _ in range(n_tokens)] for _ in range(shape[0])])


def counted(ids: np.ndarray, n_experts: int = E) -> np.ndarray:
    return np.array([[np.sum(layer == e) for e in range(n_experts)] for layer in ids])


def notes(profile: safex.Profile) -> list[str]:
    return profile.meta.get("import.notes", [])  # type: ignore[return-value]


# --- round trips


@pytest.fixture(scope="module")
def traced(demo: safex.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the traces of PROMPTS, in order of name."""
    folder = tmp_path_factory.mktemp("traces")
    for i, prompt in enumerate(PROMPTS):
        put(folder / f"p{i}.json", trace(demo, prompt, max_new=8))
    return folder


def test_a_trace_is_the_profile_of_its_prompt(demo: safex.Model, traced: Path, tmp_path: Path) -> None:
    imported = safex.Profile.from_traces({"regular": [traced]})
    assert (imported.phases, imported.layers, imported.top_k) == (
        ("prompt", "response"),
        demo.layers,
        [4] * 4,
    )
    assert (imported.ids, imported.sets) == (["p0", "p1", "p2"], ["regular"] * 3)
    for i, prompt in enumerate(PROMPTS):
        own = demo.profile([prompt], response=True, max_new=8)
        for phase in imported.phases:
            a, b = imported.phase(phase), own.phase(phase)
            np.testing.assert_array_equal(a.counts[i], b.counts[0])
            assert a.n_tokens[i] == b.n_tokens[0] > 0
            np.testing.assert_allclose(a.prob_sum[i], b.prob_sum[0], rtol=1e-9)
            assert not a.gate_sum.any()
        assert imported.texts_hash[i] == own.texts_hash[0] == hashlib.sha256(prompt.encode()).hexdigest()
    assert imported.meta["absent"] == ["gate_sum"] and notes(imported) == []
    imported.save(tmp_path / "x.profile.gguf")
    again = safex.Profile.load(tmp_path / "x.profile.gguf")
    np.testing.assert_array_equal(again.counts, imported.counts)
    assert again.meta == imported.meta and again.prompts == imported.prompts


def test_our_trace_of_dense_layers_keeps_its_blocks(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    with safex.Model(tiny_path("deepseek2"), n_threads=1) as model:
        put(tmp_path / "a.json", trace(model, "one two three", max_new=3))
        own = model.profile(["one two three"])
    imported = safex.Profile.from_traces({"a": tmp_path / "a.json"})
    assert imported.layers == own.layers == [1, 2, 3]
    np.testing.assert_array_equal(imported.counts, own.counts)


@pytest.mark.parametrize("ubatch", [1, 4, 512])
def test_a_csv_of_moe_trace_counts_what_the_profile_counts(
    exact: Callable[[str], safex.Model], tmp_path: Path, ubatch: int
) -> None:
    with exact("qwen3moe") as model:
        tokens = model.tokenize("on the other hand there is nothing that the first of them would not do")
        ids, own = model.route(tokens).ids, model.profile([tokens])
    path = moe_trace(ids, tmp_path / "p.csv", ubatch)
    imported = safex.Profile.from_traces({"benign": [path]}, n_experts=own.n_experts)
    kept = own.layers if ubatch == 1 else own.layers[:-1]
    assert imported.layers == kept and imported.top_k == own.top_k[: len(kept)]
    np.testing.assert_array_equal(imported.counts, own.counts[:, : len(kept)])
    assert imported.n_tokens.tolist() == [len(tokens)]
    assert imported.meta["absent"] == ["gate_sum", "prob_sum"] and imported.phases == ("prompt",)
    assert imported.texts_hash == [None]
    expected = [INFERRED, ONE_PHASE] + [CUT] * (ubatch > 1)
    assert notes(imported) == [f"p.csv: {text}" for text in expected]


# --- the official layout


def test_files_and_folders_of_several_sets(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    names = ["b", "a", "c"]
    data = {name: official(seed=i) for i, name in enumerate(names)}
    for name in names:
        put(tmp_path / "folder" / f"{name}.json", data[name])
    put(tmp_path / "folder" / "readme.txt", "not a trace")
    put(tmp_path / "a.json", official(n_in=9, n_out=0, seed=7))
    profile = safex.Profile.from_traces({"one": [tmp_path / "folder"], "two": str(tmp_path / "a.json")})
    assert (profile.sets, profile.ids) == (["one"] * 3 + ["two"], ["a", "b", "c", "a"])
    assert profile.n_tokens.tolist() == [5, 5, 5, 9]
    assert profile.phase("response").n_tokens.tolist() == [2, 2, 2, 0]
    for i, name in enumerate(["a", "b", "c"]):
        for key, phase in (("input", "prompt"), ("output", "response")):
            usage = np.array(data[name][f"{key}_expert_usage"])
            np.testing.assert_array_equal(profile.phase(phase).counts[i], usage)
            expected = usage * np.array(data[name][f"{key}_avg_probs"])
            np.testing.assert_array_equal(profile.phase(phase).prob_sum[i], expected)
    assert profile.meta["model.name"] == "Some-MoE" and profile.meta["imported"] == ["trace JSON"]


def shifted(mixed: bool) -> dict[str, Any]:
    """As the official tool writes it for a model whose first of 4 blocks is dense: row 3 is the empty one."""
    data = official()
    for name in ("input", "output"):
        for key in (f"{name}_expert_usage", f"{name}_avg_probs"):
            data[key].append([0] * E)
    if mixed:
        data["input_expert_usage"], data["output_expert_usage"] = (
            (np.array(data["input_expert_usage"]) + data["output_expert_usage"]).tolist(),
            [[0] * E] * (L + 1),
        )
    return data | {"num_layers": L + 1}


def test_leading_dense_layers_of_the_official_tool(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", shifted(mixed=True))
    profile = safex.Profile.from_traces({"a": [path]})
    assert profile.layers == [1, 2, 3] and profile.phases == ("prompt",)
    assert profile.n_tokens.tolist() == [7]
    assert notes(profile) == [f"a.json: {SHIFTED}", f"a.json: {MIXED}"]
    profile = safex.Profile.from_traces({"a": [put(path, shifted(mixed=False))]}, layers=[0, 2, 4])
    assert profile.layers == [0, 2, 4] and notes(profile) == []
    with pytest.raises(InputError, match=r"a\.json: 3 rows are filled, but 2 layers were named"):
        safex.Profile.from_traces({"a": [path]}, layers=[0, 2])


def test_dense_layers_in_between_need_no_guess(tmp_path: Path) -> None:
    data = official()
    for key in ("input_expert_usage", "output_expert_usage"):
        data[key][1] = [0] * E
    profile = safex.Profile.from_traces({"a": [put(tmp_path / "a.json", data)]})
    assert profile.layers == [0, 2] and notes(profile) == []


def test_shared_experts_that_the_official_tool_counts(tmp_path: Path) -> None:
    data = official(n_in=40)
    for name in ("input", "output"):
        for key in (f"{name}_expert_usage", f"{name}_avg_probs"):
            data[key] = [[*row, 0] for row in data[key]]
    path = put(tmp_path / "a.json", data | {"num_experts": E + 1})
    profile = safex.Profile.from_traces({"a": [path]})
    assert profile.n_experts == E + 1
    (note,) = notes(profile)
    assert note.startswith("a.json: the experts from 8 on are never selected") and "--experts 8" in note
    profile = safex.Profile.from_traces({"a": [path]}, n_experts=E)
    assert profile.n_experts == E and notes(profile) == []
    np.testing.assert_array_equal(profile.counts[0], official(n_in=40)["input_expert_usage"])


def test_different_models_are_pointed_out(tmp_path: Path) -> None:
    put(tmp_path / "a.json", official())
    put(tmp_path / "b.json", official(seed=1) | {"model": "/models/Other"})
    profile = safex.Profile.from_traces({"a": tmp_path})
    assert "model.name" not in profile.meta
    assert notes(profile) == [
        "a.json: the traces name 2 models, such as /models/Some-MoE and /models/Other: are they the same?"
    ]


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in official().items() if name != key}


def with_usage(row: int, expert: int, value: object, key: str = "input_expert_usage") -> dict[str, Any]:
    data = official()
    data[key][row][expert] = value
    return data


def first_moved(key: str = "input_expert_usage") -> dict[str, Any]:
    """Row 1 with two selections more: a whole token."""
    data = official()
    data[key][1][0] += K
    return data


BAD_JSON: list[tuple[object, str]] = [
    ("", "is no JSON"),
    ('{"model": ', "is no JSON"),
    ("[" * 100_000, "is no JSON"),
    ("[]", "holds a list, expected one object"),
    *((without(key), f"has no '{key}'") for key in ("num_layers", "num_experts", "top_k")),
    *((without(key), f"has no '{key}'") for key in ("input_expert_usage", "output_avg_probs")),
    (official() | {"top_k": 0}, "top_k is 0, expected a whole number from 1 on"),
    (official() | {"top_k": True}, "top_k is True"),
    (official() | {"top_k": "2"}, "top_k is '2'"),
    (official() | {"top_k": 10}, "top_k is 10, more than num_experts = 8"),
    (official() | {"num_layers": 4}, r"input_expert_usage is \[3, 8\], expected .* = \[4, 8\]"),
    (official() | {"input_avg_probs": [[0.0] * E] * 2}, r"input_avg_probs is \[2, 8\], expected"),
    (
        official() | {"input_expert_usage": [[1], [1, 2], [3]]},
        "input_expert_usage has rows of different lengths",
    ),
    (official() | {"input_expert_usage": None}, r"input_expert_usage is \[\], expected"),
    (with_usage(1, 2, -1), "input_expert_usage, row 1, expert 2: -1, expected a finite number from 0 on"),
    (with_usage(1, 2, 0.5), "input_expert_usage, row 1, expert 2: 0.5, expected a whole number"),
    (with_usage(1, 2, float("nan")), "row 1, expert 2: nan, expected a finite number"),
    (with_usage(1, 2, float("inf")), "row 1, expert 2: inf, expected a finite number"),
    (with_usage(1, 2, 2**31), "row 1, expert 2: 2147483648, expected a finite number"),
    (with_usage(1, 2, 2**80), "input_expert_usage holds values that are no numbers"),
    (with_usage(1, 2, "7"), "input_expert_usage holds values that are no numbers"),
    (with_usage(1, 2, None), "input_expert_usage holds values that are no numbers"),
    (
        with_usage(1, 2, 1.5, "input_avg_probs"),
        "input_avg_probs, row 1, expert 2: 1.5, expected a probability",
    ),
    (
        with_usage(1, 2, -0.5, "output_avg_probs"),
        "output_avg_probs, row 1, expert 2: -0.5, expected a finite",
    ),
    (with_usage(1, 2, 77), r"input_expert_usage, row 1: \d+ selections, expected a multiple of top_k = 2"),
    (first_moved(), "input_expert_usage, row 1: 12 selections, expected 10 as in row 0"),
    (first_moved("output_expert_usage"), "output_expert_usage, row 1: 6 selections, expected 4 as in row 0"),
    (official() | {"input_expert_usage": [[0] * E] * L}, "input_expert_usage holds only zeros"),
    (
        official() | {"input_expert_usage": [[0] * E, *official()["input_expert_usage"][1:]]},
        "output_expert_usage, row 0: 4 selections, expected none, as in input_expert_usage",
    ),
]


@pytest.mark.parametrize("content, message", BAD_JSON)
def test_bad_json_is_refused_by_name(content: object, message: str, tmp_path: Path) -> None:
    put(tmp_path / "good.json", official())
    bad = put(tmp_path / "x.json", content)
    with pytest.raises(InputError, match=message) as caught:
        safex.Profile.from_traces({"a": [tmp_path / "good.json", bad]})
    assert str(caught.value).startswith(f"{bad}: ")
    assert len(str(caught.value).splitlines()) == 1


def constant(usage: list[int], n_in: int, shape: tuple[int, int] = (L, E)) -> dict[str, Any]:
    """A trace whose layers all count the same, with probabilities that fit."""
    data = official(n_in=n_in, n_out=0, shape=shape)
    data["input_expert_usage"] = [list(usage) for _ in range(shape[0])]
    data["input_avg_probs"] = [[0.5 if n else 0.0 for n in usage] for _ in range(shape[0])]
    return data


def missing(key: str, row: int | None) -> dict[str, Any]:
    """A trace of 40 and 9 tokens that lost one, in one layer or in all."""
    data = official(n_in=40, n_out=9)
    for usage in data[f"{key}_expert_usage"] if row is None else [data[f"{key}_expert_usage"][row]]:
        used = sorted(range(E), key=usage.__getitem__)[-K:]
        for expert in used:
            usage[expert] -= 1
    return data


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (
        constant([11, 9] + [0] * 6, 10),
        r"input_expert_usage, row 0, expert 0: layer 0 selects it 11 times in 10 tokens "
        r"\(so in 3 layers: 0, 1, 2\)",
    ),
    (constant([20] + [0] * 7, 10), "expert 0: layer 0 selects it 20 times in 10 tokens"),
    (
        constant([0, 0, 6, 4, 10, 0, 0, 0], 10) | {"top_k": 1},
        "input_expert_usage counts 20 tokens .* holds 10: more",
    ),
    (
        constant([10, 10] + [0] * 6, 10),
        "all 10 tokens of phase prompt select experts 0 to 1 in layers 0, 1, 2",
    ),
    (missing("input", 1), r"input_expert_usage, row 1: 78 selections, expected 80 as in row 0 \(layer 1\)"),
    (missing("input", 0), r"input_expert_usage, row 0: 78 selections, expected 80 as in row 1 \(layer 0\)"),
    (missing("output", 2), r"output_expert_usage, row 2: 16 selections, expected 18 as in row 0 \(layer 2\)"),
    (missing("input", None), "counts 39 tokens in every layer, input_tokens holds 40: a token is missing"),
    (
        official(n_in=40) | {"input_tokens": list(range(35))},
        "counts 40 tokens in every layer, input_tokens holds 35",
    ),
    (
        official(n_out=9) | {"output_tokens": list(range(8))},
        "counts 9 tokens in every layer, output_tokens holds 8",
    ),
    (official(n_out=9) | {"output_tokens": list(range(11))}, "counts 9 tokens .* output_tokens holds 11"),
    (
        official() | {"input_avg_probs": [*official()["input_avg_probs"][:2], [0.0] * E]},
        "input_avg_probs, row 2: all 0, though layer 2 selects experts there",
    ),
]


@pytest.mark.parametrize("data, message", IMPOSSIBLE)
def test_impossible_counts_are_refused_with_their_layer(
    data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    bad = put(tmp_path / "x.json", data)
    with pytest.raises(InputError, match=message) as caught:
        safex.Profile.from_traces({"a": bad})
    assert str(caught.value).startswith(f"{bad}: ") and len(str(caught.value).splitlines()) == 1


def test_layers_of_shifted_rows_are_named_as_blocks(tmp_path: Path) -> None:
    data = shifted(mixed=False)
    data["input_expert_usage"][1] = [6, 4] + [0] * 6
    bad = put(tmp_path / "x.json", data)
    with pytest.raises(InputError, match="row 1, expert 0: layer 2 selects it 6 times in 5 tokens"):
        safex.Profile.from_traces({"a": bad})


def test_experts_from_0_on_are_possible_where_little_was_traced(tmp_path: Path) -> None:
    """Few tokens may select them, one layer may have collapsed, and all experts may be selected: said, not refused."""
    few = constant([1, 1] + [0] * 6, 1)
    found = notes(safex.Profile.from_traces({"a": put(tmp_path / "few.json", few)}))
    assert not any("were the ids filled" in note for note in found)
    one = official(n_in=30, n_out=0)
    one["input_expert_usage"][1] = [30, 30] + [0] * 6
    found = notes(safex.Profile.from_traces({"a": put(tmp_path / "one.json", one)}))
    said = "one.json: all 30 tokens of phase prompt select experts 0 to 1 in layer 1: "
    assert any(note.startswith(said) for note in found)
    every = constant([10, 10], 10, (L, 2))
    assert notes(safex.Profile.from_traces({"a": put(tmp_path / "every.json", every)})) == []
    wide = official(n_in=30, n_out=0, shape=(L, 128)) | {"top_k": 8}
    wide["input_expert_usage"] = [[30] * 8 + [0] * 120, *[[0] * 8 + [30] * 8 + [0] * 112] * 2]
    wide["input_avg_probs"] = [[0.1 if n else 0.0 for n in row] for row in wide["input_expert_usage"]]
    with pytest.raises(InputError, match="select experts 0 to 7 in layer 0, as if the ids"):
        safex.Profile.from_traces({"a": put(tmp_path / "wide.json", wide)})


def test_real_traces_are_never_taken_for_unfilled_ones(tmp_path: Path) -> None:
    for seed, n in itertools.product(range(60), (1, 2, 5)):
        path = put(tmp_path / "a.json", official(n_in=n, n_out=0, seed=seed))
        assert not any(
            "were the ids filled" in note for note in notes(safex.Profile.from_traces({"a": path}))
        )


def test_probabilities_that_are_missing_or_of_all_tokens(tmp_path: Path) -> None:
    none = official() | {key: [[0] * E] * L for key in ("input_avg_probs", "output_avg_probs")}
    profile = safex.Profile.from_traces({"a": put(tmp_path / "none.json", none)})
    assert profile.meta["absent"] == ["gate_sum", "prob_sum"] and profile.meta["imported"] == ["trace JSON"]
    assert notes(profile) == ["none.json: holds no gate probabilities, only zeros"]
    over_all = official() | {"input_avg_probs": [[0.1] * E] * L}
    (note,) = notes(safex.Profile.from_traces({"a": put(tmp_path / "all.json", over_all)}))
    assert "experts that no token selects have a mean probability above 0" in note


def test_an_answer_that_was_not_traced_is_said(tmp_path: Path) -> None:
    data = official(n_out=0) | {"output_tokens": [1, 2, 3]}
    profile = safex.Profile.from_traces({"a": put(tmp_path / "a.json", data)})
    assert profile.phases == ("prompt",) and notes(profile) == [f"a.json: {NO_ANSWER}"]
    last = official(n_out=4) | {
        "output_tokens": list(range(5))
    }  # the official tool never computes the last one
    assert notes(safex.Profile.from_traces({"a": put(tmp_path / "b.json", last)})) == []


def test_a_csv_of_ids_that_were_never_filled_is_refused(tmp_path: Path) -> None:
    unfilled = np.broadcast_to(np.arange(K), (L, 12, K))
    path = moe_trace(unfilled, tmp_path / "c.csv", 1)
    with pytest.raises(
        InputError, match=r"c\.csv: all 12 tokens of phase prompt select experts 0 to 1 in layers 0, 1"
    ):
        safex.Profile.from_traces({"a": path}, n_experts=E)


@pytest.mark.parametrize(
    "other, message",
    [
        (official(shape=(L, 16)), "has 16 experts in a layer, {a} has 8"),
        (official(shape=(4, E)), r"has \[0, 1, 2, 3\] layers with experts, {a} has \[0, 1, 2\]"),
        (
            official() | {"top_k": 1, "input_tokens": list(range(10))},
            "has 1 selected experts a token, {a} has 2",
        ),
    ],
)
def test_other_shapes_are_refused(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    a, b = put(tmp_path / "a.json", official()), put(tmp_path / "b.json", other)
    with pytest.raises(InputError, match=f"{b}: " + message.format(a=a)):
        safex.Profile.from_traces({"a": [a], "b": [b]})


def test_bad_arguments(tmp_path: Path) -> None:
    a = put(tmp_path / "a.json", official())
    (tmp_path / "sub").mkdir()
    other = put(tmp_path / "sub" / "a.json", official(seed=1))
    (tmp_path / "empty").mkdir()
    csv = moe_trace(chosen(9), tmp_path / "c.csv", 1)
    for arguments, message in [
        (({},), "there is no trace to import"),
        (({"a": []},), "there is no trace to import"),
        (({"a": [tmp_path / "no.json"]},), r"no\.json: no such file or folder"),
        (({"a": [tmp_path / "empty"]},), "empty: holds no traces; expected files named"),
        (({"a": [a, other]},), f"{a} and {other} would both be prompt 'a' of set 'a'"),
        (({"a": [a]}, 4), f"{a}: top_k is 2, expected 4: leave out --top-k"),
        (({"a": [a]}, 0), "top_k is 0, expected a whole number from 1 on"),
        (({"a": [a]}, None, -1), "n_experts is -1, expected"),
        (({"a": [a]}, None, 9), "num_experts is 8, fewer than the 9 of --experts"),
        (({"a": [a]}, None, 1), "expected 0 from expert 1 on"),
        (({"a": [a]}, None, None, [2, 1, 3]), "expected increasing block indices"),
        (({"a": [csv]},), f"{csv}: doesn't say how many experts a layer has: give --experts"),
        (({"a": [csv]}, None, E, [0, 1, 2]), f"{csv}: a CSV names its layers itself"),
    ]:
        with pytest.raises(InputError, match=message):
            safex.Profile.from_traces(*arguments)  # type: ignore[arg-type]


# --- moe-trace CSV


def test_csv_with_header_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    ids = chosen(20)
    plain = moe_trace(ids, tmp_path / "a.csv", 1)
    other = tmp_path / "b.csv"
    other.write_bytes(b"layer,expert\r\n\r\n" + plain.read_bytes().replace(b"\n", b"\r\n"))
    profile = safex.Profile.from_traces({"a": [plain, other]}, n_experts=E)
    for counts in profile.counts:
        np.testing.assert_array_equal(counts, counted(ids))


def test_csv_beside_json_needs_no_options(tmp_path: Path) -> None:
    csv = moe_trace(chosen(9), tmp_path / "c.csv", 4)
    data = put(tmp_path / "j.json", official())
    profile = safex.Profile.from_traces({"a": [csv, data]})
    assert (profile.layers, profile.ids, profile.n_tokens.tolist()) == ([0, 1], ["c", "j"], [9, 5])
    np.testing.assert_array_equal(profile.counts[0], counted(chosen(9))[:2])
    np.testing.assert_array_equal(profile.counts[1], official()["input_expert_usage"][:2])
    np.testing.assert_array_equal(profile.phase("response").counts[1], official()["output_expert_usage"][:2])
    assert profile.phase("response").n_tokens.tolist() == [0, 2]
    assert profile.meta["absent"] == ["gate_sum", "prob_sum"] and not profile.prob_sum.any()
    assert profile.meta["imported"] == ["moe-trace CSV", "trace JSON"]


def test_layers_are_those_of_the_file(tmp_path: Path) -> None:
    path = moe_trace(chosen(9), tmp_path / "c.csv", 1)
    path.write_text("".join(f"{int(r[0]) + 3}{r[1:]}\n" for r in path.read_text().split()))
    assert safex.Profile.from_traces({"a": [path]}, n_experts=E).layers == [3, 4, 5]


def test_top_k_of_a_csv_that_was_not_computed_token_by_token(tmp_path: Path) -> None:
    ids = chosen(9)
    full = moe_trace(ids, tmp_path / "c.csv", 3, last_in_full=True)
    with pytest.raises(InputError, match=r"a token selects expert \d twice with top_k = 6"):
        safex.Profile.from_traces({"a": [full]}, n_experts=E)
    profile = safex.Profile.from_traces({"a": [full]}, top_k=K, n_experts=E)
    np.testing.assert_array_equal(profile.counts[0], counted(ids))
    assert any("is top_k 6 and not 2?" in note for note in notes(profile))
    one_layer = moe_trace(ids[:1], tmp_path / "d.csv", 1)
    with pytest.raises(
        InputError, match=r"d\.csv: doesn't say how many experts a token selects: give --top-k"
    ):
        safex.Profile.from_traces({"a": [one_layer]}, n_experts=E)
    profile = safex.Profile.from_traces({"a": [one_layer]}, top_k=K, n_experts=E)
    np.testing.assert_array_equal(profile.counts[0], counted(ids[:1]))


def sort_orders(n_tokens: int, ubatch: int, shape: tuple[int, int], k: int, seed: int = 0) -> str:
    """What moe-trace as published writes: k * n ids off the start of a batch's sort orders [n, E]."""
    rng = np.random.default_rng(seed)
    rows = []
    for start in range(0, n_tokens, ubatch):
        n = min(ubatch, n_tokens - start)
        for layer in range(shape[0]):
            n_here = n if layer < shape[0] - 1 else 1
            orders = np.array([rng.permutation(shape[1]) for _ in range(n_here)]).ravel()
            rows += [f"{layer},{expert}" for expert in orders[: k * n_here]]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("n_tokens, ubatch", [(30, 512), (30, 8), (7, 512)])
@pytest.mark.parametrize("shape, k", [((4, 32), 4), ((6, 64), 6), ((12, 128), 8)])
def test_the_published_tools_wrong_stride_is_found(
    tmp_path: Path, shape: tuple[int, int], k: int, n_tokens: int, ubatch: int
) -> None:
    path = put(tmp_path / "a.csv", sort_orders(n_tokens, ubatch, shape, k))
    with pytest.raises(InputError, match=r"a\.csv: no expert is selected twice in a batch.*-ub 1"):
        safex.Profile.from_traces({"a": [path]}, n_experts=shape[1])


def test_real_selections_are_never_taken_for_the_wrong_stride(tmp_path: Path) -> None:
    """Even uniformly random ones, the most spread out a router can be, of few tokens."""
    for seed, n_tokens in itertools.product(range(100), (2, 3, 5)):
        path = moe_trace(chosen(n_tokens, seed, (4, 32), 4), tmp_path / "a.csv", 512)
        assert safex.Profile.from_traces({"a": [path]}, n_experts=32).n_tokens.tolist() == [n_tokens]


def bad_csv() -> Iterator[tuple[str, str]]:
    good = [
        f"{layer},{e}" for token in chosen(9).swapaxes(0, 1) for layer, row in enumerate(token) for e in row
    ]
    yield "", "expected rows of two whole numbers, layer,expert: Empty CSV file"
    yield "layer,expert\n", "layer,expert"
    yield "\n".join(["0,x", *good]), "expected rows of two whole numbers.*'x'"
    yield "\n".join(["0,1.5", *good]), "expected rows of two whole numbers.*'1.5'"
    yield "\n".join(["0,", *good]), "expected rows of two whole numbers"
    yield "\n".join(["0,99999999999", *good]), "expected rows of two whole numbers"
    yield "phase,token,layer,rank,expert\n0,0,0,0,3\n", "expected rows of two whole numbers.*2 columns, got 5"
    yield "\n".join([*good[:3], "0,8", *good[4:]]), r"row 4: expert 8, expected 0 to 7 \(--experts\)"
    yield "\n".join(["layer,expert", *good[:3], "0,-1", *good[4:]]), "row 5: expert -1, expected 0 to 7"
    yield "\n".join(["-1,0", *good[1:]]), "row 1: layer -1, expected a block index"
    yield "\n".join(good[:-1]), "layer 2 has 17 rows, no multiple of top_k = 2: is the file cut short"
    yield "\n".join(good[:-4]), "layer 1 has 8 tokens, another 9: is the file cut short"
    yield "\n".join([good[1], *good[1:]]), "layer 0: a token selects expert . twice with top_k = 2"


@pytest.mark.parametrize("content, message", list(bad_csv()))
def test_bad_csv_is_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", content)
    with pytest.raises(InputError, match=message) as caught:
        safex.Profile.from_traces({"a": [path]}, top_k=K, n_experts=E)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value).splitlines()) == 1


def test_top_k_above_the_number_of_experts(tmp_path: Path) -> None:
    path = moe_trace(chosen(9), tmp_path / "a.csv", 1)
    with pytest.raises(InputError, match=r"a\.csv: top_k 9 exceeds the 8 experts"):
        safex.Profile.from_traces({"a": [path]}, top_k=9, n_experts=E)


# --- the command


def test_the_command_imports_and_says_what_to_know(traced: Path, tmp_path: Path) -> None:
    words = ["profile", "--traces", f"regular={traced}", "--traces", f"benign={traced / 'p2.json'}"]
    done = cli(*words, "-o", "x.profile.gguf", "--phase", "response", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "phase response" in done.out and "Profile: x.profile.gguf" in done.out
    assert "Next: safex-native info x.profile.gguf --phase prompt" in done.out
    own = safex.Profile.from_traces({"regular": [traced], "benign": [traced / "p2.json"]})
    read = safex.Profile.load(tmp_path / "x.profile.gguf")
    assert (read.ids, read.sets) == (own.ids, own.sets)
    np.testing.assert_array_equal(read.counts, own.counts)
    cli(*words, "-o", "x.profile.gguf", cwd=tmp_path).fails(2, "x.profile.gguf: exists", "--force")
    assert cli(*words, "-o", "x.profile.gguf", "--force", "--quiet", cwd=tmp_path).code == 0
    facts = cli("info", "x.profile.gguf", "--json", "--quiet", cwd=tmp_path).json
    assert facts["sets"]["regular"]["prompts"] == 3 and facts["metadata"]["imported"] == ["trace JSON"]


def test_the_command_with_csv_has_notes(tmp_path: Path) -> None:
    moe_trace(chosen(9), tmp_path / "a.csv", 4)
    words = ["profile", "--traces", "a=a.csv", "--experts", E, "--top-k", K, "--json", "--parquet", "tables"]
    done = cli(*words, cwd=tmp_path)
    assert done.json["layers"] == [0, 1] and done.json["profile"] == "traces.profile.gguf"
    assert done.json["notes"] == [f"a.csv: {ONE_PHASE}", f"a.csv: {CUT}"]
    assert [line for line in done.err.splitlines() if line.startswith("note: ")] == [
        f"note: {note}" for note in done.json["notes"]
    ]
    assert "Next: safex-native info traces.profile.gguf shows what it holds" in done.err
    assert done.json["tables"] == ["tables/activation.parquet", "tables/prompts.parquet"]
    put(tmp_path / "b.json", shifted(mixed=False))
    layers = cli(
        "profile",
        "--traces",
        "a=b.json",
        "--layers",
        "0,2-3",
        "--json",
        "--quiet",
        "-o",
        "b.gguf",
        cwd=tmp_path,
    )
    assert layers.json["layers"] == [0, 2, 3]


@pytest.mark.parametrize(
    "words, parts",
    [
        (["demo", "--traces", "a=a.json"], ["--traces stands instead of a model", "demo"]),
        (["--traces", "a=a.json", "--response"], ["--response can't go with --traces"]),
        (["--traces", "a=a.json", "--prompts", "a=x.txt"], ["--prompts can't go with --traces"]),
        (["--traces", "a=a.json", "--gpu-layers", "3"], ["--gpu-layers can't go with --traces"]),
        (["--traces", "a=a.json", "--no-mmap"], ["--no-mmap can't go with --traces"]),
        (["--traces", "a=a.json", "--resume"], ["--resume can't go with --traces"]),
        (["--traces", "a.json"], ["--traces 'a.json': expected SET=PATH"]),
        (["--traces", "a="], ["--traces 'a=': expected SET=PATH"]),
        (["--traces", "=a.json"], ["--traces '=a.json': expected SET=PATH"]),
        (["--traces", "a=nowhere"], ["nowhere: no such file or folder of traces"]),
        (["--traces", "a=a.json", "--phase", "suffix"], ["phase 'suffix' is not in this profile"]),
        (["--traces", "a=a.json", "--layers", "1-"], ["--layers", "expected blocks such as 1-47"]),
        (["--traces", "a=a.json", "-o", "a.json", "--force"], ["a.json: is one of the inputs"]),
        (["--traces", "a=a.json", "--csv", ""], ["--csv '' names no folder"]),
        (["--traces", "a=a.json", "--csv", "a.json"], ["a.json is a file: name a folder"]),
        (["demo", "--top-k", "4"], ["--top-k needs --traces"]),
        (["demo", "--experts", "4"], ["--experts needs --traces"]),
        ([], ["expected MODEL, or traces to import with --traces SET=PATH", "safex-native profile --help"]),
    ],
)
def test_bad_usage_leaves_nothing(words: list[str], parts: list[str], tmp_path: Path) -> None:
    put(tmp_path / "a.json", official())
    before = (tmp_path / "a.json").read_bytes()
    cli("profile", *words, cwd=tmp_path).fails(2, *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == before


def test_traces_of_two_models_do_not_merge(tmp_path: Path) -> None:
    """They carry no fingerprint: the model's name must tell them apart."""
    paths = [put(tmp_path / f"{name}.json", {**official(), "model": name}) for name in ("one", "two")]
    profiles = [safex.Profile.from_traces({"regular": [path]}) for path in paths]
    with pytest.raises(InputError, match=r"differ in model\.name: 'one' and 'two'"):
        safex.Profile.merge(profiles)
