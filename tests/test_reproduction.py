"""docs/reproduction.md is what its data say, and the data are what a run on the shipped models gives again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reproduction import page, results
from reproduction.study import Prompts, Scale, Study
from reproduction.subjects import SHIPPED, Subject

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "safex" / "data" / "demo"
PAGE, FOUND = ROOT / "docs" / "reproduction.md", ROOT / "docs" / "reproduction" / "results.json"


@pytest.fixture(scope="module")
def found() -> Any:
    return json.loads(FOUND.read_text(encoding="utf-8"))


def test_every_number_of_the_page_is_from_the_data(found: Any) -> None:
    assert PAGE.read_text(encoding="utf-8") == page.made(found)


def test_a_model_without_ctrl_experts_has_no_line_of_its_repair(found: Any) -> None:
    """A model that no expert tells harmful from benign in: its page was refused once."""
    titles = list(dict.fromkeys(row["title"] for row in found["merging"]))
    assert [row[0] for row in repairs(found)] == titles
    rows = [row for row in found["merging"] if (row["title"], row["group"]) != (titles[0], "ctrl")]
    assert [row[0] for row in repairs({**found, "merging": rows})] == titles[1:]


def test_repair_is_ranked_among_random_experts(found: Any) -> None:
    """The share of groups, ctrl among them, whose additive merge is refused as much or more: counted by hand."""
    merged = [dict(row) for row in found["merging"] if row["how"] == "additive"]
    title = merged[0]["title"]
    rates = {
        "ctrl": 0.8,
        "random-1": 0.9,
        "random-2": 0.8,
        "random-3": 0.79,
        "random-4": 0.1,
        "random-5": 0.2,
    }
    rows = [row for row in merged if row["title"] == title and row["group"] in rates]
    for row in rows:
        row["jailbreak"] = [rates[row["group"]], 0.0, 1.0]
    assert repairs({**found, "merging": rows}) == [
        [title, "80.0 [0.0, 100.0]", "10.0, 20.0, 79.0, 80.0, 90.0", "0.50"]
    ]


def repairs(found: Any) -> list[list[str]]:
    """Cells of the table that ranks ctrl among random experts."""
    _, _, text = page.made(found).partition("draws of random experts |")
    lines = text.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("subject", SHIPPED, ids=lambda subject: subject.name)
def test_a_reduced_run_falls_within_the_intervals(found: Any, subject: Subject, tmp_path: Path) -> None:
    """The study again on the prompts that ship, half as many, without controls: each interval meets the page's."""
    truth = subject.truth(tmp_path)
    if truth.exists():
        (tmp_path / "truth.json").write_bytes(truth.read_bytes())
    prompts = Prompts.load(DATA / "train", DATA)
    study = Study(subject.file(tmp_path), tmp_path, prompts, Scale(draws=0), lambda text: None)
    wanted = next(row for row in found["masking"] if row["model"] == subject.name)
    groups = study.groups()
    assert {name: len(experts) for name, experts in groups.items()} == {
        mask["group"]: mask["n"] for mask in wanted["masks"]
    }
    first = results.before(study.evaluation("base", None))
    compare(first, wanted["before"])
    for group in groups:
        for mode in ("zero", "reroute"):
            mask = results.masked(study.masked(group, mode))
            other = next(m for m in wanted["masks"] if (m["group"], m["mode"]) == (group, mode))
            compare({name: mask[name] for name in RATES}, other)
            assert (mask["change"][0] < -0.5) == (other["change"][0] < -0.5)


RATES = ("regular", "jailbreak", "benign_right", "complies", "change")


def compare(rates: dict[str, list[float]], wanted: dict[str, Any]) -> None:
    """Two intervals of each rate meet."""
    for name, (_, low, high) in rates.items():
        assert low <= wanted[name][2] and high >= wanted[name][1], (name, rates[name], wanted[name])
