"""In which order lora_B holds a fused parameter's experts: what tells, against PEFT's merge and Unsloth's forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import cli
from golden_adapters import LAYOUTS, Golden, cases_of, check, tensors
from safetensors.numpy import load, save_file

import safex
from safex.errors import InputError
from safex.experts import Expert
from safex.merging import ExpertTensors, open_adapter

TinyPath = Callable[..., Path]
CASES = cases_of(LAYOUTS)
QWEN = {
    "base_model_class": "Qwen3MoeForCausalLM",
    "parent_library": "transformers.models.qwen3_moe.modeling_qwen3_moe",
}
UNSLOTH = {"auto_mapping": {**QWEN, "unsloth_fixed": True}}
EXPERTS, RANK, HIDDEN, WIDTH = 16, 2, 24, 20
NAMES = {"gate_up_proj": "experts.base_layer", "down_proj": "experts"}
SIDES = {"gate_up_proj": (2 * WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}  # out, in


def model(architecture: str = "qwen3moe", experts: int = EXPERTS) -> ExpertTensors:
    return tensors(architecture, 1, experts, HIDDEN, WIDTH)


def adapter(
    folder: Path,
    layout: str,
    trained: tuple[int, ...] = tuple(range(EXPERTS)),
    rank: int = RANK,
    n: int = EXPERTS,
    **config: Any,
) -> Path:
    """An adapter of one layer whose B is zero but for the ``trained`` experts, packed in a layout."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, (out, inner) in SIDES.items():
        a = rng.standard_normal((n, rank, inner)).astype(np.float32)
        b = np.zeros((n, out, rank), np.float32)
        b[list(trained)] = rng.standard_normal((len(trained), out, rank))
        order = (1, 2, 0) if layout == "interleaved" else (1, 0, 2)
        path = f"base_model.model.model.layers.0.mlp.{NAMES[name]}"
        weights[f"{path}.lora_A.weight"] = a.reshape(n * rank, inner)
        weights[f"{path}.lora_B.weight"] = np.ascontiguousarray(b.transpose(order).reshape(out, n * rank))
    settings = {"peft_type": "LORA", "peft_version": "0.20.0", "r": rank, "lora_alpha": rank}
    parameters = [f"mlp.experts.{name}" for name in SIDES]
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "target_parameters": parameters, **config})
    )
    return folder


def expected(layer: int, kind: str, n: int = EXPERTS, rank: int = RANK) -> np.ndarray:
    """The deltas of ``adapter`` with all experts trained."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (out, inner) in SIDES.items():
        a = rng.standard_normal((n, rank, inner)).astype(np.float32)
        b = rng.standard_normal((n, out, rank)).astype(np.float32)
        found[name] = b @ a
    gate, up = np.split(found["gate_up_proj"], 2, axis=1)
    return {"gate": gate, "up": up, "down": found["down_proj"]}[kind]


def layouts(folder: Path, target: ExpertTensors | None = None, asked: str = "auto") -> set[tuple[str, str]]:
    return set(open_adapter(folder, target or model(), b_layout=asked).layouts.values())


def refused(folder: Path, target: ExpertTensors | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_adapter(folder, target or model(), **options)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(folder))
    return text


# --- against what PEFT and Unsloth make of them


@pytest.mark.parametrize("fused", [False, True], ids=["split", "gate_up"])
@pytest.mark.parametrize(("file", "case"), CASES, ids=[f"{file.stem}-{case}" for file, case in CASES])
def test_further_layouts(file: Path, case: str, fused: bool, tmp_path: Path) -> None:
    """Unsloth's blocks, Granite's two modules, Nemotron-H's up without a gate, gpt-oss in 4 bits."""
    golden = Golden(file, case)
    deltas = open_adapter(golden.write(tmp_path), golden.model(fused))
    check(deltas, golden.model(fused), golden.delta, 1e-6)
    wanted = set() if case == "gpt-oss-4bit" else {"blocks"} if "unsloth" in case else {"interleaved"}
    assert {layout for layout, _ in deltas.layouts.values()} == wanted


def test_golden_files_are_of_old_and_new_versions() -> None:
    assert [path.stem for path in LAYOUTS] == ["layouts_0.18", "layouts_0.21"]


@pytest.mark.parametrize("layout", ["interleaved", "blocks"])
def test_asked_for(layout: str, tmp_path: Path) -> None:
    deltas = open_adapter(adapter(tmp_path, layout), model(), b_layout=layout)
    check(deltas, model(), expected, 1e-5)
    assert set(deltas.layouts.values()) == {(layout, "asked for")}


def test_the_other_layout_is_another_adapter(tmp_path: Path) -> None:
    """Both have the same shapes: nothing fails where the wrong one is read, so that it must not be guessed."""
    deltas = open_adapter(adapter(tmp_path, "blocks"), model(), b_layout="interleaved")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(deltas, model(), expected, 1e-5)


# --- the record


def recorded(value: str, where: str) -> dict[str, Any]:
    """Unsloth's record of both parameters, in one of the places it may lie."""
    entry = {name: {"lora_B_layout": value, "num_experts": EXPERTS} for name in SIDES}
    detail = {"lora_A_layout": "grouped_by_expert", "parameters": entry}
    if where == "flat":
        return {"lora_B_layout": value}
    if where == "detail":
        return {"unsloth_fused_expert_lora": detail}
    return {"auto_mapping": {**UNSLOTH["auto_mapping"], "unsloth_fused_expert_lora": detail}}


@pytest.mark.parametrize("where", ["flat", "detail", "auto_mapping"])
@pytest.mark.parametrize(
    ("value", "layout"), [("rank_major", "interleaved"), ("grouped_by_expert", "blocks")]
)
def test_recorded(value: str, layout: str, where: str, tmp_path: Path) -> None:
    deltas = open_adapter(adapter(tmp_path, layout, **recorded(value, where)), model())
    check(deltas, model(), expected, 1e-5)
    assert set(deltas.layouts.values()) == {(layout, f"lora_B_layout is {value}")}


def test_recorded_by_parameter(tmp_path: Path) -> None:
    names = {"gate_up_proj": "grouped_by_expert", "down_proj": "rank_major"}
    detail = {"parameters": {name: {"lora_B_layout": value} for name, value in names.items()}}
    found = open_adapter(adapter(tmp_path, "blocks", unsloth_fused_expert_lora=detail), model()).layouts
    assert {name: one.layout for name, one in found.items()} == {
        "gate_up_proj": "blocks",
        "down_proj": "interleaved",
    }


def test_a_record_that_zero_columns_contradict(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", "blocks", (3, 9), lora_B_layout="rank_major")
    assert "says rank_major, but the zero columns of lora_B fit the layout blocks alone" in refused(folder)
    (found,) = layouts(folder, asked="interleaved")
    assert found[1] == "asked for, though zero columns of lora_B fit blocks alone"


@pytest.mark.parametrize("value", ["mixed", "expert_major", 3])
def test_a_record_that_is_not_known(value: object, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", "blocks", lora_B_layout=value)
    said = refused(folder)
    assert f"is {value!r} in adapter_config.json, expected one of rank_major, grouped_by_expert" in said
    assert "--b-layout" in said
    assert layouts(folder, asked="blocks") == {("blocks", f"asked for, though lora_B_layout says {value}")}


# --- zero columns


@pytest.mark.parametrize("trained", [(3, 9), (3,), (0, 1, 2, 15), (5, 6)])
@pytest.mark.parametrize("layout", ["interleaved", "blocks"])
def test_zero_columns_tell(layout: str, trained: tuple[int, ...], tmp_path: Path) -> None:
    """No record and no word of Unsloth: read the wrong way, experts 3 and 9 became 2, 3, 6 and 7."""
    deltas = open_adapter(adapter(tmp_path, layout, trained), model())
    assert deltas.experts() == {Expert(0, expert) for expert in trained}
    assert {one.layout for one in deltas.layouts.values()} == {layout}


def test_zero_columns_of_one_parameter_tell_of_the_other(tmp_path: Path) -> None:
    sparse = load((adapter(tmp_path / "a", "blocks", (3, 9)) / "adapter_model.safetensors").read_bytes())
    folder = adapter(tmp_path / "b", "blocks")
    weights = load((folder / "adapter_model.safetensors").read_bytes())
    weights |= {name: array for name, array in sparse.items() if "base_layer" in name}
    save_file(weights, folder / "adapter_model.safetensors")
    assert {layout for layout, _ in layouts(folder)} == {"blocks"}


def test_ranks_that_are_not_used_tell_nothing(tmp_path: Path) -> None:
    """An adapter of rank 1 padded to 2, interleaved: read as blocks, half of the experts would be zero."""
    folder = adapter(tmp_path, "interleaved")
    path = folder / "adapter_model.safetensors"
    weights = load(path.read_bytes())
    for name, array in weights.items():
        changed = array.copy()
        if "lora_A" in name:
            changed.reshape(EXPERTS, RANK, -1)[:, 1] = 0
        else:
            changed.reshape(-1, RANK, EXPERTS)[:, 1] = 0
        weights[name] = changed
    save_file(weights, path)
    assert {layout for layout, _ in layouts(folder)} == {"interleaved"}


# --- who trained it


@pytest.mark.parametrize(
    ("architecture", "library", "layout"),
    [
        ("qwen3moe", "transformers.models.qwen3_moe.modeling_qwen3_moe", "blocks"),
        ("qwen3moe", "unsloth_compiled_module_qwen3_moe", "blocks"),
        ("qwen3moe", "somewhere.else", "blocks"),
        ("llama", "transformers.models.mixtral.modeling_mixtral", "blocks"),
        ("deepseek2", "transformers.models.deepseek_v3.modeling_deepseek_v3", "blocks"),
        ("deepseek2", "transformers.models.deepseek_v2.modeling_deepseek_v2", "interleaved"),
        ("olmoe", "transformers.models.olmoe.modeling_olmoe", "interleaved"),
        ("qwen2moe", None, "interleaved"),
    ],
)
def test_trained_by_unsloth_before_the_record(
    architecture: str, library: str | None, layout: str, tmp_path: Path
) -> None:
    mapping = {"unsloth_fixed": True, **({"parent_library": library} if library else {})}
    folder = adapter(tmp_path, layout, auto_mapping=mapping)
    target = model(architecture)
    check(open_adapter(folder, target), target, expected, 1e-5)
    assert {one for one, _ in layouts(folder, target)} == {layout}


CARDS = [
    ("---\ntags:\n- lora\n- unsloth\n---\n", True),
    ("This model was trained 2x faster with [Unsloth](https://github.com/unslothai/unsloth)", True),
    (
        "---\nbase_model: unsloth/Qwen3-30B-A3B\ntags:\n- base_model:adapter:unsloth/Qwen3-30B-A3B\n---\n",
        False,
    ),
    ("# An adapter", False),
]


@pytest.mark.parametrize(("card", "says"), CARDS)
def test_a_model_card_that_says_unsloth(card: str, says: bool, tmp_path: Path) -> None:
    """It alone tells nothing of the version, and trainers write it for other models that Unsloth prepared, too."""
    folder = adapter(tmp_path / "a", "interleaved", base_model_name_or_path="unsloth/Qwen3-30B-A3B")
    (folder / "README.md").write_text(card)
    if says:
        said = refused(folder)
        assert "README.md says Unsloth" in said and "--b-layout blocks or interleaved" in said
        adapter(folder, "blocks", (3, 9))
    assert {layout for layout, _ in layouts(folder)} == ({"blocks"} if says else {"interleaved"})


def test_an_architecture_of_several_families_needs_its_name(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", "blocks", auto_mapping={"unsloth_fixed": True})
    assert "adapter_config.json says Unsloth" in refused(folder, model("deepseek2"))


@pytest.mark.parametrize(("rank", "n"), [(1, EXPERTS), (RANK, 1)])
def test_where_both_layouts_are_the_same(rank: int, n: int, tmp_path: Path) -> None:
    folder = adapter(tmp_path, "blocks", tuple(range(n)), rank, n, **UNSLOTH)
    target = model(experts=n)
    assert layouts(folder, target) == {("interleaved", "rank 1: both layouts are the same")} or n == 1
    check(open_adapter(folder, target), target, lambda *at: expected(*at, n=n, rank=rank), 1e-5)


# --- a merge


def real_adapter(folder: Path, base: Path, layout: str, **config: Any) -> Path:
    """An adapter of layer 0 of the tiny model, of experts 2 and 5 of 8."""
    shape = ExpertTensors.read(base).shapes[0, "down"]
    rng = np.random.default_rng(1)
    b = np.zeros((shape.experts, shape.rows, RANK), np.float32)
    b[[2, 5]] = rng.standard_normal((2, shape.rows, RANK))
    a = rng.standard_normal((shape.experts, RANK, shape.columns)).astype(np.float32)
    order = (1, 2, 0) if layout == "interleaved" else (1, 0, 2)
    path = "base_model.model.model.layers.0.mlp.experts"
    folder.mkdir()
    weights = {
        f"{path}.lora_A.weight": a.reshape(-1, shape.columns),
        f"{path}.lora_B.weight": np.ascontiguousarray(b.transpose(order).reshape(shape.rows, -1)),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "peft_version": "0.20.0", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "target_parameters": ["experts.down_proj"], **config})
    )
    return folder


@pytest.mark.parametrize("layout", ["interleaved", "blocks"])
def test_merge_changes_the_experts_that_were_trained(
    layout: str, tiny_path: TinyPath, tmp_path: Path
) -> None:
    base = tiny_path("qwen3moe", "q8_0")
    folder = real_adapter(tmp_path / "a", base, layout)
    out = tmp_path / "m.gguf"
    report = safex.merge(base, out, folder, "all")
    assert {(one.layer, one.expert) for one in report.survivals} == {(0, 2), (0, 5)}
    (read,) = report.to_json()["read"]
    (found,) = read["b_layout"]
    assert (read["adapter"], found["parameter"], found["layout"]) == ("a", "down_proj", layout)
    assert "zero" in found["why"] and read["left_out"] == []
    assert safex.verify(base, out).holds
    (said,) = report.provenance.parameters["adapters"]
    assert said["b_layout"] == {"down_proj": layout}


def test_merge_command_says_the_layout_and_why(tiny_path: TinyPath, tmp_path: Path) -> None:
    base = tiny_path("qwen3moe", "q8_0")
    folder = real_adapter(tmp_path / "a", base, "blocks", lora_B_layout="grouped_by_expert")
    arguments = ("merge", str(base), str(folder), "--experts", "all", "--dry-run")
    done = cli(*arguments)
    assert done.code == 0
    assert "lora_B of a (down_proj) read as blocks: lora_B_layout is grouped_by_expert" in done.out + done.err
    done = cli(*arguments, "--b-layout", "interleaved", "--json")
    (read,) = json.loads(done.out)["read"]
    assert read["b_layout"][0]["layout"] == "interleaved" and "though" in read["b_layout"][0]["why"]
    assert json.loads(done.out)["b_layout"] == ["interleaved"]
    done = cli(*arguments, "--b-layout", "blocks", "--b-layout", "auto")
    assert done.code == 2 and "1 adapters and 2 b_layouts" in done.err
    (folder / "README.md").write_text("tags: [unsloth]")
    real = real_adapter(tmp_path / "b", base, "blocks")
    weights = load((real / "adapter_model.safetensors").read_bytes())
    dense = {name: array + np.float32(0.5) for name, array in weights.items()}
    save_file(dense, real / "adapter_model.safetensors")
    (real / "README.md").write_text("tags: [unsloth]")
    done = cli("merge", str(base), str(real), "--experts", "all", "-o", str(tmp_path / "x.gguf"))
    assert done.code == 2 and "--b-layout" in done.err and not (tmp_path / "x.gguf").exists()


def test_each_adapter_has_its_own_layout(tiny_path: TinyPath, tmp_path: Path) -> None:
    base = tiny_path("qwen3moe", "q8_0")
    folders = [real_adapter(tmp_path / name, base, name) for name in ("interleaved", "blocks")]
    report = safex.merge(base, None, list(folders), "all", b_layout=["auto", "blocks"], dry_run=True)
    assert [one.layouts["down_proj"].layout for one in report.adapters] == ["interleaved", "blocks"]
    with pytest.raises(InputError, match="b_layout is 'grouped', expected one of auto, interleaved, blocks"):
        safex.merge(base, None, folders[0], "all", b_layout="grouped", dry_run=True)
