"""Probings in the report, without a browser: the numbers of ``safex.probe`` in figures and tables, and the words."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from cli_runner import cli
from probe_cases import simulated
from report_files import FINGERPRINT, HOSTILE, data_of, make_profile, write_json
from test_report_results import blocks, figure, page_of, prose, refused, table, texts

import safex
from safex.cli import COMMANDS
from safex.cli.parser import parse
from safex.experts import Expert
from safex.probing import Probing
from safex.probing.conclusion import CAVEAT
from safex.report import build_page, read_sources
from safex.report.commands import commands
from safex.report.content import Table
from safex.report.formulas import formulas
from safex.report.panels import Figure, Panel, Plane, RowPanel
from safex.report.png import DPI, write_pictures
from safex.report.probing_figures import SHOWN, layers_figure
from safex.roster import draw_roster

GROUPS = {"id": [Expert(1, 1), Expert(3, 2)], "ctrl": [Expert(3, 5)]}
KINDS = {"layer": "same layers", "frequency": "selected as often"}
DRAWS, SHUFFLES = 3, 2


@functools.cache
def probed(signal: float) -> Probing:
    """Two groups with two kinds of controls, each task; only experts of group id know ``signal``."""
    roster = draw_roster(GROUPS, [1, 3], 8, np.linspace(0, 1, 16).reshape(2, 8), draws=DRAWS)
    meta = {"model.fingerprint": FINGERPRINT, "model.name": "Synthetic"}
    features = simulated(12, {"id": signal}, roster=roster, width=6, meta=meta)
    return safex.probe(features, repeats=2, shuffles=SHUFFLES, curve=(0.5,), n_threads=1)


def make_probing(signal: float = 3.0, **parts: Any) -> Probing:
    """A copy of what ``safex.probe`` gave on simulated features, to be changed."""
    return dataclasses.replace(copy.deepcopy(probed(signal)), **parts)


def points(panel: Any, name: str) -> Any:
    """The points of a name in a panel of rows."""
    (found,) = [dots for dots in panel.dots if dots.name.startswith(name)]
    return found


# --- which files


def test_sections_of_a_probing(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_probing())
    assert page.title == "Safety audit of Synthetic"
    assert [section.title for section in page.sections] == [
        "What probes read",
        "Probes: regular and jailbreak against benign",
        "Probes: regular against benign",
        "Probes: regular against jailbreak",
        "Features on a plane",
        "Methods",
        "Input files",
    ]
    assert [model[0] for model in page.models] == ["Synthetic"]


def test_several_probings_have_sections_and_pictures_each(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_probing(), make_probing(0.0))
    anchors = [section.anchor for section in page.sections]
    assert len(set(anchors)) == len(anchors) and anchors[:2] == ["probing-1", "probing-1-task-1"]
    assert page.sections[6].title == "Probes: regular and jailbreak against benign: made1"
    names = [one.name for one in blocks(page, Figure)]
    assert len(set(names)) == len(names)
    assert {"probes-harmful-made0", "transfer-regular-benign-made1", "plane-made0"} <= set(names)


def test_groups_are_matched_with_profiles(tmp_path: Path) -> None:
    profile, probing = tmp_path / "p.profile.gguf", tmp_path / "a.probing.json"
    make_profile().save(profile)
    make_probing().save(probing)
    assert read_sources([profile, probing]).warnings == []
    make_probing(model={"fingerprint": "77" * 32}).save(probing)
    (warning,) = read_sources([profile, probing]).warnings
    assert "a.probing.json was made from another model than p.profile.gguf" in warning
    assert "what was probed is not of the experts shown on the map" in warning
    other = make_probing()
    other.tasks[0]["groups"][1]["experts"] = ["2:1"]
    other.save(probing)
    refused([profile, probing], "a.probing.json: group 'ctrl': expert 2:1", "no experts in layer 2")


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    def written(name: str, value: Any) -> list[Path]:
        return [write_json(tmp_path / f"{name}.json", value)]

    good = {"safex_probing": 1, "conclusion": "x"}
    refused(written("a", {"safex_probing": 9}), "a.json: has schema version 9")
    refused(written("b", {"safex_probing": 1}), "b.json: has no 'conclusion'")
    refused(written("c", {**good, "tasks": {}}), "c.json: 'tasks' is dict")
    refused(
        written("d", {**good, "tasks": [{"task": "x"}]}), "d.json: task 0 lacks its name, groups or experts"
    )
    task = {"task": "x", "groups": [{"group": "id", "experts": ["nonsense"]}], "experts": []}
    refused(written("e", {**good, "tasks": [task]}), "e.json: group 'id', entry 0: found 'nonsense'")
    refused(written("f", {"safex_probe": 1}), "f.json: is no result file", "probing", "probe, eval")


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, [None], {"auc": 5}, [{"auc": {}}]])
def test_odd_parts_are_left_out(value: Any, tmp_path: Path) -> None:
    """A page is made, whatever stands where numbers are expected."""
    good = make_probing().to_json()
    tasks = [{"task": value, "groups": value, "experts": value}]
    for key in good["tasks"][0]:
        changed = copy.deepcopy(good["tasks"][0])
        tasks.append({**changed, key: value})
        for part in ("groups", "experts", "layers", "control_groups", "control_experts"):
            rows = [{name: value for name in changed[part][0] if name != "experts"}]
            tasks.append({**copy.deepcopy(changed), part: rows + changed[part]})
    for name in set(good["tasks"][1]["groups"][0]) - {"experts"}:
        changed = copy.deepcopy(good["tasks"][1])
        changed["groups"][0][name] = value
        tasks.append(changed)
    group = {"group": "x", "points": [value, {"x": value, "y": 1.0}], "explained": value}
    parts = {"tasks": tasks, "projection": [value, group], "notes": [value], "features": {"prompts": value}}
    made = safex.write_report([write_json(tmp_path / "odd.json", {**good, **parts})], tmp_path / "out.html")
    assert len(data_of(made)["figures"]) > len(tasks)


@pytest.mark.parametrize("value", [None, "text", {}, [None]])
def test_odd_parts_are_left_out_of_pictures(value: Any, tmp_path: Path) -> None:
    good = make_probing().to_json()
    (task, *_), (row, *_) = good["tasks"], good["projection"]
    for part in ("groups", "experts", "layers", "control_groups", "control_experts"):
        task[part].insert(0, {name: value for name in task[part][0] if name != "experts"})
        first = task[part][1]
        first |= {name: value for name in first if name in ("auc", "curve", "controls", "shuffled")}
    row["points"][0] |= {"x": value, "set": value}
    path = write_json(tmp_path / "odd.json", {**good, "tasks": [task], "projection": [row]})
    safex.write_report([path], tmp_path / "out.html", png=tmp_path / "png")


def test_a_file_of_nothing_but_a_conclusion(tmp_path: Path) -> None:
    path = write_json(tmp_path / "bare.json", {"safex_probing": 1, "conclusion": "Nothing was found."})
    page = build_page(read_sources([path]))
    assert page.conclusions == [("bare.json", "Nothing was found.")]
    assert [section.title for section in page.sections] == ["What probes read", "Methods", "Input files"]


# --- figures


@pytest.mark.parametrize(("name", "factor"), [("auc", 1), ("accuracy", 100)])
def test_groups_words_and_random_experts_in_their_rows(name: str, factor: int, tmp_path: Path) -> None:
    probing = make_probing()
    task = probing.task("harmful")
    panel = figure(page_of(tmp_path, probing), "probes-harmful").panels[name == "accuracy"]
    assert isinstance(panel, RowPanel)
    compared = ["shuffled labels", *KINDS.values()]
    assert panel.rows == [
        "id",
        *(f"id: {x}" for x in compared),
        "ctrl",
        *(f"ctrl: {x}" for x in compared),
        "bag of words",
    ]
    groups, words = points(panel, "group"), points(panel, "bag of words")
    assert list(groups.rows) == [0, 4] and list(words.rows) == [8]
    for dots, found in ((groups, task["groups"]), (words, [task["words"]])):
        assert dots.x == pytest.approx([factor * row[name]["value"] for row in found])
        for i, ends in enumerate((dots.low, dots.high)):
            assert ends == pytest.approx([factor * row[name]["interval"][i] for row in found])
    shuffled, random = points(panel, "shuffled"), points(panel, "their mean")
    assert list(shuffled.rows) == [1, 5] and list(random.rows) == [2, 3, 6, 7]
    assert shuffled.x == pytest.approx([factor * row["shuffled"][name]["mean"] for row in task["groups"]])
    assert shuffled.high == pytest.approx(
        [factor * row["shuffled"][name]["interval"][1] for row in task["groups"]]
    )
    means = [factor * row[name]["mean"] for group in task["groups"] for row in group["controls"]]
    assert random.x == pytest.approx(means) and random.low is None
    draws = points(panel, "random experts")
    assert draws.quiet and draws.x == pytest.approx([factor * row[name] for row in task["control_groups"]])
    labels = [f"{row['group']}: {KINDS[row['kind']]}" for row in task["control_groups"]]
    assert [panel.rows[round(row)] for row in draws.rows] == labels
    assert draws.notes[0] == f"id: same layers, draw 1: {', '.join(task['control_groups'][0]['experts'])}"
    (line,) = panel.lines
    reference = 0.5 if name == "auc" else 100 * task["majority"]["value"]
    assert (line.name, line.x[0]) == ("chance" if name == "auc" else "larger class", pytest.approx(reference))
    assert panel.x_range
    for values in (groups.low, groups.high, draws.x, line.x):
        assert all(x is not None and panel.x_range[0] < x < panel.x_range[1] for x in values or ())


def test_transfer_has_a_figure_where_there_is_one(tmp_path: Path) -> None:
    probing = make_probing()
    page = page_of(tmp_path, probing)
    names = [one.name for one in blocks(page, Figure)]
    assert [name for name in names if name.startswith("transfer")] == ["transfer-regular-benign"]
    (panel,) = figure(page, "transfer-regular-benign").panels
    assert isinstance(panel, RowPanel)
    assert panel.rows == [
        "id",
        *(f"id: {x}" for x in KINDS.values()),
        "ctrl",
        *(f"ctrl: {x}" for x in KINDS.values()),
        "bag of words",
    ]
    task = probing.task("regular-benign")
    assert points(panel, "group").x == pytest.approx([g["transfer"]["auc"]["value"] for g in task["groups"]])
    draws = points(panel, "random experts")
    assert draws.x == pytest.approx([row["transfer_auc"] for row in task["control_groups"]])
    rows = texts(table(page, "Transfer: the same probes"))
    assert [row[0] for row in rows] == ["id", "ctrl", "bag of words"]
    recall = task["groups"][0]["transfer"]["recall"]["value"]
    assert rows[0][6] == f"{100 * recall:.1f}"


def test_layers_and_each_expert_alone(tmp_path: Path) -> None:
    probing = make_probing()
    task = probing.task("harmful")
    by_layer, alone = figure(page_of(tmp_path, probing), "layers-harmful").panels
    assert isinstance(by_layer, Panel) and isinstance(alone, RowPanel)
    first, second, random, chance = by_layer.lines
    known = {f"{row['layer']}:{row['expert']}": row["controls"]["auc"]["value"] for row in task["experts"]}
    assert (first.name, first.x, first.y) == ("id", [1.0, 3.0], [known["1:1"], known["3:2"]])
    assert (second.name, second.x, second.y) == ("ctrl", [3.0], [known["3:5"]])
    assert task["layers"][1]["auc"] == pytest.approx((known["3:2"] + known["3:5"]) / 2)
    assert random.y == pytest.approx([row["control_auc"] for row in task["layers"]])
    assert random.low and random.high and set(chance.y) == {0.5}
    for i, layer in enumerate((1, 3)):
        drawn = [row["auc"] for row in task["control_experts"] if row["layer"] == layer]
        assert (random.low[i], random.high[i]) == (min(drawn), max(drawn))
    assert alone.rows == ["1:1", "3:2", "3:5"]
    by_name = {f"{row['layer']}:{row['expert']}": row for row in task["experts"]}
    experts = points(alone, "group's expert")
    assert experts.x == pytest.approx([by_name[name]["auc"]["value"] for name in alone.rows])
    assert experts.low == pytest.approx([by_name[name]["auc"]["interval"][0] for name in alone.rows])
    means = [by_name[name]["controls"]["auc"]["mean"] for name in alone.rows]
    assert points(alone, "their mean").x == pytest.approx(means)
    draws = points(alone, "random experts")
    n = {layer: sum(row["layer"] == layer for row in task["control_experts"]) for layer in (1, 3)}
    assert len(draws.x) == n[1] + 2 * n[3] and draws.notes[0].startswith("layer 1, expert 1:")


def test_many_experts_keep_the_highest(tmp_path: Path) -> None:
    rows = [
        {"layer": i, "expert": 0, "auc": {"value": i / 100, "interval": [0.0, 1.0]}} for i in range(SHOWN + 5)
    ]
    made = layers_figure({"experts": rows}, "layers")
    assert made
    (panel,) = made.panels
    assert isinstance(panel, RowPanel)
    assert panel.rows == [f"{i}:0" for i in range(5, SHOWN + 5)]
    assert panel.title == f"The {SHOWN} highest of {SHOWN + 5} experts"


def test_learning_curves_hold_each_point_with_its_interval(tmp_path: Path) -> None:
    probing = make_probing()
    page = page_of(tmp_path, probing)
    groups, ends = probing.task("harmful")["groups"], set()
    for panel, group in zip(figure(page, "curve-harmful").panels, groups, strict=True):
        assert isinstance(panel, Panel) and panel.title == f"Group {group['group']}"
        line, chance = panel.lines
        curve = group["curve"]
        ends.add(panel.y_range)
        assert set(chance.y) == {0.5}
        assert line.x == [point["n_train"] for point in curve]
        assert line.y == [point["auc"]["value"] for point in curve]
        assert line.low == [point["auc"]["interval"][0] for point in curve]
    assert len(ends) == 1
    one = make_probing()
    for group in one.tasks[0]["groups"]:
        group["curve"] = group["curve"][-1:]
    assert "curve-harmful" not in [made.name for made in blocks(page_of(tmp_path, one), Figure)]


def test_the_plane_holds_every_prompt_by_set(tmp_path: Path) -> None:
    probing = make_probing()
    made = figure(page_of(tmp_path, probing), "plane")
    assert "It measures nothing" in made.caption
    for panel, row in zip(made.panels, probing.projection, strict=True):
        assert isinstance(panel, Plane) and panel.title == f"Group {row['group']}"
        first, second = (
            f"component {i} ({100 * row['explained'][i - 1]:.1f} % of the variance)" for i in (1, 2)
        )
        assert (panel.x_title, panel.y_title) == (first, second)
        assert [cloud.name for cloud in panel.clouds] == ["regular", "jailbreak", "benign"]
        assert len({cloud.style for cloud in panel.clouds}) == 3
        shown = {note: (x, y) for c in panel.clouds for note, x, y in zip(c.notes, c.x, c.y, strict=True)}
        assert shown == {point["id"]: (point["x"], point["y"]) for point in row["points"]}
    only = page_of(tmp_path, make_probing(projection=[]))
    assert "Features on a plane" not in [section.title for section in only.sections]


def test_clouds_differ_in_colour_and_in_symbol(tmp_path: Path) -> None:
    make_probing().save(tmp_path / "a.json")
    panels = data_of(safex.write_report([tmp_path / "a.json"], tmp_path / "o.html"))["figures"]["plane"]
    for panel in panels:
        looks = [trace["marker"] for trace in panel["data"]]
        assert len({look["color"] for look in looks}) == len({look["symbol"] for look in looks}) == 3
        assert panel["layout"]["showlegend"] and panel["layout"]["yaxis"]["scaleanchor"] == "x"


# --- tables


def test_probes_with_their_intervals(tmp_path: Path) -> None:
    probing = make_probing()
    task = probing.task("harmful")
    shown = table(page_of(tmp_path, probing), "Probes on all experts", "probing-task-1")
    assert [row[0].text for row in shown.rows] == ["id", "ctrl", "bag of words", "larger class"]
    at = {column.title: i for i, column in enumerate(shown.columns)}
    for cells, row in zip(shown.rows, [*task["groups"], task["words"]], strict=False):
        auc, recall = cells[at["AUC"]], cells[at["recall, %"]]
        assert (auc.value, auc.ends) == (row["auc"]["value"], tuple(row["auc"]["interval"]))
        assert recall.value == pytest.approx(100 * row["recall"]["value"])
        assert recall.ends == pytest.approx([100 * end for end in row["recall"]["interval"]])
    first, null = shown.rows[0], task["groups"][0]["shuffled"]["auc"]
    assert (first[at["shuffled: AUC"]].value, first[at["p"]].value) == (null["mean"], null["p_value"])
    less = task["groups"][0]["versus_words"]
    assert first[at["less words"]].value == pytest.approx(100 * less["value"])
    larger = shown.rows[3][at["accuracy, %"]]
    assert larger.value == pytest.approx(100 * task["majority"]["value"]) and larger.note


def test_controls_with_their_p_values(tmp_path: Path) -> None:
    probing = make_probing()
    page = page_of(tmp_path, probing)
    shown = table(page, "Groups among random experts", "probing-task-2")
    measures = ("auc", "accuracy", "mean_single_auc", "transfer_auc")
    found = [
        (group["group"], row, key)
        for group in probing.task("regular-benign")["groups"]
        for row in group["controls"]
        for key in measures
    ]
    for cells, (name, row, key) in zip(shown.rows, found, strict=True):
        assert [cell.text for cell in cells[:2]] == [name, KINDS[row["kind"]]]
        factor = 100 if key == "accuracy" else 1
        value, mean, p, draws = cells[3:]
        assert value.value == pytest.approx(factor * row[key]["value"])
        assert mean.value == pytest.approx(factor * row[key]["mean"])
        assert mean.ends == pytest.approx((factor * row[key]["min"], factor * row[key]["max"]))
        assert (p.value, draws.text) == (row[key]["p_value"], str(DRAWS))
    other = texts(table(page, "Groups among random experts", "probing-task-1"))
    assert len(other) == 4 * 3 and "AUC of the transfer" not in [row[2] for row in other]


def test_experts_layers_and_curves_in_numbers(tmp_path: Path) -> None:
    probing = make_probing()
    task, page = probing.task("harmful"), page_of(tmp_path, probing)
    experts = table(page, "Experts of the groups, each probed alone", "probing-task-1")
    values = [row[3].value for row in experts.rows]
    assert values == sorted((row["auc"]["value"] for row in task["experts"]), reverse=True)
    assert experts.rows[0][1].text == "id" and experts.rows[0][0].expert
    assert all(row[3].note and row[8].value is not None for row in experts.rows)
    layers = table(page, "Means over experts probed alone", "probing-task-1")
    assert [row[2].value for row in layers.rows] == [row["auc"] for row in task["layers"]]
    assert [layers.columns[i].title for i in (4, 5)] == ["AUC, id", "AUC, ctrl"]
    assert layers.rows[0][5].text == "–" and layers.rows[1][5].value is not None
    curve = table(page, "Groups by number of training prompts", "probing-task-1")
    assert len(curve.rows) == sum(len(group["curve"]) for group in task["groups"])


def test_a_group_that_was_not_probed_says_so(tmp_path: Path) -> None:
    probing = make_probing()
    group = probing.tasks[0]["groups"][1]
    why = "too few prompts with its output"
    unknown = dict.fromkeys(("signal", "specific", "beyond_words"))
    bare = {"n": 3, "skipped": why, "evidence": unknown, "conclusion": "Not probed.", "controls": []}
    probing.tasks[0]["groups"][1] = {"group": "ctrl", "experts": group["experts"], **bare}
    page = page_of(tmp_path, probing)
    shown = table(page, "Probes on all experts", "probing-task-1").rows[1]
    assert (shown[0].text, shown[0].note, shown[1].text, shown[2].text) == (
        "ctrl",
        f"not probed: {why}",
        "3",
        "–",
    )
    assert texts(table(page, "What holds"))[1][1:] == ["ctrl", *["not probed"] * 3]
    panel = figure(page, "probes-harmful").panels[0]
    assert isinstance(panel, RowPanel) and points(panel, "group").x[1] is None


# --- words


def test_a_signal_and_none_are_said_as_plainly(tmp_path: Path) -> None:
    for signal in (3.0, 0.0):
        probing = make_probing(signal)
        page = page_of(tmp_path, probing)
        holds = {tuple(row[:2]): row[2:] for row in texts(table(page, "What holds"))}
        for i, task in enumerate(probing.tasks, 1):
            said = prose(page, f"probing-task-{i}")
            assert f"Task {task['task']}: {task['n']} prompts, {task['n_positive']} positive" in said
            for group in task["groups"]:
                assert group["conclusion"] in said
                known = {True: "yes", False: "no", None: "too few draws"}
                assert holds[task["task"], group["group"]] == [known[x] for x in group["evidence"].values()]
    assert "No signal shown" in said and holds["harmful", "ctrl"][0] == "no"


def test_overview_says_what_was_probed_and_the_limits(tmp_path: Path) -> None:
    said = prose(page_of(tmp_path, make_probing(notes=["only 12 prompts"])), "probing")
    n = probed(3.0).features["n_experts"]
    how = "pool mean, phase prompt, routing forced"
    assert f"outputs of {n} experts ({how}); prompts: 12 regular, 12 jailbreak, 12 benign." in said
    assert said.endswith("Note: only 12 prompts")
    assert CAVEAT.split(":")[0] in said


# --- methods


def test_formulas_are_those_of_what_is_there(tmp_path: Path) -> None:
    everything = {
        "DeLong",
        "Random experts",
        "Shuffled labels",
        "bag of words",
        "Transfer",
        "The plane",
        "whole categories",
        "activation p",
    }

    def holds(probing: Probing) -> set[str]:
        probing.save(tmp_path / "m.json")
        said = "\n".join(formulas(read_sources([tmp_path / "m.json"])))
        return {word for word in everything if word in said}

    assert holds(make_probing()) == everything - {"whole categories", "activation p"}
    bare = make_probing(projection=[], parameters={"hold_out": "category"})
    del bare.tasks[1:]
    for group in bare.tasks[0]["groups"]:
        group |= {"controls": [], "shuffled": None}
    bare.tasks[0]["words"] = None
    assert holds(bare) == {"DeLong", "whole categories"}


def test_command_to_repeat_is_a_command(tmp_path: Path) -> None:
    make_probing().save(tmp_path / "m.probing.json")
    line, _ = commands(read_sources([tmp_path / "m.probing.json"]))
    args = parse(shlex.split(line)[1:], COMMANDS)
    assert args.task == ["harmful", "regular-benign", "regular-jailbreak"]
    assert (args.repeats, args.shuffles, args.folds, args.hold_out) == (2, SHUFFLES, 5, None)
    assert args.output == "m.probing.json"


def test_methods_say_where_the_numbers_come_from(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_probing())
    facts = dict(texts(table(page, "Parameters and origin: probing")))
    assert facts["features.routing"] == "forced" and facts["repeats"] == "2"
    assert facts["features.prompts"] == "regular 12, jailbreak 12, benign 12"


# --- hostile text


def hostile_probing(folder: Path) -> list[Path]:
    """A probing whose every name is hostile."""
    probing = make_probing(notes=[HOSTILE], conclusion=HOSTILE)
    for task in probing.tasks:
        task |= {"task": HOSTILE, "positive": [HOSTILE], "negative": [HOSTILE], "transfer": [HOSTILE]}
        for row in (*task["groups"], *task["control_groups"]):
            row["group"] = f"{HOSTILE}{row['group']}"
        for group in task["groups"]:
            group |= {"conclusion": HOSTILE, "skipped": HOSTILE}
            group["controls"][0]["kind"] = HOSTILE
        for draw in task["control_groups"]:
            draw["experts"] = [HOSTILE]
        for expert in task["experts"]:
            expert["groups"] = [HOSTILE]
    for row in probing.projection:
        row["group"] = HOSTILE
        for point in row["points"]:
            point |= {"set": f"{point['set']}{HOSTILE}", "id": HOSTILE}
    probing.features["pool"] = HOSTILE
    probing.save(folder / "h.probing.json")
    return [folder / "h.probing.json"]


def test_no_hostile_text_leaves_its_place(tmp_path: Path) -> None:
    made = safex.write_report(hostile_probing(tmp_path), tmp_path / "o.html", png=tmp_path / "png")
    text = made.read_text()
    assert text.count("</script>") == 3 and "<img src=x" not in text
    figures = data_of(made)["figures"]
    assert len(figures) == 3 * 3 + 2  # one task has a transfer
    for panel in (panel for panels in figures.values() for panel in panels):
        axes = [panel["layout"][name] for name in ("xaxis", "yaxis")]
        shown = [panel["layout"]["title"]["text"], *axes[1].get("ticktext", [])]
        shown += [axis["title"]["text"] for axis in axes if "title" in axis]
        for trace in panel["data"]:
            shown += [trace.get("name", ""), *trace.get("hovertext", [])]
            shown.append(trace["hovertemplate"].replace("<br>", "").replace("<extra></extra>", ""))
        assert not [text for text in shown if "<" in text]
    for path in (tmp_path / "png").iterdir():
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.png", path.name)


# --- PNG, tables, the command


def test_pictures_of_a_probing(tmp_path: Path) -> None:
    paths = write_pictures(page_of(tmp_path, make_probing()), tmp_path / "figures")
    tasks = ("harmful", "regular-benign", "regular-jailbreak")
    names = {f"{what}-{task}.png" for what in ("probes", "layers", "curve") for task in tasks}
    assert {path.name for path in paths} == names | {"transfer-regular-benign.png", "plane.png"}
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert width == round(7.2 * DPI) and 1.9 * DPI <= height <= 14 * DPI, path


def test_picture_of_the_plane_has_each_set_in_its_place(tmp_path: Path) -> None:
    """Sets drawn far apart by hand: regular left, jailbreak right, benign above."""
    places = {"regular": (-5.0, 0.0), "jailbreak": (5.0, 0.0), "benign": (0.0, 8.0)}
    made = [{"id": name, "set": name, "x": x, "y": y} for name, (x, y) in places.items()]
    projection = [{"group": "id", "explained": [0.5, 0.25], "points": made}]
    page = page_of(tmp_path, make_probing(projection=projection, tasks=[]))
    (path,) = write_pictures(page, tmp_path / "png")
    image = matplotlib.image.imread(path)[..., :3]
    body = image[: int(0.8 * len(image))]  # without the legend

    def where(colour: tuple[int, int, int]) -> tuple[float, float]:
        blended = 0.9 * np.array(colour) / 255 + 0.1
        rows, columns = np.nonzero(np.abs(body - blended).max(axis=2) < 0.02)
        return float(np.median(columns)), float(np.median(rows))

    regular, jailbreak, benign = (where(c) for c in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)))
    assert regular[0] < benign[0] < jailbreak[0] and benign[1] < regular[1]
    across, up = jailbreak[0] - regular[0], regular[1] - benign[1]
    assert across / up == pytest.approx(10 / 8, rel=0.03)  # one scale on both axes


def test_command(tmp_path: Path) -> None:
    make_probing().save(tmp_path / "a.probing.json")
    ran = cli("report", "a.probing.json", "--csv", "tables", "--png", "figures", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    names = {"probes", "comparisons", "controls", "curves", "layers", "projection"}
    assert {Path(name).stem for name in ran.json["tables"]} == {f"probing_{name}" for name in names}
    assert len(ran.json["png"]) == 3 * 3 + 2


def test_tables_have_a_caption_each(tmp_path: Path) -> None:
    captions = [one.caption for one in blocks(page_of(tmp_path, make_probing()), Table, "probing-task-2")]
    assert len(captions) == len(set(captions)) == 6
