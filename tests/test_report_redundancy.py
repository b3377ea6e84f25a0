"""A redundancy curve in the report: what is taken and refused, the numbers, the pictures, a real browser."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import opened
from cli_runner import cli
from redundancy_results import ORDER, SIZES, make_redundancy
from report_files import HOSTILE, data_of, make_profile, write_json
from report_results import make_evaluation
from test_report_results import blocks, figure, page_of, prose, refused, table, texts

import safex
from safex.cli import COMMANDS
from safex.cli.parser import parse
from safex.redundancy_curve import Redundancy
from safex.report import build_page, read_sources
from safex.report.commands import commands
from safex.report.panels import Figure, Panel

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TITLE = "How many experts until refusal is halved"


def panels(made: Figure) -> list[Panel]:
    assert all(isinstance(panel, Panel) for panel in made.panels)
    return [panel for panel in made.panels if isinstance(panel, Panel)]


def test_a_section_of_its_own_beside_others(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_redundancy(), make_evaluation())
    assert [section.anchor for section in page.sections] == ["evaluation", "redundancy", "methods", "sources"]
    assert page.title == "Safety audit of Synthetic" and page.warnings == []
    assert page.conclusions[0] == ("made0.json", make_redundancy().conclusion)
    two = page_of(tmp_path, make_redundancy(), make_redundancy(left=1.0))
    assert [s.title for s in two.sections[:2]] == [f"{TITLE}: made0", f"{TITLE}: made1"]
    names = [one.name for one in blocks(two, Figure)]
    assert len(set(names)) == len(names) == 4


def test_it_joins_the_profile_of_its_model(tmp_path: Path) -> None:
    profile, curve = tmp_path / "p.profile.gguf", tmp_path / "a.json"
    make_profile().save(profile)
    make_redundancy().save(curve)
    assert read_sources([profile, curve]).warnings == []
    make_redundancy(experts=["2:1"]).save(curve)
    refused([profile, curve], "a.json: group 'order': expert 2:1", "no experts in layer 2")
    refused([write_json(tmp_path / "b.json", {"safex_redundancy": 9})], "b.json: has schema version 9")
    refused([write_json(tmp_path / "c.json", {"safex_redundancy": 1})], "c.json: has no 'conclusion'")


def test_the_curve_its_controls_and_the_half_point(tmp_path: Path) -> None:
    found = make_redundancy()
    refusal, compliance = panels(figure(page_of(tmp_path, found), "redundancy"))
    places = [math.log2(1 + size) for size in (0, *SIZES)]
    assert refusal.x_ticks == places and [refusal.x_name(x) for x in places] == ["0", "1", "2", "5"]
    for panel, reading in ((refusal, "refuse"), (compliance, "comply")):
        by_name = {line.name: line for line in panel.lines}
        own = by_name["the order"]
        rates = [step[reading] for step in found.curve("regular")]
        assert own.x == places and own.band and not own.grey
        assert own.y == pytest.approx([100 * rate["value"] for rate in rates])
        for ends, i in ((own.low, 0), (own.high, 1)):
            assert ends == pytest.approx([100 * rate["interval"][i] for rate in rates])
        uniform = by_name["19 orders, uniform"]
        drawn = [order[reading] for order in found.controls[0]["orders"]]
        assert uniform.grey and uniform.band
        assert uniform.low == pytest.approx([100 * min(values) for values in zip(*drawn, strict=True)])
        assert uniform.high == pytest.approx([100 * max(values) for values in zip(*drawn, strict=True)])
        assert by_name["1 order, active"].low is None
    half = next(line for line in refusal.lines if line.name == "half-point")
    ends = (found.half["interval"][0], found.half["value"], found.half["interval"][1])
    assert half.x == pytest.approx([math.log2(1 + x) for x in ends if x is not None])
    assert half.y == pytest.approx([50 * found.curve("regular")[0]["refuse"]["value"]] * len(half.x))
    assert not [line for line in compliance.lines if line.name == "half-point"]


def test_where_refusal_is_not_halved_no_point_is_drawn(tmp_path: Path) -> None:
    found = make_redundancy(left=1.0)
    assert found.half["value"] is None
    page = page_of(tmp_path, found)
    refusal, _ = panels(figure(page, "redundancy"))
    assert not [line for line in refusal.lines if line.name == "half-point"]
    assert prose(page, "redundancy").startswith("Not halved: ")
    assert texts(table(page, "Robustness"))[0][-1] == "not reached"
    assert (
        dict(texts(table(page, "What the curve shows")))[
            "Is refusal of regular prompts halved by the experts of the order?"
        ]
        == "no"
    )


def test_tables_and_words(tmp_path: Path) -> None:
    found = make_redundancy()
    page = page_of(tmp_path, found)
    rates = table(page, "Answers with the first experts")
    assert len(rates.rows) == 2 * (1 + len(SIZES))
    second = rates.rows[1]
    step = found.curve("regular")[1]
    assert [cell.text for cell in second[:3]] == ["regular", "1", str(ORDER[0])]
    assert second[3].value == pytest.approx(100 * step["refuse"]["value"])
    change = step["change"]["refuse"]["difference"]
    assert second[7].ends == pytest.approx([100 * end for end in change["interval"]])
    assert second[6].value == step["readable"] == step["n"]
    assert second[9].value == found.utility[0]["kl"]["value"] and rates.rows[5][9].value is None
    areas = table(page, "Robustness")
    assert [row[0].text for row in areas.rows] == ["the order", "uniform", "active", "shuffled"]
    assert areas.rows[0][2].ends == pytest.approx(found.area["refuse"]["interval"])
    uniform = found.controls[0]
    assert areas.rows[1][3].value == uniform["refuse"]["difference"]["value"]
    assert areas.rows[1][4].value == uniform["refuse"]["placement"]["p_value"]
    assert areas.rows[2][4].text == ""  # one order alone has no p-value
    words = prose(page, "redundancy")
    assert "Masked: 5 experts, in the order of their list (3:0, 1:3, " in words
    assert "fixed beforehand" in words and "Note: left out: something" in words
    said = prose(page, "methods")
    for part in (
        "Half-point: the smallest k",
        "Schneider et al. 2011",
        "shuffled, the same experts",
        "KL = ",
    ):
        assert part in said, part
    assert "Its activation p" not in said


def test_the_command_to_repeat_it_is_a_command(tmp_path: Path) -> None:
    make_redundancy().save(tmp_path / "m.json")
    args = parse(shlex.split(commands(read_sources([tmp_path / "m.json"]))[0])[1:], COMMANDS)
    assert args.experts == ",".join(map(str, ORDER)) and args.sizes == "1,2,5"
    assert (args.controls, args.control_kinds) == (19, "uniform,active,shuffled")
    assert (args.seed, args.max_new, args.bootstrap, args.judge) == (7, 32, 300, "keyword")
    assert not args.no_utility and args.kv_type == "f32"


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, [None], {"curve": 5}, [{"set": 3}]])
def test_odd_parts_are_left_out(value: Any, tmp_path: Path) -> None:
    """A page is made, with its pictures, whatever stands where numbers are expected."""
    step = {"size": 1, "refuse": value, "comply": {"value": value, "interval": value}, "change": value}
    order = {"refuse": value, "comply": [value, value]}
    kind = {"kind": value, "n": value, "refuse": value, "half": value, "orders": [order, value]}
    parts = {
        "sets": [
            {"set": "regular", "curve": [{"size": 0, "refuse": value}, step]},
            {"set": value, "curve": value},
        ],
        "half": {"value": value, "interval": value},
        "area": {"refuse": value, "comply": {"interval": value}},
        "controls": [kind],
        "utility": [{"size": 1, "kl": value, "ratio": {"value": value, "interval": value}}],
        "evidence": {"halved": True},
        "notes": [value],
    }
    odd = {"safex_redundancy": 1, "conclusion": "c", "experts": ["0:1"], **parts}
    found = write_json(tmp_path / "a.json", odd)
    whole = ("sets", "half", "area", "controls", "utility", "notes")
    kinds = {name: type(part) for name, part in Redundancy("").to_json().items()}
    other = {name: value for name in whole if isinstance(value, kinds[name])}
    files = [found, write_json(tmp_path / "b.json", {**odd, "conclusion": "d", **other})]
    safex.write_report(files, tmp_path / "out.html", png=tmp_path / "png")


def test_no_hostile_text_leaves_its_place(tmp_path: Path) -> None:
    found = make_redundancy(conclusion=HOSTILE, notes=[HOSTILE])
    found.sets[1]["set"] = HOSTILE
    found.controls[0]["kind"] = HOSTILE
    found.parameters["order"] = HOSTILE
    found.save(tmp_path / "a.json")
    made = safex.write_report([tmp_path / "a.json"], tmp_path / "o.html", png=tmp_path / "png")
    assert made.read_text().count("</script>") == 3 and "<img src=x" not in made.read_text()
    for panel in (panel for of in data_of(made)["figures"].values() for panel in of):
        for trace in panel["data"]:
            shown = [trace.get("name", ""), *trace.get("hovertext", []), trace.get("hovertemplate", "")]
            assert not [text for text in shown if "<" in re.sub("<br>|<extra></extra>", "", text)]


def test_report_takes_the_file_with_tables_and_pictures(tmp_path: Path) -> None:
    make_redundancy().save(tmp_path / "a.redundancy.json")
    ran = cli("report", "a.redundancy.json", "--csv", "tables", "--png", "figures", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    names = {f"redundancy_{name}" for name in ("curve", "areas", "orders", "utility")}
    assert {Path(name).stem for name in ran.json["tables"]} == names
    assert {Path(name).name for name in ran.json["png"]} == {"redundancy.png", "redundancy-cost.png"}
    found = make_redundancy().to_json()
    del found["sets"][0]["curve"][0]["refuse"]
    write_json(tmp_path / "b.json", found)
    cli("report", "b.json", "--csv", "more", "-o", "b.html", cwd=tmp_path).fails(
        2, "b.json: no tables can be made of it"
    )


@pytest.mark.parametrize(
    "settings", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 400, "height": 800}}]
)
def test_the_picture_in_a_browser(browser: Browser, settings: dict[str, Any], tmp_path: Path) -> None:
    found = make_redundancy()
    found.save(tmp_path / "a.json")
    page = safex.write_report([tmp_path / "a.json"], tmp_path / "o.html")
    with opened(browser, page, **settings) as shown:
        script = "document.querySelector(`[data-figure=redundancy] .panel`).data"
        traces = shown.page.evaluate(script)
        by_name = {trace["name"]: trace for trace in traces if trace.get("name")}
        rates = [100 * step["refuse"]["value"] for step in found.curve("regular")]
        assert by_name["the order"]["y"] == pytest.approx(rates)
        bands = [trace for trace in traces if trace.get("fill") == "tonexty"]
        assert len(bands) == 3 and len({trace["fillcolor"] for trace in bands}) == 2
        labels = "[data-figure=redundancy] .panel:first-child .xtick text"
        assert shown.page.locator(labels).all_text_contents() == ["0", "1", "2", "5"]
        width = shown.page.evaluate("document.documentElement.scrollWidth")
        assert width <= (settings.get("viewport") or {"width": 1280})["width"]
        shown.assert_clean()


def test_page_of_a_saved_file_is_that_of_the_result(tmp_path: Path) -> None:
    make_redundancy().save(tmp_path / "a.json")
    assert Redundancy.load(tmp_path / "a.json") == make_redundancy()
    assert build_page(read_sources([tmp_path / "a.json"])).sections[0].title == TITLE
