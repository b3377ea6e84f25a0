"""``safex-native probe`` as a process: its tables, files, refusals, and an interrupted run."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from cli_runner import STEADY, Ran, cli, signalled, start
from probe_cases import simulated, small_roster

import safex
from safex.cli import main
from safex.cli.probe import read_groups

QUICK = ("--repeats", "1", "--shuffles", "3", "--task", "regular-benign", *STEADY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``sim.features.safetensors``."""
    folder = tmp_path_factory.mktemp("probe")
    simulated(12, {"id": 1.5}).save(folder / "sim.features.safetensors")
    return folder


def test_it_prints_tables_and_writes_the_result(folder: Path) -> None:
    done = cli("probe", "sim.features.safetensors", *QUICK, "--csv", "tables", cwd=folder)
    assert done.code == 0, done.err
    for text in (
        "Task regular-benign: regular against benign (24 prompts, 12 positive",
        "The same probes on jailbreak against benign",
        "Groups among random experts",
        "Experts alone",
        "majority",
        "Conclusion: Group id (2 experts)",
        "Probing: sim.probing.json",
    ):
        assert text in done.out
    assert max(map(len, done.out.splitlines()[:8])) <= 130
    result = safex.Probing.load(folder / "sim.probing.json")
    assert result.conclusion in done.out and [row["task"] for row in result.tasks] == ["regular-benign"]
    with (folder / "tables" / "probes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    auc = next(
        row for row in rows if (row["probe"], row["measure"], row["tested"]) == ("group", "auc", "task")
    )
    assert float(auc["value"]) == result.tasks[0]["groups"][0]["auc"]["value"]
    assert "probes, regular-benign" in done.err and "note: only 12 regular prompts" in done.err
    again = cli("probe", "sim.features.safetensors", *QUICK, cwd=folder)
    again.fails(2, "sim.probing.json: exists", "--force")


def test_json_is_the_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["probe", "sim.features.safetensors", *QUICK, "-o", "j.json", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out == {"output": "j.json", "tables": [], **json.loads((folder / "j.json").read_text())}
    assert main(["probe", "sim.features.safetensors", *QUICK, "-o", "q.json", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (folder / "q.json").read_bytes() == (folder / "j.json").read_bytes()


def test_a_limit_bounds_the_prompts_of_each_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["probe", "sim.features.safetensors", *QUICK, "--limit", "8", "-o", "l.json", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert set(out["features"]["prompts"].values()) == {8} and out["parameters"]["limit"] == 8


def test_groups_come_from_a_file_a_group_of_it_or_a_list(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    experts = {"safex_expert_set": 1, "groups": {"mine": ["0:1", "1:2"], "other": ["0:1"]}}
    (folder / "sets.json").write_text(json.dumps(experts))
    (folder / "foreign.json").write_text(json.dumps({**experts, "model": {"fingerprint": "e" * 64}}))
    whole, one, listed = (read_groups(spec) for spec in ("sets.json", "sets.json:other", "0:1,1:2"))
    assert isinstance(whole, safex.ExpertSet) and list(whole.groups) == ["mine", "other"]
    assert isinstance(one, safex.ExpertSet) and list(one.groups) == ["other"]
    assert listed == {"experts": [(0, 1), (1, 2)]}
    command = ["probe", "sim.features.safetensors", *QUICK, "-o", "g.json", "--experts"]
    assert main([*command, "sets.json:other"]) == 0
    assert [row["group"] for row in safex.Probing.load(folder / "g.json").tasks[0]["groups"]] == ["other"]
    capsys.readouterr()
    assert main([*command, "foreign.json", "--force"]) == 2
    assert "the features are of model ffffffffffff, the expert set of eeeeeeeeeeee" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere.safetensors"], ["nowhere.safetensors: no such file"]),
        (["sim.features.safetensors", "--folds", "13"], ["12 regular", "13 folds need at least 13"]),
        (["sim.features.safetensors", "--folds", "1"], ["folds is 1, expected at least 2"]),
        (["sim.features.safetensors", "--task", "odd"], ["task 'odd': expected one of harmful"]),
        (["sim.features.safetensors", "--hold-out", "set"], ["--hold-out"]),
        (["sim.features.safetensors", "--experts", "nowhere.json"], ["nowhere.json: no such file"]),
        (["sim.features.safetensors", "--experts", "9:9"], ["expert 9:9 is not among"]),
        (["sim.features.safetensors", "-o", "sim.features.safetensors"], ["is one of the inputs"]),
        (["sim.features.safetensors", "-o", "no/p.json"], ["its folder doesn't exist"]),
        ([], ["FEATURES", "safex-native probe --help"]),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(folder)
    output = () if "-o" in words or not words else ("-o", "bad.json")
    Ran(main(["probe", *words, *output, "--quiet"]), *capsys.readouterr()).fails(2, *parts)
    assert not (folder / "bad.json").exists()


def test_bad_features_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    one = simulated(6, sets=["regular"] * 18)
    one.save(folder / "one.safetensors")
    whole = (folder / "one.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-9])
    spoiled = bytearray(whole)
    at = spoiled.index(np.float32(one.values[0][3, 5]).tobytes())
    spoiled[at : at + 4] = np.float32(np.inf).tobytes()
    (folder / "inf.safetensors").write_bytes(spoiled)
    for name, *parts in (
        ("one.safetensors", "the prompts are of set regular", "benign"),
        ("cut.safetensors", "cut.safetensors: is no safetensors file, or is truncated"),
        ("inf.safetensors", "inf.safetensors: expert 0:1, prompt '3'", "NaN or infinite"),
    ):
        Ran(main(["probe", name]), *capsys.readouterr()).fails(2, *parts)


def test_an_interrupted_run_ends_at_once_and_writes_nothing(tmp_path: Path) -> None:
    simulated(60, 1.0, roster=small_roster(20), width=64).save(tmp_path / "big.safetensors")
    process = start("probe", "big.safetensors", "--shuffles", 5000, *STEADY, cwd=tmp_path)
    for line in iter(process.stderr.readline, b""):
        if b"probes, harmful" in line:
            break
    done, seconds = signalled(process, signal.SIGINT)
    assert done.code == 130 and seconds < 5
    assert done.err.strip() == "safex-native: interrupted; nothing was written"
    assert [path.name for path in tmp_path.iterdir()] == ["big.safetensors"]
