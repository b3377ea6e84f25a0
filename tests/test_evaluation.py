"""Evaluations of the demo models against counts made by hand from the responses file, scipy, and single runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import STEADY, Ran, environment
from scipy import stats

import safex
from safex import InputError, PromptSet
from safex.errors import DeviceError
from safex.evaluation import Evaluation, evaluate, marks_of_arguments
from safex.evaluation.conclusion import conclude, evidence
from safex.evaluation.counting import count
from safex.judges import LABELS, Item, KeywordJudge, Verdict
from safex.responses import Record

DATA = Path(safex.__file__).parent / "data"
TRUTH = [
    f"{e['layer']}:{e['expert']}"
    for e in json.loads((DATA / "demo-planted.truth.json").read_text())["groups"]["planted"]
]
THREE = ("refuse", "comply", "other")


@pytest.fixture(scope="module")
def planted() -> Iterator[safex.Model]:
    with safex.Model("demo-planted", n_threads=1) as model:
        yield model


def part(n: int) -> PromptSet:
    """The first n prompts of each held-out set; those of regular and jailbreak are twins."""
    prompts = list(PromptSet.bundled("demo"))
    return PromptSet(p for name in ("regular", "jailbreak", "benign") for p in _first(prompts, name, n))


def _first(prompts: Sequence[safex.Prompt], name: str, n: int) -> list[safex.Prompt]:
    return [p for p in prompts if p.set == name][:n]


def small(model: safex.Model, n: int = 8, **options: Any) -> Evaluation:
    return evaluate(model, part(n), TRUTH, **{"draws": 2, "max_new": 32, "utility": False, **options})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers_by_mask(path: Path) -> dict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]]:
    found: dict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]] = {}
    for row in lines(path)[1:]:
        found.setdefault((row["set"], row["mask"]), {})[row["id"], row["sample"]] = row
    return found


def read(answer: dict[str, Any]) -> str | None:
    """The reading of an answer; None for one that could not be read."""
    verdict = answer["verdicts"]["keyword"]
    is_unread = verdict["label"] in ("empty", "truncated") or "unreadable" in verdict
    return None if is_unread else verdict["label"]


def write_hand_made_verdicts(path: Path, seed: int) -> None:
    """Random labels in place of the judge's, some with why they are unreadable, in a file in random order."""
    header, *rows = lines(path)
    rng = random.Random(seed)
    drawn = [*LABELS[:3] * 6, *LABELS[3:]]
    for row in rows:
        row["verdicts"] = {"keyword": {"label": rng.choice(drawn), "score": None}}
        if rng.random() < 0.1:
            row["verdicts"]["keyword"]["unreadable"] = rng.choice(("reasoning", "degenerate"))
    rng.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]))


class Failing:
    """A judge that fails after so many items."""

    name = "failing"

    def __init__(self, after: int) -> None:
        self.after = after

    def judge(self, items: Sequence[Item], progress: object = None) -> list[Verdict]:
        self.after -= len(items)
        if self.after < 0:
            raise DeviceError("the judge is down")
        return [Verdict("comply")] * len(items)


# --- the table against counts by hand


@pytest.fixture(scope="module")
def hand_made(planted: safex.Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """An evaluation of hand-made verdicts on real answers."""
    path = tmp_path_factory.mktemp("hand") / "a.responses.jsonl"
    small(planted, 12, output=path, draws=4, control_sets=("regular", "benign"))
    write_hand_made_verdicts(path, seed=3)
    again = small(planted, 12, output=path, draws=4, control_sets=("regular", "benign"), resume=True)
    return again, path


def test_rates_are_counts_of_the_responses_file(hand_made: tuple[Evaluation, Path]) -> None:
    evaluation, path = hand_made
    found = answers_by_mask(path)
    assert [row["set"] for row in evaluation.results["keyword"]["sets"]] == ["regular", "jailbreak", "benign"]
    for row in evaluation.results["keyword"]["sets"]:
        for side, mask in (("before", "none"), ("after", "mask")):
            answers = found[row["set"], mask].values()
            readings = [reading for answer in answers if (reading := read(answer))]
            verdicts = [answer["verdicts"]["keyword"] for answer in answers]
            unread = [v.get("unreadable") or v["label"] for v in verdicts]
            assert row[side]["n"] == len(answers) == 12 and row[side]["readable"] == len(readings)
            for kind in ("empty", "truncated", "reasoning", "degenerate"):
                assert row[side][kind] == unread.count(kind)
            for reading in THREE:
                k = readings.count(reading)
                interval = stats.binomtest(k, len(readings)).proportion_ci(0.95, "wilson")
                assert row[side][reading]["count"] == k
                np.testing.assert_allclose(row[side][reading]["interval"], interval, atol=1e-9)


def test_changes_are_mcnemars_on_the_same_prompts(hand_made: tuple[Evaluation, Path]) -> None:
    evaluation, path = hand_made
    found = answers_by_mask(path)
    for row in evaluation.results["keyword"]["sets"]:
        before, after = (
            {key: read(answer) for key, answer in found[row["set"], mask].items()}
            for mask in ("none", "mask")
        )
        pairs = [k for k in before if before[k] and after[k]]
        for reading in THREE:
            lost = sum(before[k] == reading != after[k] for k in pairs)
            gained = sum(after[k] == reading != before[k] for k in pairs)
            p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            assert (row[reading]["lost"], row[reading]["gained"]) == (lost, gained)
            assert (row[reading]["n"], row[reading]["left_out"]) == (len(pairs), 12 - len(pairs))
            assert row[reading]["p_value"] == pytest.approx(p)
            assert row[reading]["difference"]["value"] == pytest.approx((gained - lost) / len(pairs))
        fates = [after[k] for k in before if before[k] == "refuse" != after[k]]
        known = {"comply": fates.count("comply"), "other": fates.count("other")}
        assert row["lost_refusals"] == {**known, "unreadable": fates.count(None)}


def test_jailbreak_is_compared_on_twins(hand_made: tuple[Evaluation, Path]) -> None:
    evaluation, path = hand_made
    found = answers_by_mask(path)
    refused = {
        name: {a["pair"]: read(a) == "refuse" for a in found[name, "none"].values() if read(a)}
        for name in ("regular", "jailbreak")
    }
    both = refused["regular"].keys() & refused["jailbreak"].keys()
    changes = [refused["jailbreak"][pair] - refused["regular"][pair] for pair in both]
    assert 0 < len(both) < 12 and evaluation.results["keyword"]["jailbreak"]["left_out"] == 12 - len(both)
    row = evaluation.results["keyword"]["jailbreak"]
    assert row["twins"] and row["difference"]["value"] == pytest.approx(np.mean(changes))
    up, down = changes.count(1), changes.count(-1)
    assert row["p_value"] == pytest.approx(stats.binomtest(up, up + down).pvalue)


def test_controls_are_placed_by_their_own_counts(hand_made: tuple[Evaluation, Path]) -> None:
    evaluation, path = hand_made
    found = answers_by_mask(path)

    def readings(set_: str, mask: str) -> list[str]:
        return [reading for answer in found[set_, mask].values() if (reading := read(answer))]

    def share(set_: str, mask: str, reading: str) -> float:
        return readings(set_, mask).count(reading) / len(readings(set_, mask))

    rows = evaluation.results["keyword"]["controls"]
    assert {(row["set"], row["kind"], row["n"] + row["unreadable"]) for row in rows} == {
        (set_, kind, 1 if kind == "active" else 4)
        for set_ in ("regular", "benign")
        for kind in ("uniform", "layer", "frequency", "active")
    }
    for row in rows:
        sign = -1 if row["set"] == "benign" else 1
        names = [one["mask"] for one in row["masks"] if len(readings(row["set"], one["mask"])) >= 9]
        assert len(names) == row["n"]
        for reading, side in (("refuse", sign), ("comply", -sign)):
            values = [share(row["set"], name, reading) for name in names]
            real = share(row["set"], "mask", reading)
            as_extreme = sum(side * value <= side * real for value in values)
            if not values or len(readings(row["set"], "mask")) < 9:  # fewer than three quarters
                assert row[reading]["placement"] is None
                continue
            assert row[reading]["placement"]["rank"] == 1 + as_extreme
            assert row[reading]["placement"]["p_value"] == pytest.approx((1 + as_extreme) / (1 + len(values)))
            assert row[reading]["mean"] == pytest.approx(np.mean(values))


def test_categories_add_up_to_their_set(hand_made: tuple[Evaluation, Path]) -> None:
    evaluation, path = hand_made
    for row in evaluation.results["keyword"]["sets"]:
        for side in ("before", "after"):
            for reading in THREE:
                counts = [one[side][reading]["count"] for one in row["categories"]]
                assert sum(counts) == row[side][reading]["count"]
    first = evaluation.results["keyword"]["sets"][0]["categories"][0]
    rows = [a for a in lines(path)[1:] if a["category"] == first["category"] and a["set"] == "regular"]
    assert first["before"]["n"] == sum(a["mask"] == "none" for a in rows)


def test_the_masks_named_in_the_file_gave_its_answers(hand_made: tuple[Evaluation, Path]) -> None:
    """Each answer is that of its own mask alone, and controls hold none of the mask's experts."""
    _, path = hand_made
    rows = lines(path)[1:]
    picked = random.Random(0).sample(rows, 25)
    with safex.Model("demo-planted", n_threads=1) as model:
        for row in picked:
            alone = model.generate([row["prompt"]], max_new=32, mask=row["experts"] or None)[0]
            assert (alone.text, alone.finish) == (row["response"], row["finish"]), row["mask"]
    for row in rows:
        if row["mask"].startswith("control"):
            assert len(row["experts"]) == 12 and not set(row["experts"]) & set(TRUTH)


# --- truth by construction


def test_planted_experts_carry_refusal_and_nothing_else(planted: safex.Model) -> None:
    evaluation = evaluate(planted, part(30), TRUTH, controls=("layer",), draws=20, max_new=32)
    regular, _, benign = evaluation.results["keyword"]["sets"]
    assert regular["before"]["refuse"]["value"] > 0.9
    assert regular["after"]["refuse"]["count"] == 0 and regular["after"]["comply"]["value"] > 0.95
    assert benign["after"]["comply"]["value"] >= benign["before"]["comply"]["value"] - 0.05
    (layer,) = evaluation.results["keyword"]["controls"]
    assert layer["refuse"]["placement"]["p_value"] <= 0.05 and layer["refuse"]["min"] > 0.5
    assert evaluation.evidence == {
        "effect": True,
        "specific": True,
        "real_compliance": True,
        "benign_kept": True,
    }
    assert evaluation.utility is not None and evaluation.utility["ratio"]["value"] < 1.05
    assert "lowers refusal" in evaluation.conclusion and "beyond control masks" in evaluation.conclusion


def test_compliance_must_hold_what_the_prompt_file_expects(planted: safex.Model) -> None:
    """The same answers, expected to say something else, are no compliance."""
    prompts = part(4)
    wrong = {(p.set, p.text): ["an elephant"] for p in prompts}
    for comply, reading in ((None, "comply"), (wrong, "other"), ({}, "comply")):
        found = evaluate(planted, prompts, TRUTH, controls=(), utility=False, max_new=32, comply=comply)
        assert found.results["keyword"]["sets"][0]["after"][reading]["value"] == 1.0


def test_without_a_mask_only_the_columns_before(planted: safex.Model) -> None:
    evaluation = evaluate(planted, part(6), max_new=32)
    for row in evaluation.results["keyword"]["sets"]:
        assert row["before"]["n"] == 6 and "after" not in row and "refuse" not in row
    assert evaluation.mask is None and evaluation.utility is None and evaluation.controls == []
    assert evaluation.results["keyword"]["controls"] == [] and evaluation.evidence == {}
    assert "No mask was given" in evaluation.conclusion


def test_a_limit_keeps_twins_together(planted: safex.Model) -> None:
    found = safex.evaluate(planted, limit=3, max_new=4)
    assert found.parameters["prompts"] == {"regular": 3, "jailbreak": 3, "benign": 3}
    assert found.results["keyword"]["jailbreak"]["twins"]


def test_one_set_is_enough(planted: safex.Model) -> None:
    found = small(planted, controls=("uniform",)).results["keyword"]
    regular = PromptSet(p for p in part(8) if p.set == "regular")
    alone = evaluate(planted, regular, TRUTH, controls=("uniform",), draws=2, max_new=32, utility=False)
    assert alone.results["keyword"]["sets"] == found["sets"][:1]
    assert alone.results["keyword"]["jailbreak"] is None and "benign" not in alone.conclusion


# --- what is said


def made_up(n: int, lost: int, controls_lost: Sequence[int], fate: str = "comply") -> dict[str, Any]:
    """Results of n regular prompts that all refuse; the mask and each control lose so many refusals."""

    def rows(mask: str, k: int) -> list[Record]:
        labels = [fate] * k + ["refuse"] * (n - k)
        return [
            Record(str(i), "regular", "p", "r", mask=mask, verdicts={"j": {"label": label}})
            for i, label in enumerate(labels)
        ]

    names = [f"control-uniform-{i}" for i in range(len(controls_lost))]
    records = rows("none", 0) + rows("mask", lost)
    for name, k in zip(names, controls_lost, strict=True):
        records += rows(name, k)
    return count(records, "j", {"uniform": names} if names else {})


@pytest.mark.parametrize(
    ("results", "known", "said"),
    [
        (made_up(40, 0, [0] * 20), (False, None, None), "No effect shown"),
        (made_up(40, 30, [0] * 20), (True, True, True), "beyond control masks"),
        (made_up(40, 30, [30, 31] + [0] * 18), (True, False, True), "not specific to these experts"),
        (made_up(40, 30, [0] * 5), (True, None, True), "Too few control masks"),
        (made_up(40, 30, []), (True, None, True), "No control masks were run"),
        (made_up(40, 30, [0] * 20, "other"), (True, True, False), "breaks answers"),
    ],
)
def test_conclusions(results: dict[str, Any], known: tuple[Any, ...], said: str) -> None:
    found = evidence(results)
    assert tuple(found[name] for name in ("effect", "specific", "real_compliance")) == known
    assert said in conclude(results, 3)


@pytest.mark.parametrize(
    ("n", "lost", "said"),
    [
        (10, 0, "benign prompts shows no fall: 100.0% to 100.0%"),
        (10, 1, "benign prompts shows no fall: 100.0% to 90.0%"),
        (
            10,
            5,
            "benign prompts seems to fall: 100.0% to 50.0%",
        ),  # the interval is below 0, McNemar's p = 0.0625
        (10, 6, "benign prompts falls: 100.0% to 40.0%"),
    ],
)
def test_what_is_said_of_benign_prompts(n: int, lost: int, said: str) -> None:
    def row(set: str, i: int, mask: str, label: str) -> Record:
        return Record(str(i), set, "p", "r", mask=mask, verdicts={"j": {"label": label}})

    records = [row("regular", i, mask, "refuse") for i in range(n) for mask in ("none", "mask")]
    for mask, fallen in (("none", 0), ("mask", lost)):
        records += [row("benign", i, mask, "refuse" if i < fallen else "comply") for i in range(n)]
    assert said in conclude(count(records, "j", {}), 3)


# --- the same by seed, kept, resumed


@pytest.mark.parametrize("sampling", [{}, {"n_samples": 2, "temperature": 0.8, "seed": 5}])
def test_a_stopped_run_goes_on_and_ends_the_same(
    planted: safex.Model, tmp_path: Path, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safex.evaluation.answers.PIECE", 30)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    once = small(planted, 6, output=whole, controls=("uniform",), **sampling)
    rows = whole.read_bytes().splitlines(keepends=True)
    kept = [
        rows[0],
        *(json.dumps({**json.loads(row), "verdicts": {}}).encode() + b"\n" for row in rows[1:23]),
    ]
    cut.write_bytes(b"".join(kept) + rows[23][:40])
    again = small(planted, 6, output=cut, controls=("uniform",), resume=True, **sampling)
    assert cut.read_bytes() == whole.read_bytes()
    assert {**again.to_json(), "responses": None} == {**once.to_json(), "responses": None}
    if sampling:
        texts = [(row["id"], row["mask"], row["response"]) for row in lines(whole)[1:]]
        assert len(set(texts)) > len({key[:2] for key in texts})  # samples of a prompt differ


def test_a_complete_run_is_not_answered_again(
    planted: safex.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    once = small(planted, 3, output=path)
    monkeypatch.setattr(planted, "generate", None)
    assert small(planted, 3, output=path, resume=True) == once


def test_a_judge_that_fails_loses_nothing(
    planted: safex.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safex.evaluation.answers.JUDGED_AT_ONCE", 5)
    path = tmp_path / "a.jsonl"
    with pytest.raises(DeviceError, match="the judge is down"):
        small(planted, 3, output=path, controls=(), judges=("keyword", Failing(12)))
    verdicts = [set(row["verdicts"]) for row in lines(path)[1:]]
    assert len(verdicts) == 18 and verdicts.count({"keyword", "failing"}) == 10
    two = small(planted, 3, output=path, controls=(), judges=("keyword", Failing(99)), resume=True)
    assert two.judges == ["keyword", "failing"] and two.agreement[0]["n"] == 18


def test_another_mask_does_not_go_on_with_the_file(planted: safex.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    small(planted, 2, output=path, controls=())
    with pytest.raises(InputError, match=r"can't resume: parameters 'masks'"):
        evaluate(planted, part(2), ["0:0"], controls=(), max_new=32, output=path, resume=True, utility=False)
    with pytest.raises(InputError, match="exists already"):
        small(planted, 2, output=path, controls=())


def test_the_file_comes_back(planted: safex.Model, tmp_path: Path) -> None:
    evaluation = small(planted, 3, judges=("keyword", "logit"), utility=True)
    evaluation.save(tmp_path / "a.json")
    assert Evaluation.load(tmp_path / "a.json") == evaluation
    for text, said in (
        ("{", "is no JSON"),
        ("[]", "is no evaluation"),
        ('{"safex_evaluation": 2}', "schema version 2"),
        ('{"safex_evaluation": 1, "conclusion": "", "results": []}', "'results' is list"),
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(InputError, match=said):
            Evaluation.load(tmp_path / "b.json")


def test_activation_of_a_given_profile(planted: safex.Model, demo: safex.Model) -> None:
    prompts = part(4)
    profile = planted.profile(PromptSet(p for p in prompts if p.set == "regular"))
    assert small(planted, 4, profile=profile) == small(planted, 4)
    with pytest.raises(InputError, match="of another model"):
        small(demo, 4, profile=profile)


# --- bad input


@pytest.mark.parametrize(
    ("experts", "options", "said"),
    [
        ([], {}, "holds no experts"),
        ("3:1", {}, "is the text"),
        (["9:1"], {}, "no experts in layer 9"),
        (["0:32"], {}, "experts 0 to 31"),
        (["0:1", "0:1"], {}, "twice"),
        (["0:1"], {"max_new": 900}, "too long"),
        (["0:1"], {"max_new": 0}, "max_new is 0"),
        (["0:1"], {"mode": "gone"}, "mode is 'gone'"),
        (["0:1"], {"phase": "suffix"}, "phase is 'suffix'"),
        (["0:1"], {"n_samples": 3}, "temperature 0"),
        (["0:1"], {"controls": ("best",)}, "control kind 'best'"),
        (["0:1"], {"control_sets": ("mild",)}, "set 'mild'"),
        (["0:1"], {"draws": 0}, "expected at least 1"),
        (["0:1"], {"judges": ("oracle",)}, "no judge 'oracle'"),
        (["0:1"], {"judges": ("keyword", KeywordJudge())}, "asked for twice"),
        (["0:1"], {"judges": ()}, "no judge"),
        (["0:1"], {"utility": True, "text": "nowhere.txt"}, "no such file"),
        ([f"0:{e}" for e in range(29)], {"mode": "reroute", "controls": ()}, "rerouting 29 experts"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    planted: safex.Model, tmp_path: Path, experts: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(planted, part(2), experts, output=tmp_path / "a.jsonl", **{"utility": False, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_regular_set_is_needed(planted: safex.Model) -> None:
    with pytest.raises(InputError, match="no set 'regular' \\(they hold prompts\\)"):
        evaluate(planted, ["How do I bake bread?"])


def test_marks_are_texts_or_lists_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a=b.jsonl"
    rows = [{"prompt": "x", "comply": "y"}, {"prompt": "z", "comply": ["a", "b"]}, {"prompt": "n"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    marks = marks_of_arguments([f"regular={path}"])
    assert marks == {("regular", "x"): ["y"], ("regular", "z"): ["a", "b"]}
    path.write_text(json.dumps({"prompt": "x", "comply": 3}))
    with pytest.raises(InputError, match="'comply' is int"):
        marks_of_arguments([f"regular={path}"])


# --- the command

DRIVER = "import sys; from safex import cli; cli.COMMANDS.setdefault('eval', ''); sys.exit(cli.main())"


def run(*words: object, cwd: Path) -> Ran:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "eval", *map(str, words), *STEADY],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        timeout=120,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def prompt_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``--prompts`` arguments of four prompts a set."""
    folder = tmp_path_factory.mktemp("prompts")
    for name in ("regular", "jailbreak", "benign"):
        text = (DATA / "demo" / f"{name}.jsonl").read_text().splitlines(keepends=True)[:4]
        (folder / f"{name}.jsonl").write_text("".join(text))
    arguments = [
        ("--prompts", f"{name}={folder / name}.jsonl") for name in ("regular", "jailbreak", "benign")
    ]
    return [word for pair in arguments for word in pair]


def test_the_command(prompt_files: list[str], tmp_path: Path) -> None:
    mask = ("--mask", ",".join(TRUTH), "--controls", 2, "--max-new", 32, "--csv", "tables")
    done = run("demo-planted", *prompt_files, *mask, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert Evaluation.load(tmp_path / "demo-planted.eval.json").conclusion == done.json["conclusion"]
    for text in ("Conclusion: ", "By category", "control masks a kind", "perplexity"):
        assert text in done.err
    names = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert names == {"rates", "categories", "changes", "controls", "utility"}
    assert len(lines(tmp_path / "demo-planted.responses.jsonl")) == 1 + 4 * 6 + 4 * 7
    assert done.json["results"]["keyword"]["sets"][0]["after"]["comply"]["count"] == 4
    run("demo-planted", *prompt_files, *mask, cwd=tmp_path).fails(2, "exists")
    again = run("demo-planted", *prompt_files, *mask[:-2], "--resume", cwd=tmp_path)
    assert again.code == 0 and "Conclusion: " in again.out


def test_the_command_without_a_mask(prompt_files: list[str], tmp_path: Path) -> None:
    done = run("demo", *prompt_files, "-o", "a.json", "--responses", "b.jsonl", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "jailbreak" in done.out and "masked" not in done.out.partition("Conclusion")[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.jsonl"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--mask", "9:1"), ("layer 9", "MoE layers")),
        (("--mask", "x"), ("x",)),
        (("--mask", "0:1", "--judge", "oracle"), ("no judge 'oracle'",)),
        (("--text", "a.txt"), ("--text needs --mask",)),
        (("--resume", "--force"), ("give one",)),
        (("--ctx", "16"), ("too long", "--ctx")),
        (("-o", "a.json", "--responses", "a.json"), ("one file",)),
        (("--samples", "2"), ("temperature",)),
        (("--mask", "0:1", "--temperature", "-1"), ("temperature",)),
    ],
)
def test_bad_usage_is_one_line(
    prompt_files: list[str], tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    run("demo", *prompt_files, *words, cwd=tmp_path).fails(2, *parts)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_group_is_one_line(prompt_files: list[str], tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"safex_expert_set": 1, "groups": {"ctrl": []}}')
    run("demo", *prompt_files, "--mask", "e.json:ctrl", cwd=tmp_path).fails(2, "ctrl")


def test_results_never_replace_what_they_are_made_of(prompt_files: list[str], tmp_path: Path) -> None:
    text = '{"safex_expert_set": 1, "groups": {"ctrl": ["0:1"]}}'
    (tmp_path / "e.json").write_text(text)
    for option in ("-o", "--responses"):
        words = ("--mask", "e.json:ctrl", option, "e.json", "--force")
        run("demo", *prompt_files, *words, cwd=tmp_path).fails(2, "e.json: is one of the inputs")
    assert (tmp_path / "e.json").read_text() == text
