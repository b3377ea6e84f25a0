"""``--n-cpu-moe`` keeps the tensors in main memory that llama.cpp's option of this name does, also in serve."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from cli_runner import cli, environment

import safex
from safex.errors import InputError
from safex.placement import placement

TinyPath = Callable[..., Path]
ROLES = [
    *(f"ffn_{kind}_exps.weight" for kind in ("gate", "up", "down", "gate_up")),
    *("ffn_down_exps.bias", "ffn_gate_chexps.weight", "ffn_gate_exps.scale"),
    *("ffn_up_shexp.weight", "ffn_gate_inp.weight", "ffn_up.weight", "attn_q.weight", "exp_probs_b.bias"),
]
NAMES = [f"blk.{layer}.{role}" for layer in range(64) for role in ROLES] + ["token_embd.weight"]


def upstream(layers: int) -> list[str]:
    """common/common.h of llama.cpp: a pattern for each layer, blk\\.%d and LLM_FFN_EXPS_REGEX."""
    return [rf"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps" for layer in range(layers)]


@pytest.mark.parametrize("layers", [0, 1, 10, 12, 64, 1000])
def test_it_names_the_tensors_that_upstream_names(layers: int) -> None:
    found = {name for name in NAMES for pattern, _ in placement(None, layers) if re.search(pattern, name)}
    patterns = upstream(layers)
    assert found == {name for name in NAMES if any(re.search(pattern, name) for pattern in patterns)}
    assert bool(found) == bool(layers)


def test_explicit_overrides_come_first() -> None:
    (first, buffer), (_, cpu) = placement({"blk.0.*_exps": "CUDA0"}, 4)
    assert (first, buffer, cpu) == ("blk.0.*_exps", "CUDA0", "CPU")
    assert placement({}, 0) == []
    with pytest.raises(InputError, match="n_cpu_moe is -1, expected a number of layers, 0 or more"):
        placement(None, -1)


@pytest.mark.parametrize("n", [1, 3, 99])
def test_it_changes_no_number(n: int, tiny_path: TinyPath) -> None:
    exact = {"flash_attn": False, "kv_type": "f32", "n_threads": 1}
    tokens = [5, 9, 77, 120, 33, 200, 41]
    with safex.Model(tiny_path("qwen2moe"), **exact) as model:
        expected = model.logits(tokens)
    overrides = {r"blk\.1\.ffn_up_exps": "CPU"}
    with safex.Model(tiny_path("qwen2moe"), n_cpu_moe=n, tensor_overrides=overrides, **exact) as model:
        np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-5)
        assert "n_cpu_moe" not in model._settings  # a run may be resumed on a machine with other memory


def test_commands_take_it(tmp_path: Path) -> None:
    words = ["profile", "demo", "--limit", "1", "--quiet", "--threads", "1"]
    assert cli(*words, "--n-cpu-moe", 2, "-o", "a.profile.gguf", cwd=tmp_path).code == 0
    assert cli(*words, "-o", "b.profile.gguf", cwd=tmp_path).code == 0
    one, other = (safex.Profile.load(tmp_path / f"{name}.profile.gguf") for name in "ab")
    np.testing.assert_array_equal(one.counts, other.counts)
    cli(*words, "--n-cpu-moe", "-1", cwd=tmp_path).fails(2, "--n-cpu-moe", "at least 0")


SERVED = """
import json, sys
from pathlib import Path
from safex.serve_llama import _placed, llama_cpp_python

llama_cpp = llama_cpp_python()
lines = []
keep = llama_cpp.llama_log_callback(lambda level, text, _: lines.append(text.decode("utf-8", "replace")))
llama_cpp.llama_log_set(keep, None)
with _placed(llama_cpp.llama_cpp, json.loads(sys.argv[2])):
    llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1, verbose=True).close()
llama_cpp.llama_log_set(keep, None)
llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1, verbose=True).close()
print(json.dumps([line.split()[1] for line in lines if "overridden" in line]))
"""


def test_serve_places_them(tiny_path: TinyPath, tmp_path: Path) -> None:
    """llama.cpp itself says which tensors it placed; the next model is loaded as before."""
    overrides = [*placement({r"blk\.3\.attn_q\.": "CPU"}, 2)]
    script = SERVED.replace("verbose=True", "verbose=False")
    words = [sys.executable, "-c", script, str(tiny_path("qwen3moe")), json.dumps(overrides)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    experts = [f"blk.{layer}.ffn_{kind}_exps.weight" for layer in (0, 1) for kind in ("gate", "up", "down")]
    assert sorted(json.loads(done.stdout)) == sorted([*experts, "blk.3.attn_q.weight"])


LONG = """
import json, sys
from pathlib import Path
from safex.serve_llama import LoadOptions, masked_llama

with masked_llama(Path(sys.argv[1]), [], LoadOptions(n_ctx=64, n_threads=1)) as llama:
    print(json.dumps([llama.detokenize([token]).decode() for token in (270, 271, 272)]))
"""


def test_serve_gives_long_tokens_whole(tmp_path: Path) -> None:
    """Real vocabularies hold tokens of 128 spaces."""
    texts = ["a" * 31, "b" * 70, " " * 128]

    def add(writer: gguf.GGUFWriter) -> None:
        tiny_models.add_bpe(writer)
        tokens = tiny_models.bpe_tokens()
        tokens[270:273] = [text.replace(" ", "Ġ") for text in texts]
        writer.kv_data[0]["tokenizer.ggml.tokens"].value = tokens

    path = tmp_path / "long.gguf"
    tiny_models.write_gguf(path, "qwen3moe", tiny_models.tiny_tensors("qwen3moe"), add_tokenizer=add)
    words = [sys.executable, "-c", LONG, str(path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == texts
