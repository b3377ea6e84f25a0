"""The report without a browser: which files it takes, what it refuses, its numbers, its PNG files, its command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from cli_runner import cli
from report_files import (
    HOSTILE,
    clusters,
    data_of,
    make_comparison,
    make_expert_set,
    make_profile,
    unpacked,
    write_all,
    write_json,
)
from scipy.spatial.distance import jensenshannon

import safex
from safex.cli import COMMANDS
from safex.cli.parser import parse
from safex.report import build_page, read_sources
from safex.report.activation import expert_map, robust_scale, set_sums
from safex.report.commands import commands
from safex.report.divergence import divergences, shuffled_labels
from safex.report.plotly_figures import pack
from safex.report.png import DPI, pictures, write_pictures

MEGABYTE = 1_000_000
OF_PROFILE = ["Experts of each layer", "Where routing differs"]
OF_SET = ["Groups of experts", "Controls", "Stability", "Clusters"]


def section_titles(path: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", path.read_text())


# --- which files


@pytest.mark.parametrize(
    ("which", "titles"),
    [
        ([0], OF_PROFILE),
        ([1], OF_SET),
        ([2], ["Comparison"]),
        (
            [2, 1, 0],
            [*OF_PROFILE, *OF_SET, "Comparison"],
        ),
    ],
)
def test_each_kind_alone_and_all_in_any_order(which: list[int], titles: list[str], tmp_path: Path) -> None:
    files = write_all(tmp_path)
    made = safex.write_report([files[i] for i in which], tmp_path / "out.html")
    assert section_titles(made) == [*titles, "Methods", "Input files"]
    text = made.read_text()
    for i in which:
        assert files[i].name in text


def test_hand_made_set_of_a_bare_list(tmp_path: Path) -> None:
    path = write_json(tmp_path / "mine.json", ["3:1", "5:2"])
    made = safex.write_report([path], tmp_path / "out.html")
    assert section_titles(made) == ["Groups of experts", "Methods", "Input files"]


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, [None], {"groups": 5}])
def test_odd_optional_parts_are_left_out(value: Any, tmp_path: Path) -> None:
    entry = {"layer": 1, "expert": 2, "activation": value, "interval": value, "difference": value}
    parts = {
        "null": value,
        "split_half": value,
        "hot_everywhere": value,
        "baseline": value,
        "evidence": value,
    }
    content = {
        "safex_expert_set": 1,
        "groups": {"id": [entry], "empty": []},
        "controls": parts,
        "curves": {"top": value, "resamples": value, "stable": value, "groups": value},
        "clusters": {"stability": value, "clusters": value, "left_out": value, "note": value},
    }
    path = write_json(tmp_path / "odd.json", content)
    safex.write_report([path], tmp_path / "out.html", png=tmp_path / "png")


def refused(files: list[Path], output: Path, *parts: str) -> None:
    with pytest.raises(safex.InputError) as caught:
        safex.write_report(files, output)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert not output.exists()


def test_unknown_files_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    (tmp_path / "text.json").write_text("no JSON {")
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(300))
    refused([], out, "no file given")
    refused([tmp_path / "gone.json"], out, "gone.json: no such file")
    refused([tmp_path], out, "is a folder")
    refused([tmp_path / "text.json"], out, "text.json: is no result file", "expected a router profile")
    refused([tmp_path / "bytes.bin"], out, "bytes.bin: is no result file")
    refused([tmp_path / "model.gguf"], out, "model.gguf: is a GGUF file but no profile")
    refused([write_json(tmp_path / "x.json", {"safex_probe": 1})], out, "x.json: is no result file")
    refused([write_json(tmp_path / "v.json", {"safex_comparison": 9})], out, "v.json: has schema version 9")
    refused([write_json(tmp_path / "s.json", {"safex_expert_set": 1})], out, "s.json", "groups")


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    profile, experts, _ = write_all(tmp_path)
    out = tmp_path / "out.html"
    refused([profile, write_json(tmp_path / "m.json", ["2:1"])], out, "m.json", "no experts in layer 2")
    refused([profile, write_json(tmp_path / "n.json", ["1:8"])], out, "n.json", "has experts 0 to 7")
    other = make_profile((3, 16))
    other.save(tmp_path / "other.profile.gguf")
    make_expert_set(make_profile(), model={"layers": [1, 3, 5], "n_experts": 8, "fingerprint": "99"}).save(
        tmp_path / "p.json"
    )
    refused([tmp_path / "other.profile.gguf", tmp_path / "p.json"], out, "p.json", "3 layers x 8 experts")
    refused([profile, experts, profile], out, "has the same content as", "give each file once")


def test_output_over_a_source_is_refused(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    before = files[1].read_bytes()
    with pytest.raises(safex.InputError, match="is one of the report's own sources"):
        safex.write_report(files, files[1])
    assert files[1].read_bytes() == before
    with pytest.raises(safex.InputError, match="no such folder"):
        safex.write_report(files, tmp_path / "nowhere" / "out.html")


def test_sets_are_marked_on_the_profile_of_their_model(tmp_path: Path) -> None:
    first, second = make_profile(), make_profile(seed=1, **{"model.fingerprint": "77" * 32})
    first.save(tmp_path / "first.profile.gguf")
    second.save(tmp_path / "second.profile.gguf")
    make_expert_set(second, model={"fingerprint": "77" * 32}).save(tmp_path / "e.json")
    names = ("first.profile.gguf", "second.profile.gguf", "e.json")
    maps = data_of(safex.write_report([tmp_path / name for name in names], tmp_path / "out.html"))["maps"]
    assert [[mark["name"] for mark in of["marks"]] for of in maps] == [[], ["id", "ctrl"]]
    assert maps[1]["marks"][0]["experts"][0]["row"] == 0


def test_warnings(tmp_path: Path) -> None:
    def warnings(parts: dict[str, Any], **meta: Any) -> list[str]:
        profile = make_profile(**meta)
        profile.save(tmp_path / "p.profile.gguf")
        experts = make_expert_set(profile)
        vars(experts).update(parts)
        experts.save(tmp_path / "e.json")
        return read_sources([tmp_path / "p.profile.gguf", tmp_path / "e.json"]).warnings

    assert warnings({}) == []
    (one,) = warnings({"model": {"fingerprint": "00"}})
    assert "made from another model" in one
    (one,) = warnings({"profile": {"prompts_hash": "00"}})
    assert "made from other prompts" in one
    (one,) = warnings({}, template_hash=None)
    assert "no chat template is recorded" in one
    (one,) = warnings({}, **{"session.templated": False})
    assert "without a chat template" in one


# --- numbers


def test_sums_and_activation_are_the_profile_s(tmp_path: Path) -> None:
    profile = make_profile((4, 9), prompts=30)
    profile.save(tmp_path / "p.profile.gguf")
    of = data_of(safex.write_report([tmp_path / "p.profile.gguf"], tmp_path / "out.html"))["maps"][0]
    sets = np.array(profile.sets)
    for phase in profile.phases:
        for i, name in enumerate(profile.set_names):
            arrays = profile.phase(phase)
            truth = arrays.counts[sets == name].sum(axis=0)
            assert unpacked(of["sums"][phase][i]) == truth.ravel().tolist()
            assert of["tokens"][phase][i] == arrays.n_tokens[sets == name].sum()
            sums, tokens = set_sums(profile, phase)
            np.testing.assert_array_equal(sums[i] / tokens[i], profile.activation(name, phase))


def test_scales_of_levels_and_differences() -> None:
    profile = make_profile((3, 8))
    of = expert_map("p", profile, [])
    assert len(of.views) == 6
    for view in of.views:
        values = profile.activation(view.a, "suffix")
        if view.b:
            values = values - profile.activation(view.b, "suffix")
        found = of.scale(view, "suffix")
        assert found
        limit, clipped, highest = found
        assert highest == np.abs(values).max() and clipped == (np.abs(values) > limit).sum()
    outlier = np.full((50, 100), 0.1)
    outlier[3, 4] = 0.9
    assert robust_scale(outlier) == (0.1, 1, 0.9)
    assert robust_scale(np.zeros((2, 2))) == (0.0, 0, 0.0)


@pytest.mark.parametrize("top", [0, 255, 256, 70_000, 2**33])
def test_packing(top: int) -> None:
    values = np.array([0, top, top // 3])
    assert unpacked(pack(values)) == values.tolist()


def test_divergence_equals_scipy() -> None:
    profile = make_profile((3, 8), prompts=30)
    of = expert_map("p", profile, [])
    found = {(d.a, d.b): d for d in divergences(profile, of, "suffix")}
    truth = jensenshannon(
        profile.activation("regular", "suffix"), profile.activation("benign", "suffix"), base=2, axis=1
    )
    np.testing.assert_allclose(found["regular", "benign"].observed, truth**2, atol=1e-12)


def test_chance_line_holds_its_promise() -> None:
    """Sets that don't differ lie below the line in about 95 of 100 layers, those that differ far above."""
    rng = np.random.default_rng(5)
    rates = rng.dirichlet(np.ones(16), 200)
    counts = np.array([rng.multinomial(40, rates) for _ in range(60)])
    sets = ["a"] * 30 + ["b"] * 30
    same = safex.Profile.from_arrays(counts=counts, n_tokens=[40] * 60, sets=sets, top_k=1)
    (found,) = divergences(same, expert_map("p", same, []), "prompt")
    assert 0.02 <= (found.observed > found.chance).mean() <= 0.09
    moved = counts.copy()
    moved[30:] = np.roll(moved[30:], 1, axis=2)
    other = safex.Profile.from_arrays(counts=moved, n_tokens=[40] * 60, sets=sets, top_k=1)
    (found,) = divergences(other, expert_map("p", other, []), "prompt")
    assert (found.observed > found.chance).all()


def test_shuffles_swap_twins_together_and_keep_sizes() -> None:
    is_a = np.array([True] * 6 + [False] * 6)
    pairs = ["p0", "p1", "p2", None, None, "lonely"] * 2
    pairs[5] = None
    labels = shuffled_labels(is_a, pairs, np.random.default_rng(0))
    assert (labels[:, :3] != labels[:, 6:9]).all()
    assert (labels.sum(axis=1) == 6).all()
    assert len(np.unique(labels, axis=0)) > 50


# --- hostile text


def test_no_hostile_text_leaves_its_place(tmp_path: Path) -> None:
    profile = make_profile(sets=(HOSTILE, "regular"), **{"model.name": HOSTILE})
    profile.save(tmp_path / "h.profile.gguf")
    experts = make_expert_set(profile, clusters=clusters(HOSTILE), conclusion=HOSTILE)
    experts.entries[HOSTILE] = experts.entries.pop("id")
    experts.save(tmp_path / "h.json")
    make_comparison(warnings=[HOSTILE], groups={HOSTILE: {}}).save(tmp_path / "c.json")
    names = ("h.profile.gguf", "h.json", "c.json")
    made = safex.write_report(
        [tmp_path / n for n in names], tmp_path / "o.html", title=HOSTILE, png=tmp_path / "png"
    )
    text = made.read_text()
    assert text.count("</script>") == 3 and "<img src=x" not in text
    assert data_of(made)["maps"][0]["sets"][0] == HOSTILE
    for path in (tmp_path / "png").iterdir():
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.png", path.name)


# --- size


@pytest.mark.parametrize("shape", [(48, 128), (94, 512)])
def test_size_at_scale(shape: tuple[int, int], tmp_path: Path) -> None:
    make_profile(shape, prompts=4, phases=("suffix", "response")).save(tmp_path / "big.profile.gguf")
    made = safex.write_report([tmp_path / "big.profile.gguf"], tmp_path / "out.html")
    assert made.stat().st_size < 8 * MEGABYTE


def test_size_with_the_largest_counts(tmp_path: Path) -> None:
    """Millions of tokens in each of three phases: three or four bytes a count."""
    shape = (3, 94, 512)
    counts = np.full(shape, 40_000, np.uint32)
    arrays = {"counts": counts, "n_tokens": [40_000 * 64] * 3}
    profile = safex.Profile.from_arrays(
        **arrays,
        sets=["regular", "jailbreak", "benign"],
        top_k=8,
        phases={"suffix": arrays, "response": arrays},
    )
    profile.save(tmp_path / "big.profile.gguf")
    made = safex.write_report([tmp_path / "big.profile.gguf"], tmp_path / "out.html")
    assert made.stat().st_size < 8 * MEGABYTE


# --- PNG


def test_pictures(tmp_path: Path) -> None:
    page = build_page(read_sources(write_all(tmp_path, sets=("regular", "benign"))))
    paths = write_pictures(page, tmp_path / "figures")
    names = {path.name for path in paths}
    assert names == {p.name for p in pictures(page)} == {p.name for p in (tmp_path / "figures").iterdir()}
    assert {
        "heatmap-regular.png",
        "heatmap-regular-minus-benign-suffix.png",
        "stability-sizes.png",
        "stability-frequencies.png",
        "divergence.png",
        "clusters.png",
        "comparison.png",
    } <= names
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert width == round(7.2 * DPI) and height >= 2 * DPI, path


def test_pictures_of_two_profiles_have_their_names(tmp_path: Path) -> None:
    make_profile().save(tmp_path / "a.profile.gguf")
    make_profile(seed=1).save(tmp_path / "b.profile.gguf")
    page = build_page(read_sources([tmp_path / "a.profile.gguf", tmp_path / "b.profile.gguf"]))
    names = [picture.name for picture in pictures(page)]
    assert len(set(names)) == len(names)
    assert {"heatmap-a-regular.png", "heatmap-b-regular.png", "divergence-a.png", "divergence-b.png"} <= set(
        names
    )


# --- command


def test_command(tmp_path: Path) -> None:
    files = write_all(tmp_path, phases=(), sets=("regular", "benign"))
    words = ["report", *files, "--png", "figures", "--csv", "tables", "--parquet", "tables", "--json"]
    ran = cli(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    result = ran.json
    assert result["report"] == "report.html"
    assert "Report: report.html" in ran.err
    for path in [result["report"], *result["png"], *result["tables"]]:
        assert (tmp_path / path).stat().st_size > 0
    assert {
        "tables/profile_activation.csv",
        "tables/expert_set_groups.parquet",
        "tables/comparison_overall.csv",
    } <= set(result["tables"])
    cli(*words, cwd=tmp_path).fails(2, "report.html: exists", "--force")
    assert cli("report", *files, "--force", "--quiet", cwd=tmp_path).code == 0


def test_command_writes_nothing_where_a_target_exists(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "divergence.png").write_bytes(b"mine")
    cli("report", *files, "--png", "figures", cwd=tmp_path).fails(2, "divergence.png: exists", "--force")
    cli("report", *files, "--png", files[1], cwd=tmp_path).fails(2, "--png", "names no folder")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "comparison_groups.csv").write_text("mine")
    cli("report", *files, "--csv", "tables", cwd=tmp_path).fails(2, "comparison_groups.csv")
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "figures" / "divergence.png").read_bytes() == b"mine"


def test_command_refusals(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    cli("report", cwd=tmp_path).fails(2, "FILE")
    cli("report", *files, "-o", files[1], "--force", cwd=tmp_path).fails(2, "is one of the inputs")
    cli("report", *files, "-o", "no/out.html", cwd=tmp_path).fails(2, "folder doesn't exist")


def test_commands_to_repeat_are_commands(tmp_path: Path) -> None:
    """Each line is one that the command line takes, with the parameters of the files."""
    session = {"session.n_ctx": 2048, "session.flash_attn": "off", "session.kv_type": "f32"}
    files = write_all(tmp_path, phases=("suffix", "response"), **session, **{"session.max_new": 16})
    profile = safex.Profile.load(files[0])
    made = safex.identify(profile, phase="suffix", bootstrap=50, permutations=0, splits=0, seed=7)
    made.save(files[1])
    safex.compare(profile, make_profile(phases=("suffix", "response"), seed=1), bootstrap=50).save(files[2])
    safex.compare(made, made).save(tmp_path / "sets.json")
    sources = read_sources([*files, tmp_path / "sets.json"])
    lines = [shlex.split(line) for line in commands(sources)]
    args = {words[1]: parse(words[1:], COMMANDS) for words in lines if words[-1] != "sets.json"}
    profiled, identified, compared = args["profile"], args["identify"], args["compare"]
    assert (profiled.ctx, profiled.flash_attn, profiled.kv_type, profiled.max_new) == (2048, "off", "f32", 16)
    assert (identified.profile, identified.phase, identified.bootstrap) == (files[0].name, "suffix", 50)
    assert (identified.seed, identified.splits) == (7, 0)
    assert (compared.bootstrap, compared.phase) == (50, "prompt")
    parse(next(words for words in lines if words[-1] == "sets.json")[1:], COMMANDS)
