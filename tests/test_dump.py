"""`model.dump` and `safex-native dump`: what the core captures, as a features file that survives a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import cli

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
    assert not list(tmp_path.glob("*.journal"))


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


@pytest.mark.parametrize(
    "settings, part",
    [
        ({"routing": "both"}, "routing is 'both'"),
        ({"pool": "max"}, "pool is 'max'"),
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
