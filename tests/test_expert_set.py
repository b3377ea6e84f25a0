"""Expert-set files: hand-written ones, those of identify, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safex import Expert, ExpertSet, InputError
from safex.expert_set import parse_experts

MODEL = {"layers": [1, 2, 3], "n_experts": 8}


def write(folder: Path, content: Any) -> Path:
    path = folder / "experts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "groups"),
    [
        (["3:17", "4:2"], {"experts": [(3, 17), (4, 2)]}),
        ([[3, 17]], {"experts": [(3, 17)]}),
        ({"safex_expert_set": 1, "groups": {"ctrl": ["3:17"], "id": []}}, {"ctrl": [(3, 17)], "id": []}),
        ({"safex_expert_set": 1, "groups": {"a": [{"layer": 0, "expert": 5, "score": 1}]}}, {"a": [(0, 5)]}),
    ],
)
def test_a_file_by_hand(tmp_path: Path, content: Any, groups: dict[str, list[tuple[int, int]]]) -> None:
    assert ExpertSet.load(write(tmp_path, content)).groups == groups


def test_the_planted_truth_file_is_an_expert_set() -> None:
    path = Path(__file__).parent.parent / "safex/data/demo-planted.truth.json"
    planted = ExpertSet.load(path).groups["planted"]
    assert len(planted) == 12
    assert planted[0] == Expert(0, 1)


def test_what_is_known_of_an_expert_is_kept(tmp_path: Path) -> None:
    row = {"layer": 1, "expert": 2, "score": 0.5, "activation": {"regular": 0.25}}
    experts = ExpertSet(
        {"ctrl": [row]}, model={**MODEL, "name": "ä"}, conclusion="Nothing.", controls={"baseline": [0.5]}
    )
    experts.save(tmp_path / "a.json")
    again = ExpertSet.load(tmp_path / "a.json")
    assert again == experts
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def group(rows: Any, **parts: Any) -> dict[str, Any]:
    return {"safex_expert_set": 1, "groups": {"ctrl": rows}, **parts}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("\xff", "is no JSON"),
        ({"groups": {}}, "is no expert set: expected an object with 'safex_expert_set'"),
        ("3", "is no expert set"),
        ({"safex_expert_set": 2, "groups": {}}, "has schema version 2, expected 1"),
        ({"safex_expert_set": 1}, "has no 'groups'"),
        (group("3:17"), "group 'ctrl' is str, expected a list"),
        (group(["3:17", "x"]), "group 'ctrl', entry 1: found 'x', expected 'L:E'"),
        (group([{"layer": 3}]), "group 'ctrl', entry 0: found {'layer': 3}"),
        (group([{"layer": 1.5, "expert": 2}]), "group 'ctrl', entry 0"),
        (group([None]), "group 'ctrl', entry 0: found None"),
        (group(["3:17", "4:1", "3:17"]), "group 'ctrl' lists expert 3:17 twice"),
        (group(["-1:2"]), "group 'ctrl': expert -1:2: layers and experts count from 0"),
        (
            group(["0:2"], model=MODEL),
            "expert 0:2: the model it was made from has no experts in layer 0; its MoE layers are 1, 2, 3",
        ),
        (group(["1:8"], model=MODEL), "expert 1:8: the model it was made from has experts 0 to 7 in a layer"),
        (group([], controls=[1]), "'controls' is list, expected an object"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        ExpertSet.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        ExpertSet.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="can't be read"):
        ExpertSet.load(tmp_path)


def test_experts_that_a_model_lacks() -> None:
    experts = ExpertSet({"ctrl": [{"layer": 1, "expert": 9}]})
    experts.check_model([1], 10, "the profile")
    with pytest.raises(InputError, match="group 'ctrl': expert 1:9: the profile has no experts in layer 1"):
        experts.check_model([0, 2], 10, "the profile")


def test_experts_as_a_command_line_names_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"safex_expert_set": 1, "groups": {"id": ["1:2", "0:3"], "ctrl": ["0:3", "2:1"], "none": []}},
    )
    assert parse_experts("0:3, 2:1") == [(0, 3), (2, 1)]
    assert parse_experts(f"{path}:ctrl") == [(0, 3), (2, 1)]
    assert parse_experts(str(path)) == [(1, 2), (0, 3), (2, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FILE:other", "has no group 'other'; its groups are id, none"),
        ("FILE:none", "holds no experts: there is nothing to do"),
        ("nothing.json", "nothing.json: no such file"),
        ("3", "expert '3': expected a pair"),
        ("3:4,3:4", "the list' lists expert 3:4 twice"),
        ("-1:2", "layers and experts count from 0"),
    ],
)
def test_experts_that_cannot_be_read_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, {"safex_expert_set": 1, "groups": {"id": ["1:2"], "none": []}})
    with pytest.raises(InputError) as caught:
        parse_experts(text.replace("FILE", str(path)))
    assert message in str(caught.value)
