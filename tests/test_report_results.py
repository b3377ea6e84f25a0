"""Evaluations and sweeps in the report, without a browser: what is taken and refused, the numbers, the words."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from cli_runner import cli
from report_files import HOSTILE, data_of, make_expert_set, make_profile, write_json
from report_results import KINDS, MASK, PROMPTS, make_evaluation, make_records, make_sweep
from scipy import stats

import safex
from safex.cli import COMMANDS
from safex.cli.parser import parse
from safex.report import Page, build_page, read_sources
from safex.report.commands import commands
from safex.report.content import Prose, Table
from safex.report.evaluation_figures import controls_figure
from safex.report.formulas import formulas
from safex.report.panels import Figure, Grid, RowPanel
from safex.report.png import DPI, write_pictures
from safex.report.sweep_tables import experts_table

THREE = ("refuse", "comply", "other")
MASKED, UNMASKED, SWEPT = "What the mask does", "How often the model refuses", "Which experts cause it"


def page_of(folder: Path, *made: Any) -> Page:
    """The page of evaluations and sweeps."""
    paths = []
    for i, one in enumerate(made):
        paths.append(folder / f"made{i}.json")
        one.save(paths[-1])
    return build_page(read_sources(paths))


def blocks(page: Page, kind: type, anchor: str | None = None) -> list[Any]:
    sections = [section for section in page.sections if anchor in (None, section.anchor)]
    return [block for section in sections for block in section.blocks if isinstance(block, kind)]


def table(page: Page, start: str, anchor: str | None = None) -> Table:
    (found,) = [one for one in blocks(page, Table, anchor) if one.caption.startswith(start)]
    assert isinstance(found, Table)
    return found


def texts(made: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in made.rows]


def prose(page: Page, anchor: str) -> str:
    return "\n".join(text for block in blocks(page, Prose, anchor) for text in block.paragraphs)


def figure(page: Page, name: str) -> Figure:
    (found,) = [one for one in blocks(page, Figure) if one.name == name]
    assert isinstance(found, Figure)
    return found


def refused(files: list[Path], *parts: str) -> None:
    with pytest.raises(safex.InputError) as caught:
        read_sources(files)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


# --- which files


def test_sections_of_each_kind_alone_and_of_all(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("masked", "plain", "sweep")}
    make_evaluation().save(files["masked"])
    make_evaluation(left=None).save(files["plain"])
    make_sweep().save(files["sweep"])
    expected = {"masked": [MASKED], "plain": [UNMASKED], "sweep": [SWEPT]}
    for name, titles in expected.items():
        page = build_page(read_sources([files[name]]))
        assert [section.title for section in page.sections] == [*titles, "Methods", "Input files"]
        assert page.title == "Safety audit of Synthetic"
    profile = make_profile()
    profile.save(tmp_path / "p.profile.gguf")
    make_expert_set(profile).save(tmp_path / "e.json")
    every = [files["sweep"], tmp_path / "e.json", files["masked"], tmp_path / "p.profile.gguf"]
    page = build_page(read_sources(every))
    assert page.warnings == []
    titles = [section.title for section in page.sections]
    assert titles.index("Groups of experts") < titles.index(MASKED) < titles.index(SWEPT)
    assert [model[4] for model in page.models] == ["sweep.json, e.json, masked.json, p.profile.gguf"]


def test_several_evaluations_have_a_section_and_pictures_each(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_evaluation(), make_evaluation(left=0.9), make_sweep(), make_sweep(seed=1))
    anchors = [section.anchor for section in page.sections]
    assert anchors[:4] == ["evaluation-1", "evaluation-2", "sweep-1", "sweep-2"]
    assert page.sections[1].title == f"{MASKED}: made1"
    names = [one.name for one in blocks(page, Figure)]
    assert len(set(names)) == len(names)
    assert {"rates-made0", "controls-made1", "effects-made2", "effects-map-made3"} <= set(names)


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    def written(name: str, value: Any) -> list[Path]:
        return [write_json(tmp_path / f"{name}.json", value)]

    good = make_sweep().to_json()
    refused(written("a", {"safex_evaluation": 9}), "a.json: has schema version 9")
    refused(written("b", {"safex_evaluation": 1}), "b.json: has no 'conclusion'")
    mask = {"safex_evaluation": 1, "conclusion": "x", "mask": {"experts": ["nonsense"]}}
    refused(written("c", mask), "c.json: group 'mask', entry 0: found 'nonsense'")
    refused(
        written("d", {"safex_evaluation": 1, "conclusion": "x", "results": []}), "d.json: 'results' is list"
    )
    refused(written("e", {"safex_sweep": 9}), "e.json: has schema version 9")
    refused(written("f", {"safex_sweep": 1, "rows": [{"layer": 1}]}), "f.json: row 0 lacks")
    refused(
        written("g", {**good, "rows": good["rows"][:1] * 2}), "g.json: group 'sweep' lists expert", "twice"
    )
    odd = [{**good["rows"][0], "layer": [1]}]
    refused(written("h", {**good, "rows": odd}), "h.json: group 'sweep', entry 0")
    outside = [{**good["rows"][0], "expert": 8}]
    refused(written("i", {**good, "rows": outside}), "i.json: group 'sweep': expert", "has experts 0 to 7")


def test_files_of_other_models_are_refused_or_named(tmp_path: Path) -> None:
    profile, evaluation, sweep = (tmp_path / n for n in ("p.profile.gguf", "a.eval.json", "b.sweep.json"))
    make_profile().save(profile)
    make_evaluation(mask={"experts": ["2:1"]}).save(evaluation)
    refused([profile, evaluation], "a.eval.json: group 'mask': expert 2:1", "no experts in layer 2")
    make_sweep((3, 16), model={"fingerprint": "77", "layers": [1, 3, 5], "n_experts": 16}).save(sweep)
    refused([profile, sweep], "b.sweep.json", "has experts 0 to 7")
    make_sweep((3, 8), [(0, 1)], model={"layers": [1, 3, 5, 7], "n_experts": 16}).save(sweep)
    refused([profile, sweep], "b.sweep.json: was made from a model of 4 layers x 16 experts")
    make_evaluation(model={"model.fingerprint": "77" * 32}).save(evaluation)
    (warning,) = read_sources([profile, evaluation]).warnings
    assert "a.eval.json was made from another model than p.profile.gguf" in warning
    make_sweep().save(sweep)
    (warning,) = read_sources([evaluation, sweep]).warnings
    assert "different models: a.eval.json (fingerprint 777777777777), b.sweep.json" in warning
    assert read_sources([profile, sweep]).warnings == []


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, [None], {"sets": 5}, [{"set": 3}]])
def test_odd_parts_are_left_out(value: Any, tmp_path: Path) -> None:
    """A page is made, with its pictures, whatever stands where numbers are expected."""
    names = ("sets", "jailbreak", "controls", "evidence")
    set_ = {"set": value, **dict.fromkeys(("before", "after", "refuse", "comply", "categories"), value)}
    control = {"set": "regular", "kind": value, "n": value, "refuse": value, "masks": value}
    rates = {"set": "regular", "before": {"n": value, "refuse": {"value": value, "interval": value}}}
    results = {
        "a": value,
        "b": dict.fromkeys(names, value),
        "c": {"sets": [set_, rates], "controls": [control], "evidence": {"effect": value}},
    }
    utility = dict.fromkeys(("kl", "agreement", "n_tokens"), value)
    parts = {"results": results, "agreement": [value, {"judges": value, "kappa": value, "table": value}]}
    evaluation = {"safex_evaluation": 1, "conclusion": "c", "utility": utility, "notes": [value], **parts}
    curve = dict.fromkeys(("set", "mask", "tokens", "judge", "refuse"), value)
    evaluation |= {"length_curve": [value, curve], "at_limit": [value, {"mask": "none", "n": value}]}
    entry = {
        "layer": 1,
        "expert": 2,
        **dict.fromkeys(("effect", "interval", "p_adjusted", "gradient"), value),
    }
    sweep = {
        "safex_sweep": 1,
        "rows": [entry, {**entry, "layer": 3, "effect": {"regular": value}, "specificity": value}],
        "pairs": [value, dict.fromkeys(("experts", "interaction"), value)],
        "model": {"layers": value, "n_experts": value},
        "baseline": {"regular": value},
        "starts": {"refuse": value, "coverage": value},
    }
    files = [write_json(tmp_path / "e.json", evaluation), write_json(tmp_path / "s.json", sweep)]
    safex.write_report(files, tmp_path / "out.html", png=tmp_path / "png")


# --- evaluations


def counted(left: float = 0.2) -> Counter[tuple[str, str, str]]:
    """Answers by set, mask and reading, counted from the records that ``make_evaluation`` draws."""
    masks = {
        "none": 1.0,
        "mask": left,
        **{f"control-{k}-{i}": 0.95 for k, n in KINDS.items() for i in range(1, n + 1)},
    }
    labels = ((r.set, r.mask, r.labels["keyword"]) for r in make_records(masks))
    return Counter(labels)


def test_rates_are_counts_with_wilson_s_intervals(tmp_path: Path) -> None:
    found, shown = counted(), table(page_of(tmp_path, make_evaluation()), "Rates in percent")
    names = {"no mask": "none", "masked": "mask"}
    assert len(shown.rows) == 6
    for row in shown.rows:
        set_, mask = row[0].text, names[row[1].text]
        for reading, cell in zip(THREE, row[4:7], strict=True):
            k = found[set_, mask, reading]
            interval = stats.binomtest(k, PROMPTS).proportion_ci(0.95, "wilson")
            assert cell.value == pytest.approx(100 * k / PROMPTS)
            assert cell.ends == pytest.approx((100 * interval.low, 100 * interval.high))
            assert cell.text == f"{100 * k / PROMPTS:.1f}"


def test_changes_and_their_p_values(tmp_path: Path) -> None:
    found, page = counted(), page_of(tmp_path, make_evaluation())
    for row in table(page, "Change by the mask").rows:
        set_, points, p, lost, gained = row[0].text, row[1].value, row[4].value, row[5].value, row[6].value
        change = found[set_, "mask", "refuse"] - found[set_, "none", "refuse"]
        assert points == pytest.approx(100 * change / PROMPTS)
        assert isinstance(lost, float) and isinstance(gained, float) and gained - lost == change
        n = int(lost + gained)
        assert p == pytest.approx(stats.binomtest(int(lost), n).pvalue if n else 1.0)
    assert texts(table(page, "Change by the mask"))[0][1].startswith("−")


def test_bars_and_their_ends(tmp_path: Path) -> None:
    found = counted()
    panels = figure(page_of(tmp_path, make_evaluation()), "rates").panels
    assert [panel.title for panel in panels] == ["Refusal", "Compliance", "Neither"]
    for panel, reading in zip(panels, THREE, strict=True):
        assert isinstance(panel, RowPanel) and panel.rows == ["regular", "jailbreak", "benign"]
        for dots, mask in zip(panel.dots, ("none", "mask"), strict=True):
            truth = [100 * found[set_, mask, reading] / PROMPTS for set_ in panel.rows]
            assert dots.bars and dots.x == pytest.approx(truth)
            low, high = dots.low, dots.high
            assert low is not None and high is not None
            for x, a, b in zip(truth, low, high, strict=True):
                assert a is not None and b is not None and a <= x + 1e-9 and x <= b + 1e-9


def test_the_mask_among_its_controls(tmp_path: Path) -> None:
    found, evaluation = counted(), make_evaluation()
    page = page_of(tmp_path, evaluation)
    refusal, compliance = figure(page, "controls").panels
    for panel, reading in ((refusal, "refuse"), (compliance, "comply")):
        assert isinstance(panel, RowPanel) and panel.rows == list(KINDS)
        draws, real = panel.dots
        truth = [100 * found["regular", name, reading] / PROMPTS for name in draws.notes]
        assert draws.quiet and draws.x == pytest.approx(truth) and len(draws.notes) == sum(KINDS.values())
        assert [name.split("-")[1] for name in draws.notes] == [panel.rows[round(row)] for row in draws.rows]
        places = set(zip(draws.rows, draws.x, strict=True))
        assert len(places) == len(draws.notes)  # no point hides another
        assert real.x == pytest.approx([100 * found["regular", "mask", reading] / PROMPTS] * len(KINDS))
        (line,) = panel.lines
        assert line.name == "no mask"
        assert line.x[0] == pytest.approx(100 * found["regular", "none", reading] / PROMPTS)
    rows = texts(table(page, "The mask among its control masks"))
    assert [row[:3] for row in rows] == [
        ["regular", "the mask", "1"],
        ["regular", "uniform", "19"],
        ["regular", "layer", "19"],
        ["regular", "active", "1"],
    ]
    assert [row[7] for row in rows] == ["–", "0.050", "0.050", "–"]
    assert rows[0][3] == "1.25" and rows[1][3] == "0.59"


def test_equal_draws_stay_within_their_row() -> None:
    masks = [{"mask": f"control-uniform-{i}", "refuse": 1.0, "comply": 0.0} for i in range(500)]
    made = controls_figure({"controls": [{"set": "regular", "kind": "uniform", "masks": masks}]}, "controls")
    assert made
    panel = made.panels[0]
    assert isinstance(panel, RowPanel) and panel.lines == []
    assert max(abs(row) for row in panel.dots[0].rows) < 0.4
    assert len(set(panel.dots[0].rows)) == 500


def test_an_effect_and_no_effect_are_said_as_plainly(tmp_path: Path) -> None:
    strong, none = (page_of(tmp_path, make_evaluation(left=left)) for left in (0.1, 1.0))
    for page, start, answer in (
        (strong, "Masking 3 experts lowers refusal", "yes"),
        (none, "No effect shown: ", "no"),
    ):
        assert page.conclusions[0][1].startswith(start)
        assert prose(page, "evaluation").startswith(start)
        questions = dict(texts(table(page, "What the conclusion rests on")))
        assert questions["Is refusal of regular prompts lower with the mask?"] == answer
    assert questions["Is it lower than with as many other experts masked?"] == "no effect"
    assert f"Masked: 3 experts ({', '.join(MASK)}); mode reroute, phase both." in prose(strong, "evaluation")


def test_jailbreak_and_over_refusal_in_words(tmp_path: Path) -> None:
    found, said = counted(), prose(page_of(tmp_path, make_evaluation()), "evaluation")
    jailbreak, regular, benign, masked = (
        f"{100 * found[set_, mask, 'refuse'] / PROMPTS:.1f} %"
        for set_, mask in (("jailbreak", "none"), ("regular", "none"), ("benign", "none"), ("benign", "mask"))
    )
    assert (
        f"Jailbreak, no mask: {jailbreak} of the jailbreak prompts are refused, {regular} of the regular"
        in said
    )
    assert "twins of the same requests; p " in said
    assert (
        f"Over-refusal: {benign} of the benign prompts are refused without a mask, {masked} with it." in said
    )


def test_without_a_mask_nothing_is_said_of_one(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_evaluation(left=None))
    captions = [one.caption for one in blocks(page, Table, "evaluation")]
    assert [caption.split(":")[0].split(",")[0] for caption in captions] == [
        "Rates in percent of the answers that could be read",
        "By category of the prompts",
    ]
    assert [one.name for one in blocks(page, Figure)] == ["rates"]
    assert all(len(panel.dots) == 1 for panel in figure(page, "rates").panels if isinstance(panel, RowPanel))
    assert "No mask was given" in prose(page, "evaluation")


def test_categories(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_evaluation())
    shown = table(page, "By category")
    assert [column.title for column in shown.columns][3:7] == [
        "refuse, no mask",
        "refuse, masked",
        "change of refusal",
        "p (Holm)",
    ]
    assert [row[:3] for row in texts(shown)][:2] == [["regular", "fraud", "12"], ["regular", "theft", "12"]]
    whole = table(page, "Rates in percent").rows[0][4].value
    parts = [row[3].value for row in shown.rows[:2]]
    assert isinstance(whole, float) and whole == pytest.approx(sum(map(float, map(str, parts))) / 2)


def test_several_judges(tmp_path: Path) -> None:
    evaluation = make_evaluation(("keyword", "logit"))
    page = page_of(tmp_path, evaluation)
    names = [one.name for one in blocks(page, Figure)]
    assert names == ["rates-keyword", "rates-logit", "controls-keyword", "controls-logit"]
    assert [row[0] for row in texts(table(page, "Rates in percent"))] == ["keyword"] * 6 + ["logit"] * 6
    said = prose(page, "evaluation")
    for judge in ("keyword", "logit"):
        assert f"Judge {judge}: {evaluation.results[judge]['conclusion']}" in said
    (row,) = texts(table(page, "How far the judges agree"))
    pair = evaluation.agreement[0]
    assert row[:2] == ["keyword, logit", f"{pair['n']:,}"]
    assert row[2:4] == [f"{100 * pair['agree']:.1f}", f"{pair['kappa']:.2f}".replace("-", "−")]
    most = max((n, f"{a} / {b}: {n}") for a in THREE for b, n in pair["table"][a].items() if a != b)
    assert row[4].startswith(most[1])


def test_cost_and_notes(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_evaluation(notes=["uniform: 3 of 19 masks"]))
    shown = {row[0].text: (row[1].text, row[1].note) for row in table(page, "What the mask costs").rows}
    assert shown["perplexity, no mask"] == ("8.250", "7.425 to 9.075")
    assert shown["KL divergence from the unmasked model, nats a token"] == ("0.00123", "0.00111 to 0.00136")
    assert shown["same best token, %"][0] == "93.8"
    assert "1,000 tokens in 8 pieces" in table(page, "What the mask costs").caption
    assert prose(page, "evaluation").endswith("Note: uniform: 3 of 19 masks")


# --- sweeps


def test_effects_in_the_figure_and_the_table(tmp_path: Path) -> None:
    sweep = make_sweep((3, 20))
    page = page_of(tmp_path, sweep)
    (panel,) = figure(page, "effects").panels
    assert isinstance(panel, RowPanel)
    assert panel.rows == [str(expert) for expert in sweep.experts[:40]]
    assert panel.title == "The 40 most refusal-lowering of 60 experts"
    for dots in panel.dots:
        assert dots.x == [row["effect"][dots.name] for row in sweep.rows[:40]]
        assert dots.low == [row["interval"][dots.name][0] for row in sweep.rows[:40]]
        assert [round(row) for row in dots.rows] == list(range(40))
    shown = table(page, "Effect of masking one expert")
    assert [row[0].text for row in shown.rows] == [str(expert) for expert in sweep.experts]
    titles = [column.title for column in shown.columns]
    at = {title: i for i, title in enumerate(titles)}
    for cells, row in zip(shown.rows, sweep.rows, strict=True):
        assert cells[at["effect, benign"]].value == pytest.approx(row["effect"]["benign"], rel=1e-5)
        assert cells[at["regular less benign"]].ends == pytest.approx(row["specificity_interval"], rel=1e-5)
        assert cells[at["gradient, half step"]].value == pytest.approx(row["gradient"] + 0.015625, rel=1e-4)
        assert cells[at["p adjusted"]].value == row["p_adjusted"]
    assert [row[at["lowers refusal"]].text for row in shown.rows[:2]] == ["yes", "no"]


def test_the_map_holds_every_effect(tmp_path: Path) -> None:
    sweep = make_sweep((3, 8))
    panels = figure(page_of(tmp_path, sweep), "effects-map").panels
    assert [panel.title for panel in panels] == [f"Effect on {name} prompts" for name in sweep.baseline]
    truth = {(row["layer"], row["expert"]): row["effect"] for row in sweep.rows}
    for panel, name in zip(panels, sweep.baseline, strict=True):
        assert isinstance(panel, Grid) and panel.layers == [1, 3, 5]
        for layer, cells in zip(panel.layers, panel.values, strict=True):
            assert cells == [truth[layer, expert][name] for expert in range(8)]
    limits = {panel.limit for panel in panels if isinstance(panel, Grid)}
    assert len(limits) == 1 and limits.pop() <= max(
        abs(v) for row in sweep.rows for v in row["effect"].values()
    )


def test_a_sweep_of_some_experts_has_no_map(tmp_path: Path) -> None:
    sweep = make_sweep((3, 8), [(0, 1), (1, 3)], gradient=False, pairs=0, sets=("regular",))
    sweep.rows[1]["role"] = "neighbour"
    page = page_of(tmp_path, sweep)
    assert [one.name for one in blocks(page, Figure)] == ["effects"]
    titles = [column.title for column in table(page, "Effect of masking one expert").columns]
    assert "role" in titles and "gradient" not in titles
    said = prose(page, "sweep")
    assert said.startswith(sweep.conclusion)
    assert "2 experts masked, each alone (mode zero, gain 0.0), 1 neighbour in activation among them." in said
    assert 'Refusals begin with "I can\'t" (95 % of 20).' in said


def test_pairs_and_the_logit_without_a_mask(tmp_path: Path) -> None:
    sweep = make_sweep(pairs=3)
    page = page_of(tmp_path, sweep)
    rows = table(page, "Pairs of the experts").rows
    assert [row[0].text for row in rows] == [" and ".join(pair["experts"]) for pair in sweep.pairs]
    assert [row[2].value for row in rows] == pytest.approx([p["interaction"] for p in sweep.pairs], rel=1e-5)
    assert texts(table(page, "Without a mask"))[0] == ["regular", "24", "+4.500"]


def test_no_expert_found_is_said_as_plainly(tmp_path: Path) -> None:
    sweep = make_sweep(pairs=0)
    for row in sweep.rows:
        row["lowers"] = False
    sweep.conclusion = ""
    again = make_sweep(pairs=0, conclusion="None of 24 experts, masked alone, lowers the refusal logit.")
    page = page_of(tmp_path, again)
    assert page.conclusions == [("made0.json", again.conclusion)]
    assert prose(page, "sweep").startswith("None of 24 experts")


def test_a_table_of_too_many_experts_keeps_the_largest_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safex.report.sweep_tables.MOST", 10)
    sweep = make_sweep((3, 8)).to_json()
    made = experts_table(sweep)
    assert "The 10 of 24 experts with the largest effects" in made.caption
    kept = [row[1].value for row in made.rows]
    strengths = sorted((abs(row["effect"]["regular"]) for row in sweep["rows"]), reverse=True)
    assert sorted((abs(float(str(v))) for v in kept), reverse=True) == pytest.approx(strengths[:10], rel=1e-5)
    assert kept == sorted(kept, key=lambda value: float(str(value)))


# --- methods


def said_of(tmp_path: Path, *made: Any) -> str:
    return "\n".join(block for block in formulas(_sources(tmp_path, *made)))


def _sources(tmp_path: Path, *made: Any) -> Any:
    paths = [tmp_path / f"m{i}.json" for i in range(len(made))]
    for path, one in zip(paths, made, strict=True):
        one.save(path)
    return read_sources(paths)


def test_formulas_are_those_of_what_is_there(tmp_path: Path) -> None:
    everything = (
        "Wilson",
        "Tango 1998",
        "McNemar",
        "Newcombe",
        "Phipson",
        "Hesterberg",
        "Cohen 1960",
        "t-test",
    )
    everything += (
        "effective number",
        "Benjamini and Hochberg",
        "central",
        "dL / d gain",
        "interaction of two",
    )

    def holds(*made: Any) -> set[str]:
        said = said_of(tmp_path, *made)
        return {word for word in everything if word in said}

    masked = {"Wilson", "Tango 1998", "McNemar", "Phipson", "Hesterberg"}
    assert holds(make_evaluation()) == masked
    assert holds(make_evaluation(left=None)) == {
        "Wilson",
        "Tango 1998",
        "McNemar",
    }  # twins: jailbreak, regular
    assert holds(make_evaluation(("keyword", "logit"))) == masked | {"Cohen 1960"}
    swept = {"t-test", "Benjamini and Hochberg"}
    assert holds(make_sweep(gradient=False, pairs=0)) == swept
    assert holds(make_sweep()) == swept | {"dL / d gain", "interaction of two"}
    assert holds(make_expert_set(make_profile())) == set()
    said = said_of(tmp_path, make_evaluation(), make_sweep())
    assert "reroute keeps the router from selecting" in said and "zero multiplies" in said
    assert "force makes" not in said and "keyword looks for" in said and "openai asks" not in said
    assert "h = 0.2" in said and "uniform, drawn from all layers" in said and "frequency, drawn" not in said


def test_commands_to_repeat_are_commands(tmp_path: Path) -> None:
    judges = ("keyword", "gguf:wildguard-Q4:wildguard")
    made = (
        make_evaluation(judges),
        make_sweep(),
        make_sweep((3, 8), [(0, 1), (1, 3)], pairs=0, gradient=False),
    )
    lines = [shlex.split(line)[1:] for line in commands(_sources(tmp_path, *made))]
    evaluated, every, some, _ = (parse(words, COMMANDS) for words in lines)
    assert (evaluated.mask, evaluated.mode, evaluated.seed, evaluated.max_new) == (
        ",".join(MASK),
        "reroute",
        7,
        32,
    )
    assert (evaluated.controls, evaluated.control_kinds) == (19, "uniform,layer,active")
    assert evaluated.judge == ["keyword", "gguf:wildguard-Q4.gguf:wildguard"]
    assert (evaluated.ctx, evaluated.kv_type, evaluated.no_utility) == (2048, "f32", False)
    assert (every.all, every.gradient, every.pairs, every.step, every.correction) == (
        True,
        True,
        4,
        0.2,
        "bh",
    )
    swept = set(some.experts.split(","))
    assert not some.all and swept == {"1:1", "3:3"} and some.pairs == 0 and some.neighbours == 0
    assert some.bootstrap == 200 and not some.refusal_start


def test_starts_named_by_hand_are_in_the_command(tmp_path: Path) -> None:
    start = [{"tokens": [1], "text": "No"}, {"tokens": [2], "text": " No"}]
    by_hand = {"refuse": start, "comply": [{"tokens": [3], "text": "Sure"}], "coverage": {}, "answers": {}}
    page_sources = _sources(tmp_path, make_sweep(starts=by_hand))
    args = parse(shlex.split(commands(page_sources)[0])[1:], COMMANDS)
    assert (args.refusal_start, args.compliance_start) == (["No"], ["Sure"])
    assert "tell the model's own refusals" not in "\n".join(formulas(page_sources))


def test_methods_say_where_the_numbers_come_from(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_evaluation(), make_sweep())
    facts = dict(texts(table(page, "Parameters and origin: evaluation")))
    assert facts["control masks"] == "uniform 19, layer 19, active 1" and facts["mask"] == "1:3, 3:2, 5:5"
    assert facts["responses"] == "made.responses.jsonl"
    assert dict(texts(table(page, "Parameters and origin: sweep")))["computed"] == "100"


# --- hostile text


def hostile_files(folder: Path) -> list[Path]:
    """An evaluation and a sweep whose every name is hostile."""
    evaluation = make_evaluation((HOSTILE, "keyword"), notes=[HOSTILE], conclusion=HOSTILE)
    found = evaluation.results[HOSTILE]
    found["conclusion"] = HOSTILE
    for row in found["sets"]:
        row["set"] = f"{row['set']}{HOSTILE}"
        for category in row["categories"]:
            category["category"] = HOSTILE
    for row in found["controls"]:
        row["set"], row["kind"] = f"{row['set']}{HOSTILE}", HOSTILE
        for mask in row["masks"]:
            mask["mask"] = HOSTILE
    evaluation.agreement[0]["table"] = {HOSTILE: {"refuse": 3}}
    start = {"tokens": [1], "text": HOSTILE}
    sweep = make_sweep(sets=("regular", HOSTILE), conclusion=HOSTILE)
    sweep.starts = {**sweep.starts, "refuse": [start], "comply": [start]}
    sweep.pairs[0]["experts"] = [HOSTILE, HOSTILE]
    sweep.rows[0]["role"] = "neighbour"
    sweep.rows[1]["role"] = HOSTILE
    paths = [folder / "h.eval.json", folder / "h.sweep.json"]
    evaluation.save(paths[0])
    sweep.save(paths[1])
    return paths


def test_no_hostile_text_leaves_its_place(tmp_path: Path) -> None:
    made = safex.write_report(hostile_files(tmp_path), tmp_path / "o.html", png=tmp_path / "png")
    text = made.read_text()
    assert text.count("</script>") == 3 and "<img src=x" not in text
    assert f"rates-{HOSTILE}" in data_of(made)["figures"]
    for path in (tmp_path / "png").iterdir():
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.png", path.name)


def test_plotly_reads_no_markup_in_names(tmp_path: Path) -> None:
    """Everything that plotly.js would read as markup is escaped in the data."""
    figures = data_of(safex.write_report(hostile_files(tmp_path), tmp_path / "o.html"))["figures"]
    for panel in (panel for panels in figures.values() for panel in panels):
        shown = [panel["layout"]["title"]["text"], *panel["layout"]["yaxis"].get("ticktext", [])]
        for trace in panel["data"]:
            shown += [trace.get("name", ""), *trace.get("hovertext", [])]
            shown.append(trace["hovertemplate"].replace("<br>", "").replace("<extra></extra>", ""))
        assert not [text for text in shown if "<" in text]


# --- PNG, tables, the command


def test_pictures_of_evaluation_and_sweep(tmp_path: Path) -> None:
    paths = write_pictures(page_of(tmp_path, make_evaluation(), make_sweep((12, 64))), tmp_path / "figures")
    assert {path.name for path in paths} == {"rates.png", "controls.png", "effects.png", "effects-map.png"}
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert width == round(7.2 * DPI) and 1.9 * DPI <= height <= 14 * DPI, path


def test_picture_has_the_mask_in_its_place(tmp_path: Path) -> None:
    """A mask that leaves no refusal lies at the left end of the strip, its controls at the right."""
    write_pictures(page_of(tmp_path, make_evaluation(left=0.0)), tmp_path / "png")
    image = matplotlib.image.imread(tmp_path / "png" / "controls.png")[..., :3]
    left_panel = image[:, : image.shape[1] // 2]
    orange = np.abs(left_panel - np.array([0xD5, 0x5E, 0x00]) / 255).max(axis=2) < 0.02
    grey = np.abs(left_panel - (np.array([0x7A, 0x82, 0x8E]) / 255 + 1) / 2).max(axis=2) < 0.02
    body = slice(0, int(0.75 * len(image)))  # without the legend
    assert np.median(np.nonzero(orange[body])[1]) < np.median(np.nonzero(grey[body])[1]) - 400


def test_command(tmp_path: Path) -> None:
    make_evaluation().save(tmp_path / "a.eval.json")
    make_sweep().save(tmp_path / "b.sweep.json")
    words = ("report", "a.eval.json", "b.sweep.json", "--csv", "tables", "--png", "figures", "--json")
    ran = cli(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    names = {"rates", "categories", "changes", "controls", "utility"}
    assert {Path(name).stem for name in ran.json["tables"]} == {f"evaluation_{name}" for name in names} | {
        "sweep_experts",
        "sweep_pairs",
    }
    assert (tmp_path / "tables" / "sweep_experts.csv").read_text().count("\n") == 25
    assert len(ran.json["png"]) == 4


def test_command_says_what_no_tables_can_be_made_of(tmp_path: Path) -> None:
    found = make_evaluation().to_json()
    del found["results"]["keyword"]["sets"][0]["before"]["refuse"]
    write_json(tmp_path / "a.json", found)
    words = ("report", "a.json", "--csv", "tables")
    cli(*words, cwd=tmp_path).fails(2, "a.json: no tables can be made of it", "edited by hand")
    assert not (tmp_path / "tables").exists() and not (tmp_path / "report.html").exists()
    assert cli("report", "a.json", cwd=tmp_path).code == 0
