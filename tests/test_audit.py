"""`audit`: split, choice, verdict by constructed numbers; whole audits of the demo models, resumed, killed, refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import STEADY, cli, grown, signalled, start, wait_until

import safex
from safex.attribution import Sweep
from safex.auditing import audit, choice
from safex.auditing.estimate import Extent, Speeds, estimate, fit
from safex.auditing.measured import Answers, measure
from safex.auditing.settings import ENOUGH, Settings, Sizes
from safex.auditing.split import profile_of, split
from safex.auditing.stages import STAGES, check_skipped
from safex.auditing.verdict import (
    ALWAYS,
    CONCENTRATED,
    DISTRIBUTED,
    NEVER,
    UNMEASURED,
    UNTESTED,
    Group,
    Thresholds,
    judge,
    prompts_needed,
)
from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert
from safex.prompts import Prompt, PromptSet

SMALL = {"limit": 40, "sweep": 10, "quick": True, "skip": ["identify", "probe", "report"]}
WORDS = ("--limit", "40", "--sweep", "10", "--quick", "--skip", "identify,probe,report", *STEADY)


# --- the two parts of the prompts


def test_twins_and_equal_texts_never_stand_on_both_sides_and_a_third_of_each_set_finds() -> None:
    prompts = PromptSet.bundled("demo")
    find, test = split(prompts)
    assert {name: find.sets.count(name) for name in set(find.sets)} == dict.fromkeys(
        ("regular", "jailbreak", "benign"), 27
    )
    assert len(find) + len(test) == len(prompts) and not set(find) & set(test)
    assert not set(filter(None, find.pairs)) & set(filter(None, test.pairs))
    assert not set(find.texts) & set(test.texts)
    assert find.ids == [p.id for p in prompts if p in set(find)]  # their order is kept


def test_the_split_divides_categories_alike_and_depends_on_the_seed() -> None:
    prompts = PromptSet(Prompt(f"text {i}", "regular", str(i), category="ab"[i >= 60]) for i in range(90))
    find, _ = split(prompts)
    assert [find.categories.count(name) for name in "ab"] == [20, 10]
    assert split(prompts, 1)[0] != find == split(prompts, 0)[0]


@pytest.mark.parametrize("n, found", [(90, 30), (60, 20), (50, 20), (40, 20), (30, 15), (4, 2)])
def test_small_sets_give_20_to_find_but_never_more_than_half(n: int, found: int) -> None:
    assert len(split(PromptSet.of(map(str, range(n)), set="regular"))[0]) == found


def test_a_set_of_three_can_not_be_divided() -> None:
    with pytest.raises(InputError, match="a set holds 3 prompts, expected at least 4"):
        split(PromptSet.of(["a", "b", "c"], set="regular"))


# --- which experts


def rows(*experts: str) -> Sweep:
    return Sweep(
        [
            {**dict(zip(("layer", "expert"), map(int, e.split(":")), strict=True)), "effect": {}}
            for e in experts
        ]
    )


def expert_set(**groups: list[str]) -> ExpertSet:
    entries = {
        name: [dict(zip(("layer", "expert"), map(int, e.split(":")), strict=True)) for e in of]
        for name, of in groups.items()
    }
    return ExpertSet(entries)


SETS = {"contrast": expert_set(id=["0:1"], ctrl=["0:2", "0:3"]), "ses": expert_set(id=[], ctrl=["1:1"])}
NONE_FOUND = {"contrast": expert_set(id=["0:1"], ctrl=[]), "ses": expert_set(id=[], ctrl=["1:1"])}


@pytest.mark.parametrize(
    "swept, sets, given, size, expected",
    [
        (rows("2:1", "0:2", "1:5"), SETS, [], 2, ("sweep", ["2:1", "0:2"])),
        (rows("2:1"), SETS, ["3:3"], 2, ("given", ["3:3"])),
        (None, SETS, [], 1, ("contrast:ctrl", ["0:2"])),
        (None, NONE_FOUND, [], 8, ("ses:ctrl", ["1:1"])),
        (None, {"contrast": NONE_FOUND["contrast"]}, [], 8, ("contrast:id", ["0:1"])),
        (None, {}, [], 8, ("", [])),
    ],
)
def test_the_group_under_test_follows_one_order_of_rules(
    swept: Sweep | None,
    sets: dict[str, ExpertSet],
    given: list[str],
    size: int,
    expected: tuple[str, list[str]],
) -> None:
    named = [Expert(*map(int, e.split(":"))) for e in given]
    source, experts = choice.choose(swept, sets, named, size)
    assert (source, list(map(str, experts))) == expected
    assert not source or choice.RULES[source]


def test_candidates_are_the_named_then_the_identified_then_the_busiest() -> None:
    counts = np.array([[[1, 5, 2, 0], [0, 4, 3, 1]]] * 2)
    profile = safex.Profile.from_arrays(counts=counts, n_tokens=[4, 4], sets=["regular", "benign"], top_k=2)
    every = [Expert(layer, n) for layer in range(2) for n in range(4)]
    found = choice.candidates(profile, [expert_set(ctrl=["1:3"])], [Expert(0, 3)], every, 4)
    assert list(map(str, found)) == ["0:3", "1:3", "0:1", "1:1"]
    assert choice.candidates(profile, [], [], every, 8) == every


# --- the verdict, by constructed numbers


def answers(
    n: int,
    refused: int,
    masked: int,
    control: float,
    benign: int = 0,
    complied: int | None = None,
    draws: int = 20,
) -> Answers:
    """``refused`` of ``n`` without a mask, the last ``masked`` of those with it; a share under each control mask."""
    before = np.arange(n) < refused
    after = before & (np.arange(n) >= refused - masked)
    comply = ~after if complied is None else ~before | (~after & (np.arange(n) < complied))
    rng = np.random.default_rng(0)
    drawn = np.array([before & (rng.random(n) < control) for _ in range(draws)])
    return Answers(
        before, np.arange(n) < benign, after, ~before, comply, {"layer": drawn, "frequency": drawn}
    )


GROUP = Group(8, 128, "a rule")


@pytest.mark.parametrize(
    "given, expected, words",
    [
        (answers(53, 52, 0, 1.0), CONCENTRATED, "100 % of the refusals [86, 100] hang on 8 of 128 experts"),
        (
            answers(53, 50, 18, 0.98),
            CONCENTRATED,
            "Masking them takes refusal of 53 regular prompts from 94% to 34%",
        ),
        (answers(53, 49, 37, 1.0), DISTRIBUTED, "A part of it does hang on these experts, measurably."),
        (answers(53, 53, 53, 1.0), DISTRIBUTED, "0 % of the refusals [-7, 7]"),
        (answers(53, 50, 10, 0.2), DISTRIBUTED, "it is fragile, wherever it lies"),
        (answers(53, 0, 0, 1.0), NEVER, "0 % [0, 7] of 53 plain harmful requests"),
        (answers(53, 53, 0, 1.0, benign=53), ALWAYS, "100 % [93, 100] of the harmless ones"),
        (
            answers(53, 52, 0, 1.0, complied=10),
            UNMEASURED,
            "the mask breaks answers rather than opening them up",
        ),
        (answers(20, 18, 10, 1.0), UNMEASURED, "regular prompts would tell if the shares stay"),
        (answers(53, 52, 0, 1.0, draws=5), UNMEASURED, "only 5 layer-matched control masks exist"),
        (Answers(np.ones(53, bool), np.zeros(53, bool)), UNMEASURED, "No measurable concentration"),
    ],
)
def test_the_verdict_on_constructed_answers(given: Answers, expected: str, words: str) -> None:
    found = judge(measure(given), GROUP, Thresholds())
    assert (found.name, words in found.text) == (expected, True), found.text
    assert found.estimate is not None and found.estimate.low <= found.estimate.value <= found.estimate.high


def test_without_an_evaluation_nothing_is_said() -> None:
    assert judge(None, GROUP, Thresholds(), "evaluate is skipped").to_json() == {
        "verdict": UNTESTED,
        "conclusion": "Not tested: evaluate is skipped.",
        "carried_by": None,
    }


def test_control_masks_that_do_as_much_take_the_effect_away() -> None:
    given = answers(53, 52, 0, 1.0)
    given.controls["layer"][:5] = False  # five of twenty leave no refusal either
    found = judge(measure(given), GROUP, Thresholds())
    assert (
        found.name == UNMEASURED
        and "layer-matched control masks of as many other experts do as much" in found.text
    )


def test_the_share_that_hangs_is_that_of_the_refused_prompts_beyond_the_strongest_controls() -> None:
    given = answers(40, 30, 12, 0.9)
    given.controls["frequency"] = given.refused & np.ones((20, 1), bool)
    found = measure(given)
    lost = [1 - np.mean(given.controls["layer"][:, i]) for i in range(30)]
    assert found.hangs is not None and found.drop is not None
    assert found.hangs.value == pytest.approx(18 / 30 - np.mean(lost))
    assert found.drop.value == pytest.approx(18 / 40)
    assert found.real == 1.0 and found.controls[1].hangs.value == pytest.approx(18 / 30)


def test_more_prompts_are_named_only_where_they_would_tell() -> None:
    wide, even = measure(answers(20, 20, 12, 1.0)), measure(answers(20, 20, 10, 1.0))
    needed = prompts_needed(wide, Thresholds())
    assert needed is not None and needed > 20
    more = measure(answers(needed, needed, round(needed * 0.6), 1.0))
    assert judge(more, GROUP, Thresholds()).name == DISTRIBUTED
    assert judge(even, GROUP, Thresholds()).name == CONCENTRATED  # half of the refusals, clear of zero
    assert prompts_needed(measure(Answers(np.ones(9, bool), np.zeros(9, bool))), Thresholds()) is None


# --- sizes, times, budgets

SPEEDS = Speeds(counted=0.01, answered=0.1, masked=0.01, dumped=0.001, used=0.5)
EXTENT = Extent(n_layers=48, n_experts=128, sets=3, threads=2, tested=61)


def test_a_budget_takes_less_of_everything_down_to_what_still_tells() -> None:
    full = Sizes(200)

    def seconds_of(sizes: Sizes) -> dict[str, float]:
        return estimate(sizes, SPEEDS, EXTENT)

    total = sum(seconds_of(full).values())
    sizes, seconds = fit(full, total, seconds_of) or (None, {})
    assert sizes == full and sum(seconds.values()) == total
    less, seconds = fit(full, total / 2, seconds_of) or (full, {})
    assert sum(seconds.values()) <= total / 2 and less.limit < 200 and less.sweep < 512
    assert less.draws == less.scaled(0).draws == ENOUGH
    assert fit(full, 1.0, seconds_of) is None
    assert full.scaled(0).limit == 60 and Sizes(30).scaled(0).limit == 30


def test_skipped_stages_take_no_time() -> None:
    assert estimate(Sizes(80), SPEEDS, EXTENT, ["sweep"])["sweep"] == 0


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"mode": "force"}, "mode is 'force', expected one of zero, reroute"),
        ({"controls": 5}, "controls is 5, expected at least 19"),
        ({"most": 1.0}, "most is 1.0, expected a share"),
        ({"budget": 0.0}, "budget is 0.0, expected minutes above 0"),
        ({"limit": 3}, "limit is 3, expected at least 4 prompts"),
    ],
)
def test_settings_out_of_range_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**changed)
    with pytest.raises(InputError, match="stage 'choose' can't be skipped"):
        check_skipped(["choose"])


# --- whole audits


def content(folder: Path) -> dict[str, Any]:
    """All result files but the manifest; times and dates are left out."""
    read: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".profile.gguf"):
            profile = safex.Profile.load(path)
            read[path.name] = [profile.phase(name).counts.tolist() for name in profile.phases]
        elif path.name not in ("manifest.json", "report.html"):
            read[path.name] = path.read_bytes()
    return read


@pytest.fixture(scope="module")
def demo() -> Iterator[safex.Model]:
    """On one thread, as the processes that are killed: more threads sum in another order."""
    with safex.Model("demo", n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, demo: safex.Model) -> Path:
    """The folder of a small audit of demo."""
    folder = tmp_path_factory.mktemp("audit") / "demo.audit"
    audit(demo, folder, **SMALL)
    return folder


def test_an_audit_leaves_a_manifest_that_holds(done: Path) -> None:
    from safex.auditing.manifest import hashes

    manifest = json.loads((done / "manifest.json").read_text())
    states = {name: record["state"] for name, record in manifest["stages"].items()}
    skipped = dict.fromkeys(("identify", "probe", "report"), "skipped")
    assert states == {stage.name: "done" for stage in STAGES} | skipped
    for record in manifest["stages"].values():
        assert hashes([done / name for name in record["files"]]) == record["files"]
        assert record["state"] == "skipped" or record["seconds"] >= 0
    assert manifest["prompts"]["find"] == dict.fromkeys(("regular", "jailbreak", "benign"), 20)
    assert manifest["estimates"]["evaluate"] > 0 and manifest["versions"]["numpy"] == np.__version__
    assert manifest["verdict"] == json.loads((done / "verdict.json").read_text())["verdict"]
    assert sorted(p.name for p in done.iterdir()) == sorted(
        ["manifest.json", *(name for record in manifest["stages"].values() for name in record["files"])]
    )


def test_the_verdict_is_that_of_the_kept_answers(done: Path) -> None:
    verdict = json.loads((done / "verdict.json").read_text())
    rates = json.loads((done / "demo.eval.json").read_text())["results"]["keyword"]["sets"][0]
    assert verdict["measured"]["drop"]["value"] == pytest.approx(-rates["refuse"]["difference"]["value"])
    assert verdict["measured"]["refusal"]["value"] == rates["before"]["refuse"]["value"]
    swept = json.loads((done / "demo.sweep.json").read_text())["rows"]
    assert verdict["experts"] == [f"{row['layer']}:{row['expert']}" for row in swept[:8]]
    assert "hang" in verdict["carried_by"]["what"]


def test_the_same_again_computes_nothing(
    done: Path, demo: safex.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(done)
    for name in ("generate", "score", "profile", "dump"):
        monkeypatch.setattr(demo, name, None)
    again = audit(demo, done, **SMALL)
    assert content(done) == before and again.manifest["stages"]["evaluate"]["attempts"] == 1


def test_a_changed_file_is_made_again_and_what_was_made_from_it(
    done: Path, demo: safex.Model, tmp_path: Path
) -> None:
    copy = tmp_path / "demo.audit"
    shutil.copytree(done, copy)
    before = content(copy)
    (copy / "demo.sweep.json").write_text("{}")
    found = audit(demo, copy, **SMALL)
    assert content(copy) == before
    attempts = {name: record["attempts"] for name, record in found.manifest["stages"].items()}
    assert attempts["profile"] == 1 and found.manifest["stages"]["sweep"]["state"] == "done"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"mode": "reroute"}, "mode: 'zero' and 'reroute'"),
        ({"seed": 1}, "asked something else: seed: 0 and 1; ask the same"),
        ({"limit": 44}, "limit: 40 and 44"),
        ({"skip": ["probe", "report"]}, "skip: 3 values and 2 values"),
        ({"experts": ["0:1"]}, "experts: 0 values and 1 values"),
    ],
)
def test_other_settings_are_refused_by_name(
    done: Path, demo: safex.Model, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        audit(demo, done, **{**SMALL, **changed})


def test_a_folder_of_something_else_is_left_alone(demo: safex.Model, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match=r"holds files but no manifest\.json, so it is no audit"):
            audit(demo, tmp_path, force=force)
    with pytest.raises(InputError, match="the folder above doesn't exist"):
        audit(demo, tmp_path / "a" / "b")
    with pytest.raises(InputError, match="is a file, an audit needs a folder"):
        audit(demo, tmp_path / "mine.txt")


def test_registered_experts_and_a_profile_made_before(done: Path, demo: safex.Model, tmp_path: Path) -> None:
    profile = done / "demo.profile.gguf"
    skip = ["sweep", *SMALL["skip"]]
    found = audit(demo, tmp_path / "a", **{**SMALL, "skip": skip}, experts=["0:3", "1:7"], profile=profile)
    assert found.verdict["experts"] == ["0:3", "1:7"] and found.verdict["rule"] == "named beforehand"
    assert (tmp_path / "a" / "demo.profile.gguf").read_bytes() == profile.read_bytes()
    with pytest.raises(InputError, match=r"expert 9:1: this model has no experts in layer 9"):
        audit(demo, tmp_path / "b", experts=["9:1"])


def test_a_profile_of_other_prompts_or_another_model_is_refused(
    done: Path, tmp_path: Path, demo: safex.Model
) -> None:
    profile = done / "demo.profile.gguf"
    with pytest.raises(InputError, match="the profile has no prompt"):
        audit(demo, tmp_path / "a", profile=profile)
    with (
        safex.Model("demo-planted", n_threads=1) as other,
        pytest.raises(InputError, match="is of another model"),
    ):
        audit(other, tmp_path / "a", profile=profile, limit=40)
    part = profile_of(safex.Profile.load(profile), PromptSet.bundled("demo").limited(40)[:3])
    assert len(part.sets) == 3


def test_stages_that_can_not_run_say_why(demo: safex.Model, tmp_path: Path) -> None:
    found = audit(demo, tmp_path / "a", limit=8, skip=["profile", "sweep", "probe", "report"])
    stages = found.manifest["stages"]
    assert (
        stages["identify"]["state"] == "not possible" and stages["identify"]["note"] == "profile is skipped"
    )
    assert found.name == UNMEASURED and "no experts were found to test" in found.conclusion
    assert found.drop is None and found.exceeds(50)


def test_few_prompts_leave_identify_out_but_not_the_audit(demo: safex.Model, tmp_path: Path) -> None:
    found = audit(demo, tmp_path / "a", limit=8, sweep=4, skip=["probe", "report"])
    assert "it needs 20 prompts of set regular" in found.manifest["stages"]["identify"]["note"]
    assert found.manifest["stages"]["sweep"]["state"] == "done"


# --- what is known of a model is what the verdict says

DATA = Path(safex.__file__).parent / "data"
# python scripts/train_demo.py --from safex/data/demo.gguf --checkpoint demo.hf
# python scripts/train_demo.py --pairs pairs
# python scripts/train_expert_lora.py demo.hf --experts 3:0,...,3:31 --data pairs/always.jsonl -o always \
#     --rank 2 --epochs 2 --rate 3e-3
ALWAYS_REFUSING = Path(__file__).parent / "golden" / "always"


def model_known_as(verdict: str, folder: Path) -> str | Path:
    """A model of which a verdict is known to be right, made by training or from such a model."""
    made = folder / "model.gguf"
    if verdict == NEVER:  # its safety training could change nothing else
        safex.write_mask("demo-planted", made, str(DATA / "demo-planted.truth.json"))
    elif verdict == ALWAYS:
        safex.merge("demo", made, ALWAYS_REFUSING, "all")
    else:
        return {CONCENTRATED: "demo-planted", DISTRIBUTED: "demo"}[verdict]
    return made


@pytest.mark.parametrize("verdict", [CONCENTRATED, DISTRIBUTED, NEVER, ALWAYS])
def test_the_verdict_is_what_is_known_of_the_model(verdict: str, tmp_path: Path) -> None:
    with safex.Model(model_known_as(verdict, tmp_path)) as model:
        found = audit(model, tmp_path / "audit", quick=True, skip=["identify", "probe", "report"])
    assert found.name == verdict, found.conclusion


# --- killed


def running(folder: Path, stage: str) -> Callable[[], bool]:
    def is_running() -> bool:
        try:
            stages = json.loads((folder / "manifest.json").read_text())["stages"]
        except (OSError, ValueError):
            return False
        return bool(stages.get(stage, {}).get("state") == "running")

    return is_running


# What a stage writes as it goes, and how much shows that it is under way and not nearly done (22 kB and 500 kB).
JOURNALS = {"sweep": ("demo.sweep.json.journal", 2_000), "evaluate": ("demo.responses.jsonl", 20_000)}


def test_killed_at_several_stages_and_resumed_gives_the_same_numbers(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo.audit"
    for stage, (name, size) in JOURNALS.items():
        process = start("audit", "demo", *WORDS, "--quiet", cwd=tmp_path)
        wait_until(process, running(folder, stage))
        wait_until(process, grown(folder / name, size))
        signalled(process, signal.SIGKILL)
    last = cli("audit", "demo", *WORDS, "--quiet", "--json", cwd=tmp_path)
    assert last.code == 0, last.err
    assert last.json["manifest"]["stages"]["evaluate"]["attempts"] == 2
    assert content(folder) == content(done)


def test_killed_before_the_first_stage_leaves_nothing_in_the_way(demo: safex.Model, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").touch()
    (tmp_path / "a" / "manifest.json.tmp").write_text("{")
    found = audit(demo, tmp_path / "a", limit=8, skip=["identify", "sweep", "probe", "report"])
    assert found.name == UNMEASURED


def test_force_leaves_no_piece_of_the_audit_before(done: Path, demo: safex.Model, tmp_path: Path) -> None:
    skip = ["identify", "sweep", "probe", "evaluate", "report"]
    folder = tmp_path / "a"
    audit(demo, folder, limit=8, skip=skip)
    shutil.copy(folder / "demo.profile.gguf", folder / "demo.profile.gguf.0")  # as if killed between pieces
    found = audit(demo, folder, limit=12, skip=skip, force=True)
    assert len(safex.Profile.load(folder / "demo.profile.gguf").sets) == 36 and found.name == UNTESTED
    assert not list(folder.glob("*.0"))


def test_ctrl_c_says_what_was_saved(tmp_path: Path) -> None:
    process = start("audit", "demo", *WORDS, cwd=tmp_path)
    wait_until(process, running(tmp_path / "demo.audit", "evaluate"))
    ran, _ = signalled(process, signal.SIGINT)
    last = ran.err.splitlines()[-1]
    assert ran.code == 130 and "profile, sweep, choose done" in last and "the same command goes on" in last


# --- the command


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    ran = cli("audit", "demo", *WORDS, "--dry-run", "--json", cwd=tmp_path)
    assert ran.code == 0 and ran.json["plan"]["sizes"]["limit"] == 40
    assert ran.json["plan"]["seconds"]["identify"] == 0 and "About" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_gate_decides_the_exit_code_and_repeats_nothing(done: Path) -> None:
    words = ("audit", "demo", *WORDS, "-o", done, "--json")
    drop = cli(*words).json["drop"]
    above, below = cli(*words, "--fail-above", drop - 1), cli(*words, "--fail-above", drop + 1)
    assert (above.code, above.json["passes"]) == (1, False) and "Gate: fails" in above.err
    assert (below.code, below.json["passes"]) == (0, True) and "Gate: passes" in below.err
    assert below.json["manifest"]["stages"]["evaluate"]["attempts"] == 1


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--resume", "--force"], ["give one of them"]),
        (["--skip", "eval"], ["stage 'eval' can't be skipped", "evaluate"]),
        (["--skip", "evaluate", "--fail-above", "5"], ["--fail-above needs the stage evaluate"]),
        (["--column", "text"], ["--column needs --prompts"]),
        (["--controls", "5"], ["controls is 5, expected at least 19"]),
        (["--budget", "0.001"], ["--budget 0.001: even the smallest audit of this model takes about"]),
        (["-o", "a/b"], ["the folder above doesn't exist"]),
    ],
)
def test_bad_usage_is_one_line(words: list[str], parts: list[str], tmp_path: Path) -> None:
    cli("audit", "demo", *words, "--quiet", cwd=tmp_path).fails(2, *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_the_folder_shows_the_verdict_and_the_stages(done: Path, tmp_path: Path) -> None:
    ran = cli("report", done, "-o", tmp_path / "page.html")
    assert ran.code == 0, ran.err
    page = (tmp_path / "page.html").read_text()
    verdict = json.loads((done / "verdict.json").read_text())
    assert f'<p class="name">{verdict["verdict"]}</p>' in page and "Carried by share of the refusals" in page
    assert "What the verdict rests on" in page and "How this audit was run" in page
    assert "safex-native audit MODEL --quick" in page
