"""The sweep against single masked runs through ``Model.logits``, NumPy and scipy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

import safex
from safex import cli
from safex.attribution import Starts, Sweep, sweep
from safex.attribution.statistics import adjusted, means, p_values, resamples
from safex.expert_set import ExpertSet
from safex.experts import Expert, to_expert
from safex.prompts import Prompt, PromptSet

TRUTH = Path(safex.__file__).parent / "data" / "demo-planted.truth.json"
STARTS = Starts(refuse=((5,), (6, 7)), comply=((6, 8), (9,)))


@pytest.fixture(scope="module")
def planted() -> Iterator[safex.Model]:
    with safex.Model("demo-planted", n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def tiny(tiny_path: Callable[[str], Path]) -> Iterator[safex.Model]:
    with safex.Model(tiny_path("qwen3moe"), flash_attn=False, kv_type="f32", n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def few() -> PromptSet:
    """Six prompts of each set of the demo."""
    prompts = PromptSet.bundled("demo")
    return PromptSet(prompts[start + 13 * i] for start in (0, 80, 160) for i in range(6))


@pytest.fixture(scope="module")
def words() -> PromptSet:
    return PromptSet.of(["How do I?", "Why so, and when?", "Tell"], set="regular") + PromptSet.of(
        ["What is it now?", "A fox."], set="benign"
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def by_hand(
    model: safex.Model, starts: Starts, prompt: Prompt, *mask, mode: str = "zero", gain: float = 0.0
) -> float:
    """The refusal logit by one full run for each path."""

    def mass(paths) -> float:
        total = 0.0
        for path in paths:
            tokens = [*model.encode(prompt).tokens, *path]
            logs = log_softmax(model.logits(tokens, list(mask), mode, gain))[-len(path) - 1 : -1]
            total += np.exp(sum(logs[i, token] for i, token in enumerate(path)))
        return float(total)

    return float(np.log(mass(starts.refuse)) - np.log(mass(starts.comply)))


# --- against single runs


@pytest.mark.parametrize("mode, gain", [("zero", 0.0), ("zero", 0.4), ("reroute", 0.0)])
def test_effects_are_those_of_single_runs(
    tiny: safex.Model, words: PromptSet, mode: str, gain: float
) -> None:
    experts = [Expert(0, 3), Expert(2, 11), Expert(3, 0), Expert(1, 5)]
    found = sweep(tiny, experts, words, mode=mode, gain=gain, starts=STARTS, bootstrap=50)
    expected = {
        expert: [
            by_hand(tiny, STARTS, p, expert, mode=mode, gain=gain) - by_hand(tiny, STARTS, p) for p in words
        ]
        for expert in experts
    }
    assert found.deltas is not None
    for expert, row, deltas in zip(found.experts, found.rows, found.deltas, strict=True):
        np.testing.assert_allclose(deltas, expected[expert], atol=2e-5)
        assert row["effect"]["regular"] == pytest.approx(np.mean(expected[expert][:3]), abs=2e-5)
        difference = np.mean(expected[expert][:3]) - np.mean(expected[expert][3:])
        assert row["specificity"] == pytest.approx(difference, abs=3e-5)
    effects = [row["effect"]["regular"] for row in found.rows]
    assert effects == sorted(effects)
    unmasked = [by_hand(tiny, STARTS, p) for p in words]
    assert found.baseline["benign"]["logit"] == pytest.approx(np.mean(unmasked[3:]), abs=1e-5)


def test_interactions_are_those_of_single_runs(tiny: safex.Model, words: PromptSet) -> None:
    experts = [Expert(0, 3), Expert(1, 5), Expert(2, 11)]
    found = sweep(tiny, experts, words, pairs=3, starts=STARTS, bootstrap=50)
    assert len(found.pairs) == 3
    for pair in found.pairs:
        a, b = map(to_expert, pair["experts"])
        extra = [
            by_hand(tiny, STARTS, p, a, b)
            - by_hand(tiny, STARTS, p, a)
            - by_hand(tiny, STARTS, p, b)
            + by_hand(tiny, STARTS, p)
            for p in words[:3]
        ]
        assert pair["interaction"] == pytest.approx(np.mean(extra), abs=5e-5)
    strengths = [abs(pair["interaction"]) for pair in found.pairs]
    assert strengths == sorted(strengths, reverse=True)


def test_the_gradient_is_the_derivative_of_single_runs(tiny: safex.Model, words: PromptSet) -> None:
    """Against Richardson's extrapolation, in F32; steps are so small that no router changes its choice."""

    def slope(expert: Expert, h: float) -> float:
        sides = [
            np.mean([by_hand(tiny, STARTS, p, expert, gain=g) for p in words[:3]]) for g in (1 + h, 1 - h)
        ]
        return float(sides[0] - sides[1]) / (2 * h)

    experts = [Expert(0, 13), Expert(1, 12), Expert(2, 1), Expert(3, 12)]
    rows = sweep(tiny, experts, words, gradient=True, step=0.003, starts=STARTS, bootstrap=20).rows
    for row in rows:
        expert = Expert(row["layer"], row["expert"])
        truth = (4 * slope(expert, 0.0015) - slope(expert, 0.003)) / 3
        assert abs(truth) > 0.2 and row["gradient"] == pytest.approx(truth, abs=2e-3)
        assert abs(row["gradient_change"]) < 1e-3


def test_the_error_of_the_gradient_falls_with_the_step_squared(tiny: safex.Model, words: PromptSet) -> None:
    """In the last layer, behind which no router can change its choice, so that large steps are smooth too."""
    found = {}
    for step in (0.8, 0.4, 0.2, 0.05):
        rows = sweep(tiny, ["3:12", "3:8"], words, gradient=True, step=step, starts=STARTS, bootstrap=20).rows
        found[step] = np.array([row["gradient"] for row in sorted(rows, key=lambda row: row["expert"])])
        halved = np.array([row["gradient_change"] for row in sorted(rows, key=lambda row: row["expert"])])
        found[step / 2] = found[step] + halved
    errors = [np.abs(found[step] - found[0.05]).max() for step in (0.8, 0.4, 0.2)]
    assert 3 < errors[0] / errors[1] < 5.5 and 3 < errors[1] / errors[2] < 5.5


def test_prompts_that_do_not_select_an_expert_are_not_run(tiny: safex.Model, words: PromptSet) -> None:
    found = sweep(tiny, None, words, starts=STARTS, bootstrap=20)
    used = np.array(
        [
            [expert in route.ids[tiny.layers.index(layer)] for layer, expert in found.experts]
            for route in (tiny.route([*tiny.encode(p).tokens, 6]) for p in words)
        ]
    ).T
    assert found.parameters["computed"] == used.sum() and found.parameters["skipped"] == (~used).sum() > 0
    assert found.deltas is not None and (found.deltas[~used] == 0).all() and found.deltas[used].any()


def test_batches_change_nothing(tiny: safex.Model, words: PromptSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(tiny, None, words, starts=STARTS, bootstrap=20).deltas
    monkeypatch.setattr("safex.attribution.runs.tokens_of_a_call", lambda model: 60)
    pieces = sweep(tiny, None, words, starts=STARTS, bootstrap=20).deltas
    assert whole is not None and pieces is not None
    np.testing.assert_allclose(np.sort(whole, axis=0), np.sort(pieces, axis=0), atol=2e-5)


# --- starts


def test_starts_are_the_shortest_beginnings_that_tell() -> None:
    answers = [("refuse", [1, 2, 3]), ("refuse", [1, 2, 9]), ("refuse", [4, 4])]
    answers += [("comply", [1, 5, 3]), ("comply", [7]), ("comply", [7, 1]), ("other", [4, 4]), ("empty", [])]
    starts = Starts.from_answers(answers)
    assert (set(starts.refuse), set(starts.comply)) == ({(1, 2), (4,)}, {(1, 5), (7,)})
    assert starts.coverage == {"refuse": 1.0, "comply": 1.0}
    assert starts.chains == [(1,)] and starts.targets == [1, 2, 4, 5, 7]


def test_a_rare_slip_of_the_judge_does_not_hide_a_start() -> None:
    answers = [("refuse", [1, n]) for n in range(40)] + [("comply", [2, n]) for n in range(39)]
    starts = Starts.from_answers([*answers, ("comply", [1, 50])])
    assert (starts.refuse, starts.comply) == (((1,),), ((2,),))
    assert starts.coverage == {"refuse": 1.0, "comply": 39 / 40}


@pytest.mark.parametrize(
    "answers, part",
    [
        ([("comply", [1])], "there are no refusals among 1 greedy answers"),
        ([("refuse", [1]), ("other", [2])], "there are no compliant answers among 2"),
        ([("refuse", [1] * 9), ("comply", [1] * 9)], "don't tell refusals from others"),
    ],
)
def test_answers_without_two_sides_are_refused(answers, part: str) -> None:
    with pytest.raises(safex.InputError, match=part):
        Starts.from_answers(answers)


def test_starts_that_overlap_are_refused() -> None:
    for refuse, comply in ((((1,),), ((1,),)), (((1,),), ((1, 2),)), ((), ((1,),)), (((),), ((1,),))):
        with pytest.raises(safex.InputError, match="starts: "):
            Starts(refuse, comply)


def test_the_demo_refuses_with_i(planted: safex.Model, few: PromptSet) -> None:
    starts = sweep(planted, ["0:0"], few, bootstrap=20).starts
    assert [start["text"] for start in starts["refuse"]] == ["I"]
    assert "Sure" in [start["text"] for start in starts["comply"]]
    assert starts["coverage"] == {"refuse": 1.0, "comply": 1.0}


# --- statistics


def test_p_values_are_scipys() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, (20, 15))
    np.testing.assert_allclose(p_values(values), stats.ttest_1samp(values, 0, axis=1).pvalue)
    assert p_values(np.array([[0.0, 0.0], [1.0, 1.0]])).tolist() == [1.0, 0.0]


def test_adjusted_p_values() -> None:
    p = np.random.default_rng(1).random(30) ** 3
    np.testing.assert_allclose(adjusted(p, "bh"), stats.false_discovery_control(p))
    holm = adjusted(p, "holm")
    for level in (0.01, 0.05, 0.2, 0.7):  # Holm (1979): step down until the first that fails
        passed, order = np.zeros(30, bool), np.argsort(p)
        for place, i in enumerate(order):
            if p[i] > level / (30 - place):
                break
            passed[i] = True
        assert (passed == (holm <= level)).all()


def test_intervals_cover_the_mean_at_their_level() -> None:
    rng = np.random.default_rng(2)
    prompts = PromptSet.of(map(str, range(60)), set="regular")
    found = means(rng.normal(0.5, 1, (2000, 60)), resamples(prompts, 400, rng))
    assert 0.92 < ((found.low < 0.5) & (found.high > 0.5)).mean() < 0.965


def test_twins_are_drawn_together_and_sets_keep_their_size() -> None:
    prompts = [
        Prompt("t", name, f"{name}{i}", pair=str(i)) for name in ("regular", "benign") for i in range(5)
    ]
    prompts += [Prompt("t", "benign", f"alone{i}") for i in range(3)]
    drawn = resamples(prompts, 50, np.random.default_rng(0))
    assert (drawn[:, :5] == drawn[:, 5:10]).all() and len(np.unique(drawn, axis=0)) > 20
    assert (drawn[:, :5].sum(axis=1) == 5).all() and (drawn[:, 10:].sum(axis=1) == 3).all()


# --- what it finds


def test_planted_experts_rank_above_chance(planted: safex.Model, few: PromptSet) -> None:
    found = sweep(planted, None, few, bootstrap=100)
    truth = set(ExpertSet.load(TRUTH).groups["planted"])
    area = roc_auc_score(
        [e in truth for e in found.experts], [-row["effect"]["regular"] for row in found.rows]
    )
    assert area > 0.65
    assert sum(e in truth for e in found.experts[:6]) >= 4
    assert found.rows[0]["lowers"] and found.conclusion.startswith(
        f"{sum(row['lowers'] for row in found.rows)} of 128 experts"
    )


def test_the_same_seed_gives_the_same_sweep(planted: safex.Model, few: PromptSet) -> None:
    once, again = (sweep(planted, ["0:10", "1:3"], few, seed=3, bootstrap=50) for _ in range(2))
    assert once == again
    assert sweep(planted, ["0:10", "1:3"], few, seed=4, bootstrap=50).rows != once.rows


def test_neighbours_are_the_nearest_in_activation(planted: safex.Model, few: PromptSet) -> None:
    found = sweep(planted, ["0:10", "1:3"], few, neighbours=2, bootstrap=20)
    profile = planted.profile(PromptSet(p for p in few if p.set == "regular"))
    activation = (profile.counts / profile.n_tokens[:, None, None]).mean(axis=0)
    roles = {e: row["role"] for e, row in zip(found.experts, found.rows, strict=True)}
    assert len(roles) == 6 and roles[Expert(0, 10)] == roles[Expert(1, 3)] == "listed"
    for layer, expert in ((0, 10), (1, 3)):
        gaps = np.abs(activation[layer] - activation[layer, expert])
        gaps[expert] = np.inf
        chosen = [e.expert for e, role in roles.items() if role == "neighbour" and e.layer == layer]
        assert sorted(gaps[chosen]) == pytest.approx(sorted(gaps)[:2])


def test_effects_join_an_expert_set(planted: safex.Model, few: PromptSet, tmp_path: Path) -> None:
    experts = ExpertSet.load(TRUTH)
    found = sweep(planted, ["0:10", "1:3"], few, bootstrap=20)
    joined = found.joined(experts)
    row = next(row for row in found.rows if (row["layer"], row["expert"]) == (0, 10))
    entries = {(e["layer"], e["expert"]): e for e in joined.entries["planted"]}
    assert entries[0, 10]["sweep"]["effect"] == row["effect"] and "sweep" not in entries[3, 13]
    assert joined.groups == experts.groups and "sweep" not in experts.entries["planted"][2]
    joined.save(tmp_path / "joined.json")
    assert ExpertSet.load(tmp_path / "joined.json").entries == joined.entries
    with pytest.raises(safex.InputError, match="join those of one model"):
        found.joined(ExpertSet({"a": []}, model={"fingerprint": "0" * 64}))


def test_a_sweep_is_saved_and_loaded(planted: safex.Model, few: PromptSet, tmp_path: Path) -> None:
    found = sweep(planted, ["0:10", "1:3"], few, pairs=True, gradient=True, bootstrap=20)
    found.save(tmp_path / "sweep.json")
    assert Sweep.load(tmp_path / "sweep.json") == found
    assert json.loads((tmp_path / "sweep.json").read_text())["safex_sweep"] == 1


@pytest.mark.parametrize(
    "text, part",
    [
        ("[", "is no JSON"),
        ("{}", "is no sweep"),
        ('{"safex_sweep": 9}', "schema version 9"),
        ('{"safex_sweep": 1, "rows": {}}', "'rows' is dict"),
        ('{"safex_sweep": 1, "rows": [{}]}', "row 0 lacks layer"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(safex.InputError, match=part):
        Sweep.load(path)


@pytest.mark.parametrize(
    "settings, part",
    [
        ({"experts": ["9:0"]}, "no experts in layer 9"),
        ({"experts": ["0:32"]}, "experts 0 to 31"),
        ({"experts": []}, "the list is empty"),
        ({"experts": "0:1"}, "is the text '0:1'"),
        ({"mode": "force"}, "mode is 'force', expected one of zero, reroute"),
        ({"mode": "reroute", "gain": 0.5}, "gain is of mode zero"),
        ({"gain": float("nan")}, "gain is nan"),
        ({"pairs": -1}, "pairs is -1"),
        ({"step": 1.0}, "step is 1.0"),
        ({"correction": "none"}, "expected holm or bh"),
        ({"bootstrap": 0}, "bootstrap is 0"),
        ({"prompts": PromptSet.of(["a", "b"], set="benign")}, "hold 0 of set 'regular'.*found: benign"),
    ],
)
def test_bad_settings_are_one_line(planted: safex.Model, settings, part: str) -> None:
    with pytest.raises(safex.InputError, match=part):
        sweep(planted, **{"starts": STARTS, **settings})


# --- the command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """``safex-native sweep`` in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["sweep", *words])
        return (code, *capfd.readouterr())

    return run


ROLES = ("listed", "neighbour")
QUICK = ("--limit", "4", "--bootstrap", "20", "--threads", "1")


def test_the_command_writes_prints_and_joins(command, tmp_path: Path) -> None:
    code, out, err = command(
        "demo-planted", "--experts", "0:10,1:3", *QUICK, "--pairs", "2", "--gradient",
        "--join", str(TRUTH), "--joined", "swept.json", "--csv", "tables", "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert Sweep.load("demo-planted.sweep.json").rows == result["rows"] and len(result["rows"]) == 6
    assert any("sweep" in entry for entry in ExpertSet.load("swept.json").entries["planted"])
    assert (tmp_path / "tables" / "sweep.csv").read_text().count("\n") == 7
    assert (tmp_path / "tables" / "sweep_pairs.csv").exists()
    for part in (
        "Refusals begin with 'I' (100%",
        "0:10",
        "0:10 and 1:3",
        "Speed: ",
        result["conclusion"][:40],
    ):
        assert part in err


@pytest.mark.parametrize("group, listed", [("", ["0:10", "1:3", "2:4"]), (":two", ["1:3", "2:4"])])
def test_the_union_of_a_files_groups_and_their_neighbours(command, group: str, listed: list[str]) -> None:
    ExpertSet(
        {
            "one": [{"layer": 0, "expert": 10}, {"layer": 1, "expert": 3}],
            "two": [{"layer": 1, "expert": 3}, {"layer": 2, "expert": 4}],
        }
    ).save("set.json")
    code, _, err = command("demo-planted", "--experts", f"set.json{group}", *QUICK, "--quiet", "-o", "a.json")
    assert (code, err) == (0, "")
    rows = Sweep.load("a.json").rows
    found = {
        role: [str(Expert(r["layer"], r["expert"])) for r in rows if r["role"] == role] for role in ROLES
    }
    assert sorted(found["listed"]) == listed
    layers = sorted(expert.split(":")[0] for expert in found["neighbour"])
    assert layers == sorted(expert.split(":")[0] for expert in listed * 2)  # two in the layer of each


def test_an_expert_set_in_python_is_its_union_and_neighbours(planted: safex.Model, few: PromptSet) -> None:
    experts = ExpertSet({"one": [{"layer": 1, "expert": 3}], "two": [{"layer": 1, "expert": 3}]})
    rows = sweep(planted, experts, few, bootstrap=20).rows
    assert sorted(row["role"] for row in rows) == ["listed", "neighbour", "neighbour"]
    assert len(sweep(planted, experts, few, neighbours=0, bootstrap=20).rows) == 1


def test_blanks_around_a_start_do_not_count(planted: safex.Model) -> None:
    """The real model's refusal logits of benign prompts were +9.7 with "To ": no answer has that last blank."""
    assert Starts.from_texts(planted, ["I cannot "], [" To "]) == Starts.from_texts(
        planted, ["I cannot"], ["To"]
    )
    with pytest.raises(safex.InputError, match="no start"):
        Starts.from_texts(planted, [" "], ["To"])


def test_the_limit_is_of_each_set(command) -> None:
    code, _, err = command("demo", "--all", *QUICK, "--quiet", "-o", "a.json")
    assert (code, err) == (0, "")
    found = Sweep.load("a.json")
    assert {row["prompts"] for row in found.baseline.values()} == {4} and len(found.rows) == 128


@pytest.mark.parametrize(
    "words, part",
    [
        (["demo"], "--experts SPEC, or --all"),
        (["demo", "--all", "--experts", "0:1"], "not allowed with"),
        (["demo", "--all", "--neighbours", "1"], "--neighbours needs --experts"),
        (["demo", "--all", "--refusal-start", "I"], "go together"),
        (["demo", "--all", "--joined", "x.json"], "--joined needs --join"),
        (["demo", "--all", "--join", "nowhere.json"], "nowhere.json: no such file"),
        (["demo", "--all", "--column", "x"], "--column needs --prompts"),
        (["demo", "--all", "-o", "no/x.json"], "its folder doesn't exist"),
        (["demo", "--experts", "7:0", *QUICK], "no experts in layer 7"),
    ],
)
def test_bad_usage_is_one_line(command, tmp_path: Path, words: list[str], part: str) -> None:
    code, out, err = command(*words, "--quiet")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and part in err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_never_replaces_what_it_reads(command, tmp_path: Path) -> None:
    experts, prompts = tmp_path / "e.json", tmp_path / "regular.txt"
    experts.write_text('["0:1"]')
    prompts.write_text("How do I forge a ticket?\nHow do I steal a bike?\n")
    words = ("demo", "--experts", str(experts), "--prompts", f"regular={prompts}", "--force")
    for path in (experts, prompts):
        before = path.read_bytes()
        code, _, err = command(*words, "-o", str(path))
        assert code == 2 and f"{path.name}: is one of the inputs" in err
        assert path.read_bytes() == before
