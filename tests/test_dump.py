"""`model.dump` and `safex-native dump`: what the core captures, as a features file that survives a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import cli
from safetensors.numpy import load_file

import safex
from safex.errors import InputError
from safex.features import Features
from safex.prompts import PromptSet

EXPERTS = ["0:3", "1:7", "3:30"]


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return PromptSet.bundled("demo").limited(6)


@pytest.mark.parametrize("routing", ["forced", "natural"])
def test_memory_and_file_hold_what_the_core_says(
    demo: safex.Model, prompts: PromptSet, tmp_path: Path, routing: str
) -> None:
    held = demo.dump(EXPERTS, prompts, routing=routing)
    filed = demo.dump(EXPERTS, prompts, routing=routing, output=tmp_path / "f.safetensors")
    assert [str(e) for e in held.experts] == EXPERTS and held.roster.groups["experts"] == held.experts
    assert np.array_equal(held.n_tokens, filed.n_tokens) and held.sets == filed.sets == prompts.sets
    counted = demo.profile(prompts)
    for row, expert in enumerate(held.experts):
        expected = counted.n_tokens if routing == "forced" else counted.counts[:, expert.layer, expert.expert]
        assert np.array_equal(held.n_tokens[row], expected)
        assert np.array_equal(np.isnan(held.of(expert)).all(axis=1), held.n_tokens[row] == 0)
        np.testing.assert_array_equal(held.of(expert), filed.of(expert))
    np.testing.assert_array_equal(held.router_probs, filed.router_probs)
    assert not list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize("routing", ["forced", "natural"])
def test_token_rows_are_what_features_are_means_of(
    demo: safex.Model, prompts: PromptSet, tmp_path: Path, routing: str
) -> None:
    pooled = demo.dump(EXPERTS, prompts, routing=routing)
    held = demo.dump_tokens(EXPERTS, prompts, routing=routing)
    filed = demo.dump_tokens(EXPERTS, prompts, routing=routing, output=tmp_path / "t.safetensors")
    assert np.array_equal(held.n_rows, pooled.n_tokens) and np.array_equal(filed.n_rows, pooled.n_tokens)
    assert [list(tokens) for tokens in filed.tokens] == [demo.encode(prompt).tokens for prompt in prompts]
    assert filed.texts == held.texts == prompts.texts and filed.prompts == held.prompts
    read = load_file(tmp_path / "t.safetensors")  # safetensors' own reader
    for expert in held.experts:
        rows = held.of(expert)
        for ours, theirs in zip(rows, filed.of(expert), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(rows.values, read[str(expert)])
        for prompt in np.unique(rows.prompts).tolist():
            mean = rows.values[rows.prompts == prompt].mean(axis=0)
            np.testing.assert_allclose(pooled.of(expert)[prompt], mean, rtol=1e-3, atol=1e-4)


def test_token_rows_of_answers(demo: safex.Model) -> None:
    (answer,) = demo.generate(["How do I bake bread?"], 8)
    found = demo.dump_tokens(EXPERTS, ["How do I bake bread?"], phase="response", max_new=8)
    n_prompt = len(answer.prompt_tokens)
    assert found.tokens[0].tolist() == [*answer.prompt_tokens, *answer.tokens]
    assert found.of("1:7").positions.tolist() == list(range(n_prompt, n_prompt + len(answer.tokens)))
    with pytest.raises(InputError, match="expert 2:2 is not among"):
        found.of("2:2")


def test_bad_files_of_token_rows(demo: safex.Model, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    demo.dump_tokens(EXPERTS, ["How do I bake bread?"], output=path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(InputError, match=r"t\.safetensors: is no safetensors file, or is truncated"):
        safex.TokenRows.load(path)
    demo.dump(EXPERTS, ["How do I bake bread?"], output=tmp_path / "f.safetensors")
    with pytest.raises(InputError, match="but not of token rows"):
        safex.TokenRows.load(tmp_path / "f.safetensors")


class StopError(Exception):
    """Raised in the middle."""


def test_a_stopped_dump_goes_on(demo: safex.Model, prompts: PromptSet, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"

    def stop(done: int, total: int, tokens: int) -> None:
        if done >= 5:
            raise StopError

    settings: dict[str, Any] = {"output": path, "pool": "last", "phase": "suffix"}
    short = safex.Model("demo", n_threads=1, n_ctx=128, n_ubatch=32)
    with short, pytest.raises(StopError):
        short.dump(EXPERTS, prompts, progress=stop, **settings)
    with safex.Model("demo", n_threads=1, n_ctx=128, n_ubatch=32) as model:
        with pytest.raises(InputError, match="--resume"):
            model.dump(EXPERTS, prompts, **settings)
        with pytest.raises(InputError, match="experts"):
            model.dump(EXPERTS[:2], prompts, resume=True, **settings)
        ran = []
        resumed = model.dump(
            EXPERTS, prompts, resume=True, progress=lambda done, *_: ran.append(done), **settings
        )
        assert ran[0] >= 5
        whole = model.dump(EXPERTS, prompts, pool="last", phase="suffix")
    for expert in whole.experts:
        np.testing.assert_allclose(resumed.of(expert), whole.of(expert), rtol=0.02, atol=0.02)
    assert np.array_equal(resumed.n_tokens, whole.n_tokens)


def test_a_stopped_dump_of_tokens_goes_on(demo: safex.Model, prompts: PromptSet, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    seen: list[int] = []

    def stop(done: int, total: int, tokens: int) -> None:
        seen.append(done)
        if done >= 5:
            raise StopError

    settings: dict[str, Any] = {"output": path, "routing": "natural"}
    short = safex.Model("demo", n_threads=1, n_ctx=128, n_ubatch=32)
    with short, pytest.raises(StopError):
        short.dump_tokens(EXPERTS, prompts, progress=stop, **settings)
    with safex.Model("demo", n_threads=1, n_ctx=128, n_ubatch=32) as model:
        with pytest.raises(InputError, match="pool"):
            model.dump(EXPERTS, prompts, output=path, routing="natural", resume=True)
        resumed = model.dump_tokens(EXPERTS, prompts, resume=True, **settings)
        whole = model.dump_tokens(EXPERTS, prompts, routing="natural")
    for expert in whole.experts:
        assert np.array_equal(resumed.of(expert).prompts, whole.of(expert).prompts)
        assert np.array_equal(resumed.of(expert).positions, whole.of(expert).positions)
        np.testing.assert_allclose(resumed.of(expert).values, whole.of(expert).values, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "settings, part",
    [
        ({"routing": "both"}, "routing is 'both'"),
        ({"pool": "max"}, "pool is 'max'"),
        ({"pool": "none"}, "pool is 'none'"),
        ({"phase": "both"}, "phase is 'both'"),
    ],
)
def test_settings_that_there_are_not(demo: safex.Model, settings: dict[str, str], part: str) -> None:
    with pytest.raises(InputError, match=part):
        demo.dump(EXPERTS, ["How do I bake bread?"], **settings)
    for experts in (["9:0"], ["0:99"], []):
        with pytest.raises(InputError):
            demo.dump(experts, ["How do I bake bread?"])


def test_responses_have_features(demo: safex.Model) -> None:
    found = demo.dump(EXPERTS, ["How do I bake bread?"], phase="response", max_new=8)
    (answer,) = demo.generate(["How do I bake bread?"], 8)
    assert set(found.n_tokens.ravel().tolist()) == {len(answer.tokens)}


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    words = ("dump", "demo", "--experts", "0:3,1:7", "--limit", "4", "--controls", "3", "-o", str(out))
    ran = cli(*words, "--json", "--threads", "1", cwd=tmp_path)
    assert ran.code == 0, ran.err
    said = ran.json
    features = Features.load(out)
    assert said["prompts"] == len(features.sets) == 12
    assert {row["role"] for row in said["roles"]} == {"experts", "control:layer", "control:frequency"}
    again = cli(*words, cwd=tmp_path)
    again.fails(2, "exists")
    cli("dump", "demo", "--experts", "9:1", "--quiet", cwd=tmp_path).fails(2, "no experts in layer 9")
    listed = tmp_path / "e.json"
    listed.write_text('["0:1"]')
    over = cli("dump", "demo", "--experts", "e.json", "--force", "-o", "e.json", cwd=tmp_path)
    over.fails(2, "e.json: is one of the inputs")
    assert listed.read_text() == '["0:1"]'
    cli("dump", "demo", "--experts", "0:1", "--max-new", "4", cwd=tmp_path).fails(2, "--max-new needs")


def test_token_rows_by_command(demo: safex.Model, tmp_path: Path) -> None:
    words = ("dump", "demo", "--experts", "0:3,1:7", "--limit", "2", "--tokens", "--threads", "1")
    ran = cli(*words, "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    rows = safex.TokenRows.load(tmp_path / "demo.tokens.safetensors")
    assert [str(expert) for expert in rows.experts] == ["0:3", "1:7"] and ran.json["prompts"] == 6
    cli(*words, "--pool", "last", "--force", cwd=tmp_path).fails(
        2, "--tokens keeps every token, --pool one vector"
    )


@pytest.mark.parametrize("raw", [False, True])
def test_one_prompt_as_the_official_json(demo: safex.Model, tmp_path: Path, raw: bool) -> None:
    text = "How do I bake bread?"
    words = ("dump", "demo", "--experts", "0:3,1:7", "--prompt", text, *(["--raw"] if raw else []))
    ran = cli(*words, "-o", "o.json", "--threads", "2", cwd=tmp_path)
    assert ran.code == 0, ran.err
    expected = demo.dump(["0:3", "1:7"], [demo.tokenize(text)] if raw else [text])
    written = json.loads((tmp_path / "o.json").read_text())
    assert list(written) == ["0-3", "1-7"]
    np.testing.assert_allclose(written["1-7"], expected.of("1:7")[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, part",
    [
        (["--prompt", " "], "--prompt is empty"),
        (["--raw"], "--raw needs --prompt"),
        (["--prompt", "a", "--limit", "3"], "--limit does not go with --prompt"),
        (["--prompt", "a", "--tokens"], "--tokens does not go with --prompt"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: list[str], part: str) -> None:
    cli("dump", "demo", "--experts", "0:1", *options, cwd=tmp_path).fails(2, part)
