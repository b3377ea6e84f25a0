"""The report's page in a real browser: what it loads, shows and does."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import Opened, opened
from report_files import HOSTILE, clusters, make_comparison, make_expert_set, make_profile, write_all
from report_results import make_evaluation, make_sweep
from test_report_probing import hostile_probing, make_probing
from test_report_results import hostile_files

import safex

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAPER_PIXELS = 695  # A4 is 210 mm wide, less two margins of 13 mm, at 96 pixels an inch
GENEROUS_MS = 20_000  # a page opens within 3 s on an idle machine; tests may run on a busy one


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return safex.write_report(write_all(folder), folder / "out.html")


@pytest.fixture(scope="module")
def page(browser: Browser, page_file: Path) -> Iterator[Opened]:
    with opened(browser, page_file, viewport={"width": 1280, "height": 900}) as page:
        yield page


@pytest.fixture
def shown(page: Opened) -> Iterator[Opened]:
    """One page for all tests, which choose what they look at; opening it takes longer than they do."""
    page.page.mouse.move(0, 0)
    page.page.wait_for_selector("#map-tip", state="hidden")
    yield page
    page.assert_clean()


def click_cell(shown: Opened, row: int, expert: int, shape: tuple[int, int]) -> None:
    """Click the middle of a cell, as a person does, on a whole pixel that lies within it: some are hardly wider."""
    plot = shown.page.locator("#map-plot .nsewdrag")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    left, middle = (box["x"] + box["width"] * (expert + at) / shape[1] for at in (0, 0.5))
    x = max(math.floor(middle), math.ceil(left))
    y = box["y"] + box["height"] * (row + 0.5) / shape[0]
    shown.page.mouse.move(x - 2, y)
    shown.page.mouse.move(x, y, steps=3)
    shown.page.wait_for_selector("#map-tip:not([hidden])")
    shown.page.mouse.click(x, y)


def rgb(shown: Opened, selector: str, name: str) -> list[float]:
    script = "(element, name) => getComputedStyle(element)[name].match(/[\\d.]+/g).map(Number)"
    found: list[float] = shown.page.eval_on_selector(selector, script, name)
    return found[:3]


def luminance(colour: list[float]) -> float:
    """WCAG 2: relative luminance."""
    parts = np.array(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(shown: Opened, selector: str, name: str = "color") -> float:
    lights = sorted([luminance(rgb(shown, selector, name)), luminance(rgb(shown, "html", "backgroundColor"))])
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def test_opens_without_complaint_or_request(shown: Opened) -> None:
    assert shown.page.locator(".js-plotly-plot").count() == 1 + 2 + 2 + 4 + 1 + 2
    assert shown.page.locator(".conclusion").count() == 2
    policy = shown.page.get_attribute("meta[http-equiv]", "content")
    assert policy is not None and "default-src 'none'" in policy


def test_no_button_sends_data_away(shown: Opened) -> None:
    titles = shown.page.eval_on_selector_all(
        ".modebar-btn", "all => all.map(b => b.dataset.title.toLowerCase())"
    )
    assert set(titles) == {"download plot as a png", "zoom", "pan", "reset axes"}


@pytest.mark.parametrize("view", ["benign", "regular − benign"])
def test_cell_shows_the_profile_s_own_numbers(shown: Opened, view: str) -> None:
    profile = make_profile()
    shown.page.select_option("#map-view", label=view)
    click_cell(shown, 1, 3, (3, 8))
    assert shown.page.inner_text("#map-detail h3") == "Expert 3:3"
    assert shown.page.inner_text("#map-detail p") == "In ctrl, frequency 1.000."
    truth = []
    sets = np.array(profile.sets)
    for phase in profile.phases:
        arrays = profile.phase(phase)
        for name in profile.set_names:
            n = int(arrays.counts[sets == name, 1, 3].sum())
            tokens = int(arrays.n_tokens[sets == name].sum())
            p = n / tokens
            ends = f"{0.9 * p:.4f} to {1.1 * p:.4f}" if phase == "suffix" else ""
            truth.append([phase, name, f"{n:,}", f"{tokens:,}", f"{p:.6f}", ends, f"{p * 8 / 2:.2f}"])
    assert shown.rows("#map-detail table") == truth
    exact = shown.page.eval_on_selector_all(
        "#map-detail td[data-value]", "all => all.map(c => +c.dataset.value)"
    )
    assert exact == [
        profile.activation(name, phase)[1, 3] for phase in profile.phases for name in profile.set_names
    ]


def test_tip_shows_value_sets_and_groups(shown: Opened) -> None:
    profile = make_profile()
    shown.page.select_option("#map-phase", "suffix")
    shown.page.select_option("#map-view", label="regular − benign")
    click_cell(shown, 0, 1, (3, 8))
    levels = {name: profile.activation(name, "suffix")[0, 1] for name in profile.set_names}
    words = shown.page.inner_text("#map-tip").split("\n")
    difference = f"{levels['regular'] - levels['benign']:.4f}".replace("-", "−")
    assert words[:3] == ["1:1", "regular − benign", difference]
    assert [f"{p:.4f}" for p in levels.values()] == words[4:9:2]
    assert words[9:] == ["in id", "frequency 1.000"]


def test_map_draws_the_values(shown: Opened) -> None:
    """What plotly.js was given, for a level and a difference, in each phase."""
    profile = make_profile()
    for phase in profile.phases:
        shown.page.select_option("#map-phase", phase)
        for a, b in (("jailbreak", None), ("jailbreak", "benign")):
            shown.page.select_option("#map-view", label=a if b is None else f"{a} − {b}")
            script = "({z, zmin, zmax}) => ({z: z.map(row => [...row]), zmin, zmax})"
            trace = shown.page.evaluate(f"({script})(document.getElementById('map-plot').data[0])")
            truth = profile.activation(a, phase) - (profile.activation(b, phase) if b else 0)
            np.testing.assert_array_equal(trace["z"], truth)
            assert trace["zmin"] == (-trace["zmax"] if b else 0)
    labels = shown.page.eval_on_selector_all("#map-plot .ytick text", "all => all.map(t => t.textContent)")
    assert sorted(labels) == ["1", "3", "5"]


def test_legend_toggles_the_marks_of_a_group(shown: Opened) -> None:
    def visible() -> list[Any]:
        found: list[Any] = shown.page.evaluate(
            "document.getElementById('map-plot').data.slice(1).map(t => [t.legendgroup, t.visible !== 'legendonly'])"
        )
        return found

    assert visible() == [["id", True], ["id", True], ["ctrl", True], ["ctrl", True]]
    shown.page.click("#map-plot .legendtoggle >> nth=0", force=True)
    shown.page.wait_for_timeout(600)  # plotly.js waits for a double click
    assert visible() == [["id", False], ["id", False], ["ctrl", True], ["ctrl", True]]
    symbols = shown.page.evaluate(
        "document.getElementById('map-plot').data.slice(1).map(t => t.marker.symbol)"
    )
    assert len(set(symbols)) == 2


def test_expert_by_keyboard_and_from_a_table(shown: Opened) -> None:
    shown.page.fill("#map-find input", "5:2")
    shown.page.keyboard.press("Enter")
    assert shown.page.inner_text("#map-detail h3") == "Expert 5:2"
    shown.page.fill("#map-find input", "2:2")
    shown.page.keyboard.press("Enter")
    assert "no expert 2:2" in shown.page.inner_text("#map-detail")
    shown.page.click("#groups td .expert >> text=3:0")
    assert shown.page.inner_text("#map-detail h3") == "Expert 3:0"


def test_sort_by_value_with_the_keyboard_too(shown: Opened) -> None:
    table = shown.page.locator("#groups figure.table").nth(1)
    header = table.locator("th").filter(has=shown.page.get_by_role("button", name="p", exact=True))

    def experts() -> list[str]:
        return table.locator("td .expert").all_inner_texts()

    assert experts() == ["3:3", "5:2", "1:5"]
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert experts() == ["5:2", "3:3", "1:5"]
    header.locator("button").focus()
    shown.page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert experts() == ["1:5", "3:3", "5:2"]
    table.locator("th", has_text="expert").locator("button").click()
    assert experts() == ["1:5", "3:3", "5:2"]
    assert header.get_attribute("aria-sort") == "none"


def test_filter_and_copy(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file) as shown:
        shown.page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
        table = shown.page.locator("#groups figure.table").nth(1)
        table.locator("input").fill("5:2 yes")
        assert table.locator("tbody tr:visible").count() == 1
        assert table.locator(".count").inner_text() == "1 of 3 rows"
        table.locator("button.copy").click()
        (row,) = csv.DictReader(io.StringIO(shown.page.evaluate("copied")))
        profile = make_profile()
        p = profile.activation("regular", "suffix")[2, 2]
        assert row["expert"] == "5:2" and float(row["score"]) == p
        assert float(row["p(regular)"]) == p and float(row["p(regular) high"]) == 1.1 * p
        assert row["hot in benign"] == "yes"
        table.locator("input").fill("nothing like it")
        assert table.locator("tbody tr:visible").count() == 0


def test_controls_say_what_they_mean(shown: Opened) -> None:
    rows = {(row[0].split(" (")[0], row[1]): row[4] for row in shown.rows("#controls table")}
    assert "no evidence" in rows["shuffled set labels", "id"]
    assert "More than under shuffled labels (p = 0.005)" in rows["shuffled set labels", "ctrl"]
    assert rows["shuffled set labels", "ctrl, specific experts only"] == "The group is empty."
    assert rows["test of each expert", "ctrl"] == "Each of these experts passed its own test."
    assert rows["two halves of the prompts", "id"] == "Both halves give nearly the same group."
    assert "20 of 20 splits" in rows["two halves of the prompts", "ctrl"]
    assert "hot for any text" in rows["also stable in benign prompts", "id"]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_colour_schemes_are_legible(browser: Browser, page_file: Path, scheme: str, dark: bool) -> None:
    with opened(browser, page_file, color_scheme=scheme) as shown:
        assert (luminance(rgb(shown, "html", "backgroundColor")) < 0.05) == dark
        for selector in ("h1", "p", "td", "td .note", "nav a", ".reading", ".warnings", "th button", "pre"):
            assert contrast(shown, selector) > 4.5, selector
        for selector in (
            "#map-plot .xtick text",
            "#map-plot .legendtext",
            ".panel .ytick text",
            ".panel .xtitle",
        ):
            assert contrast(shown, selector, "fill") > 4.5, selector
        shown.assert_clean()


def test_phone_width_has_no_sideways_scroll(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file, viewport={"width": 360, "height": 740}, has_touch=True) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") == 360
        shown.assert_clean()


def test_prints(browser: Browser, page_file: Path, tmp_path: Path) -> None:
    with opened(browser, page_file, color_scheme="dark") as shown:
        pdf = shown.page.pdf(path=tmp_path / "out.pdf", prefer_css_page_size=True)
        assert pdf.startswith(b"%PDF") and 3 <= pdf.count(b"/Type /Page\n") <= 12
        widths = "() => [...document.querySelectorAll('.js-plotly-plot .main-svg:first-child')].map(e => e.clientWidth)"
        before = shown.page.evaluate(widths)
        shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert max(shown.page.evaluate(widths)) <= PAPER_PIXELS < max(before)
        shown.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert shown.page.evaluate(widths) == before
        shown.page.emulate_media(media="print")
        assert luminance(rgb(shown, "html", "backgroundColor")) == 1
        assert not shown.page.is_visible("#map-view") and not shown.page.is_visible("button.copy")
        shown.page.emulate_media(media="screen")
        assert shown.page.is_visible("#map-view")
        shown.assert_clean()


def test_two_profiles_have_a_tab_each(browser: Browser, tmp_path: Path) -> None:
    first, second = make_profile(), make_profile((2, 4), sets=("other",), phases=(), seed=3)
    first.save(tmp_path / "first.profile.gguf")
    second.save(tmp_path / "second.profile.gguf")
    names = ("first.profile.gguf", "second.profile.gguf")
    made = safex.write_report([tmp_path / name for name in names], tmp_path / "out.html")
    with opened(browser, made) as shown:
        shown.page.select_option("#map-phase", "suffix")
        shown.page.click("role=tab[name=second]")
        assert shown.page.get_attribute("role=tab[name=second]", "aria-selected") == "true"
        assert shown.page.inner_text("#map-phase").split() == ["prompt"]
        click_cell(shown, 1, 2, (2, 4))
        (row,) = shown.rows("#map-detail table")
        assert float(row[4]) == pytest.approx(second.activation("other")[1, 2], abs=1e-6)
        shown.assert_clean()


def test_set_without_tokens_in_a_phase(browser: Browser, tmp_path: Path) -> None:
    counts = np.array([[[4, 0]], [[2, 2]]])
    answer = {"counts": [[[3, 0]], [[0, 0]]], "n_tokens": [3, 0]}
    profile = safex.Profile.from_arrays(
        counts=counts, n_tokens=[4, 4], sets=["a", "b"], top_k=1, phases={"response": answer}
    )
    profile.save(tmp_path / "p.profile.gguf")
    with opened(browser, safex.write_report([tmp_path / "p.profile.gguf"], tmp_path / "out.html")) as shown:
        shown.page.select_option("#map-phase", "response")
        shown.page.select_option("#map-view", label="b")
        assert "No tokens" in shown.page.inner_text("#map-reading")
        shown.page.select_option("#map-view", label="a")
        assert "largest value, 1.000" in shown.page.inner_text("#map-reading")
        shown.assert_clean()


def test_hostile_names_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    profile = make_profile(sets=(HOSTILE, "regular"), **{"model.name": HOSTILE})
    profile.save(tmp_path / "h.profile.gguf")
    experts = make_expert_set(profile, clusters=clusters(HOSTILE), conclusion=HOSTILE)
    experts.entries[HOSTILE] = experts.entries.pop("id")
    experts.save(tmp_path / "h.json")
    make_comparison(warnings=[HOSTILE], groups={HOSTILE: {}}).save(tmp_path / "c.json")
    names = ("h.profile.gguf", "h.json", "c.json")
    made = safex.write_report([tmp_path / name for name in names], tmp_path / "out.html", title=HOSTILE)
    with opened(browser, made) as shown:
        assert shown.page.title() == " ".join(HOSTILE.split())
        assert shown.page.inner_text(".conclusion").endswith(HOSTILE)
        legend = shown.page.locator("#map-plot .legendtext").all_text_contents()
        assert f"{HOSTILE} (2)" in legend
        click_cell(shown, 0, 1, (3, 8))
        assert HOSTILE in shown.page.inner_text("#map-tip")
        assert shown.page.locator("img[onerror]").count() == 0
        shown.assert_clean()


@pytest.mark.parametrize("shape", [(48, 128), (94, 512)])
def test_opens_at_scale(
    browser: Browser, shape: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = make_profile(shape, prompts=4, phases=("suffix", "response"))
    profile.save(tmp_path / "big.profile.gguf")
    make_expert_set(profile).save(tmp_path / "e.json")
    files = [tmp_path / "big.profile.gguf", tmp_path / "e.json"]
    with opened(browser, safex.write_report(files, tmp_path / "out.html")) as shown:
        took = shown.ms_to_ready()
        with capsys.disabled():
            print(f" [{shape[0]} x {shape[1]}: ready after {took:.0f} ms]", end="")
        assert took < GENEROUS_MS
        height = shown.page.evaluate("document.getElementById('map-plot').offsetHeight")
        assert 500 < height < 1200
        click_cell(shown, 30, shape[1] // 2, shape)
        assert shown.page.inner_text("#map-detail h3") == f"Expert {profile.layers[30]}:{shape[1] // 2}"
        shown.assert_clean()


# --- evaluations and sweeps


@pytest.fixture(scope="module")
def results_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    make_profile().save(folder / "p.profile.gguf")
    make_evaluation().save(folder / "a.eval.json")
    make_sweep().save(folder / "b.sweep.json")
    names = ("p.profile.gguf", "a.eval.json", "b.sweep.json")
    return safex.write_report([folder / name for name in names], folder / "out.html")


@pytest.fixture(scope="module")
def results(browser: Browser, results_file: Path) -> Iterator[Opened]:
    """One page for the tests that look at what was drawn."""
    with opened(browser, results_file, viewport={"width": 1280, "height": 900}) as page:
        yield page
        page.assert_clean()


def data(shown: Opened, figure: str, panel: int) -> list[dict[str, Any]]:
    """What plotly.js drew."""
    script = "([name, i]) => document.querySelectorAll(`[data-figure='${name}'] .panel`)[i].data"
    found: list[dict[str, Any]] = shown.page.evaluate(script, [figure, panel])
    return found


def test_rates_are_drawn_with_their_intervals(results: Opened) -> None:
    sets = make_evaluation().results["keyword"]["sets"]
    before, after = data(results, "rates", 0)
    assert (before["name"], after["name"]) == ("no mask", "masked") and before["type"] == "bar"
    for trace, side in ((before, "before"), (after, "after")):
        rates = [row[side]["refuse"] for row in sets]
        assert trace["x"] == pytest.approx([100 * rate["value"] for rate in rates])
        low, high = (np.array([100 * rate["interval"][i] for rate in rates]) for i in (0, 1))
        assert trace["error_x"]["array"] == pytest.approx(high - trace["x"])
        assert trace["error_x"]["arrayminus"] == pytest.approx(np.array(trace["x"]) - low, abs=1e-6)
    assert results.page.locator("[data-figure=rates] .bars .point").count() == 3 * 6
    labels = "[data-figure=rates] .panel:first-child .ytick text"
    assert results.page.locator(labels).all_text_contents() == ["regular", "jailbreak", "benign"]
    boxes = [results.page.locator(labels).nth(i).bounding_box() for i in range(3)]
    heights = [box["y"] for box in boxes if box]
    assert heights == sorted(heights) and len(heights) == 3


def test_a_pointer_on_a_control_mask_names_it(results: Opened) -> None:
    results.page.locator("[data-figure=controls]").scroll_into_view_if_needed()
    point = results.page.locator(
        "[data-figure=controls] .panel:first-child .scatterlayer .trace path.point"
    ).first
    box = point.bounding_box()
    assert box
    results.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    hover = results.page.wait_for_selector("[data-figure=controls] .hoverlayer .hovertext")
    words = hover.text_content() or ""
    assert words.startswith("control masks") and "control-uniform-" in words


def test_effects_are_drawn_in_rows_from_the_top(results: Opened) -> None:
    sweep = make_sweep()
    regular = data(results, "effects", 0)[0]
    assert regular["x"] == pytest.approx([row["effect"]["regular"] for row in sweep.rows])
    assert regular["hovertext"] == [str(expert) for expert in sweep.experts]
    shown = results.page.locator("[data-figure=effects] .ytick text").all_text_contents()
    assert shown == [str(expert) for expert in sweep.experts]


def test_map_of_effects(results: Opened) -> None:
    truth = {(str(row["layer"]), row["expert"]): row["effect"]["regular"] for row in make_sweep().rows}
    (cells,) = data(results, "effects-map", 0)
    assert cells["y"] == ["1", "3", "5"] and cells["zmin"] == -cells["zmax"]
    for layer, row in zip(cells["y"], cells["z"], strict=True):
        assert row == pytest.approx([truth[layer, expert] for expert in range(8)])
    ticks = "[data-figure=effects-map] .panel:first-child .ytick text"
    boxes = {
        text.text_content(): (text.bounding_box() or {"y": 0})["y"]
        for text in results.page.locator(ticks).all()
    }
    assert boxes["1"] < boxes["3"] < boxes["5"]
    panel = results.page.locator("[data-figure=effects-map] .panel:first-child")
    box, title = panel.bounding_box(), panel.locator(".gtitle").bounding_box()
    assert box and title and box["y"] <= title["y"]  # plotly.js moves it out beside a lying colour bar


def test_table_of_experts_sorts_copies_and_leads_to_the_map(browser: Browser, results_file: Path) -> None:
    sweep = make_sweep()
    with opened(browser, results_file) as shown:
        shown.page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
        experts = shown.page.locator("#sweep figure.tools").first
        experts.get_by_role("button", name="effect, benign").click()
        by_benign = sorted(sweep.rows, key=lambda row: row["effect"]["benign"])
        names = [f"{row['layer']}:{row['expert']}" for row in by_benign]
        assert experts.locator("td .expert").all_inner_texts() == names
        experts.locator("button.copy").click()
        rows = list(csv.DictReader(io.StringIO(shown.page.evaluate("copied"))))
        assert [row["expert"] for row in rows] == names
        ends = [float(rows[0][f"effect, regular {end}"]) for end in ("low", "high")]
        assert ends == pytest.approx(by_benign[0]["interval"]["regular"], rel=1e-5)
        experts.locator("td .expert").first.click()
        assert shown.page.inner_text("#map-detail h3") == f"Expert {names[0]}"
        shown.assert_clean()


def test_long_tables_show_their_first_rows_until_asked(browser: Browser, tmp_path: Path) -> None:
    make_sweep((5, 64)).save(tmp_path / "s.json")
    made = safex.write_report([tmp_path / "s.json"], tmp_path / "out.html")
    with opened(browser, made) as shown:
        shown.page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
        experts = shown.page.locator("#sweep figure.tools").first
        visible = experts.locator("tbody tr:visible")
        assert visible.count() == 200
        first = visible.first.inner_text().split()[0]
        effect = experts.get_by_role("button", name="effect, regular")
        effect.click()
        effect.click()  # the least refusal-lowering, which were not shown, come first
        assert visible.count() == 200 and visible.first.inner_text().split()[0] != first
        experts.locator("input").fill(first)
        assert visible.count() >= 1 and first in visible.all_inner_texts()[-1]
        experts.locator("input").fill("")
        assert visible.count() == 200
        experts.locator("button.copy").click()
        assert shown.page.evaluate("copied").count("\n") == 321
        experts.locator("button.all").click()
        assert visible.count() == 320 and experts.locator("button.all").count() == 0
        shown.assert_clean()
    without_script = browser.new_context(java_script_enabled=False)
    plain = without_script.new_page()
    plain.goto(made.resolve().as_uri())
    assert plain.locator("#sweep figure.tools").first.locator("tbody tr:visible").count() == 320
    without_script.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_results_are_legible(browser: Browser, results_file: Path, scheme: str) -> None:
    with opened(browser, results_file, color_scheme=scheme) as shown:
        for selector in ("#evaluation p", "#evaluation td .note", "#sweep figcaption", "#sweep th button"):
            assert contrast(shown, selector) > 4.5, selector
        for figure in ("rates", "controls", "effects", "effects-map"):
            for part in (".ytick text", ".xtick text", ".xtitle", ".gtitle"):
                assert contrast(shown, f"[data-figure={figure}] {part}", "fill") > 4.5, (figure, part)
        assert contrast(shown, "[data-figure=rates] .errorbar path", "stroke") > 4.5
        shown.assert_clean()


def test_results_on_a_phone(browser: Browser, results_file: Path) -> None:
    with opened(browser, results_file, viewport={"width": 400, "height": 800}, has_touch=True) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") == 400
        for caption in ("Without a mask", "What the conclusion rests on", "What the mask costs"):
            scroll = shown.page.locator("figure.table", has_text=caption).locator(".scroll")
            assert scroll.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), caption
        shown.assert_clean()


def test_results_print(browser: Browser, results_file: Path, tmp_path: Path) -> None:
    with opened(browser, results_file, color_scheme="dark") as shown:
        pdf = shown.page.pdf(path=tmp_path / "out.pdf", prefer_css_page_size=True)
        assert 4 <= pdf.count(b"/Type /Page\n") <= 14
        shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        widths = (
            "() => [...document.querySelectorAll('.panel .main-svg:first-child')].map(e => e.clientWidth)"
        )
        assert max(shown.page.evaluate(widths)) <= PAPER_PIXELS
        shown.assert_clean()


def test_hostile_results_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    made = safex.write_report(hostile_files(tmp_path), tmp_path / "out.html")
    with opened(browser, made) as shown:
        evaluation, sweep = (shown.page.inner_text(f"#{name}") for name in ("evaluation", "sweep"))
        assert f"Judge {HOSTILE}: {HOSTILE}" in evaluation and f"Note: {HOSTILE}" in evaluation
        assert HOSTILE in shown.page.locator("#evaluation td").all_inner_texts()
        assert f"effect, {HOSTILE}" in " ".join(sweep.split())
        legend = shown.page.locator("[data-figure=effects] .legendtext").all_text_contents()
        assert HOSTILE in legend
        assert shown.page.locator("img[onerror]").count() == 0
        shown.assert_clean()


def test_a_sweep_of_every_expert_opens_at_scale(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep((48, 128), pairs=7).save(tmp_path / "s.json")
    made = safex.write_report([tmp_path / "s.json"], tmp_path / "out.html")
    assert made.stat().st_size < 11_000_000
    with opened(browser, made) as shown:
        took = shown.ms_to_ready()
        with capsys.disabled():
            print(f" [sweep of 48 x 128: ready after {took:.0f} ms]", end="")
        assert took < GENEROUS_MS
        assert shown.page.locator("#sweep tbody tr:visible").count() == 3 + 200 + 7
        shown.assert_clean()


# --- probings


@pytest.fixture(scope="module")
def probing_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probing")
    make_profile().save(folder / "p.profile.gguf")
    make_probing().save(folder / "a.probing.json")
    return safex.write_report([folder / "p.profile.gguf", folder / "a.probing.json"], folder / "out.html")


def test_groups_are_drawn_with_their_intervals(browser: Browser, probing_file: Path) -> None:
    task = make_probing().task("harmful")
    with opened(browser, probing_file, viewport={"width": 1280, "height": 900}) as shown:
        traces = {trace["name"]: trace for trace in data(shown, "probes-harmful", 0)}
        groups = traces["group"]
        values = np.array([group["auc"]["value"] for group in task["groups"]])
        high = np.array([group["auc"]["interval"][1] for group in task["groups"]])
        assert groups["x"] == pytest.approx(values)
        assert groups["error_x"]["array"] == pytest.approx(high - values, abs=1e-6)
        assert len(traces["random experts"]["x"]) == len(task["control_groups"])
        labels = shown.page.locator("[data-figure=probes-harmful] .panel:first-child .ytick text")
        assert labels.all_text_contents()[:3] == ["id", "id: shuffled labels", "id: same layers"]
        shown.page.click("#probing-task-1 td .expert >> nth=0")
        assert shown.page.inner_text("#map-detail h3").startswith("Expert ")
        shown.assert_clean()


def test_the_plane_is_drawn_to_one_scale_and_names_prompts(browser: Browser, probing_file: Path) -> None:
    row = make_probing().projection[0]
    with opened(browser, probing_file, viewport={"width": 1280, "height": 900}) as shown:
        traces = data(shown, "plane", 0)
        assert [trace["name"] for trace in traces] == ["regular", "jailbreak", "benign"]
        for trace in traces:
            truth = [point for point in row["points"] if point["set"] == trace["name"]]
            assert trace["x"] == pytest.approx([point["x"] for point in truth])
            assert trace["y"] == pytest.approx([point["y"] for point in truth])
        script = """plot => ['xaxis', 'yaxis'].map(name => {
            const axis = plot._fullLayout[name];
            return axis._length / (axis.range[1] - axis.range[0]);
        })"""
        across, up = shown.page.eval_on_selector("[data-figure=plane] .panel:first-child", script)
        assert across == pytest.approx(up)
        shown.page.locator("[data-figure=plane]").scroll_into_view_if_needed()
        point = "[data-figure=plane] .panel:first-child .scatterlayer .trace:last-child path.point"
        box = shown.page.locator(point).first.bounding_box()
        assert box
        shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
        hover = shown.page.wait_for_selector("[data-figure=plane] .hoverlayer .hovertext")
        words = hover.text_content() or ""
        assert any(point["set"] in words and point["id"] in words for point in row["points"])
        shown.assert_clean()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_probing_is_legible(browser: Browser, probing_file: Path, scheme: str) -> None:
    with opened(browser, probing_file, color_scheme=scheme) as shown:
        for figure in ("probes-harmful", "layers-harmful", "curve-harmful", "plane"):
            for part in (".ytick text", ".xtick text", ".xtitle", ".gtitle", ".legendtext"):
                assert contrast(shown, f"[data-figure={figure}] {part}", "fill") > 4.5, (figure, part)
        shown.assert_clean()


def test_probing_on_a_phone_and_on_paper(browser: Browser, probing_file: Path, tmp_path: Path) -> None:
    with opened(browser, probing_file, viewport={"width": 400, "height": 800}, has_touch=True) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") == 400
        shown.assert_clean()
    with opened(browser, probing_file) as shown:
        shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        widths = (
            "() => [...document.querySelectorAll('.panel .main-svg:first-child')].map(e => e.clientWidth)"
        )
        assert max(shown.page.evaluate(widths)) <= PAPER_PIXELS
        shown.assert_clean()


def test_hostile_probing_is_shown_as_it_is(browser: Browser, tmp_path: Path) -> None:
    made = safex.write_report(hostile_probing(tmp_path), tmp_path / "out.html")
    with opened(browser, made) as shown:
        assert f"Note: {HOSTILE}" in shown.page.inner_text("#probing")
        assert HOSTILE in shown.page.locator("#probing-task-1 td").all_inner_texts()
        legend = shown.page.locator("[data-figure=plane] .legendtext").all_text_contents()
        assert f"regular{HOSTILE}" in legend
        assert shown.page.locator("img[onerror]").count() == 0
        shown.assert_clean()
