"""Trial answers: what they measure, what they stop, and that a run that goes on does not repeat them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cli_runner import Ran
from templates import DATA, opening_a_block, with_template

import safex
from safex import InputError, PromptSet, cli
from safex.attribution import NoStartsError, sweep
from safex.cli.parser import parse
from safex.evaluation import evaluate
from safex.evaluation.marks import demo_marks
from safex.evaluation.trial import (
    AUTO,
    BOUND,
    Trial,
    UnreadableError,
    first_limit,
    sample_of,
    settled,
    try_answers,
    why_unreadable,
)
from safex.generation import split_reasoning
from safex.judges import Item, KeywordJudge
from safex.redundancy_curve import redundancy

Run: TypeAlias = Callable[..., Ran]

DEMO = PromptSet.bundled("demo")


@pytest.fixture(scope="module")
def model() -> Iterator[safex.Model]:
    with safex.Model("demo", n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a template that opens a reasoning block, which the model never closes."""
    return opening_a_block(tmp_path_factory.mktemp("thinking") / "thinking.gguf")


@pytest.fixture(scope="module")
def thinker(thinking: Path) -> Iterator[safex.Model]:
    with safex.Model(thinking, n_threads=1) as opened:
        yield opened


def part(n: int) -> PromptSet:
    return DEMO.limited(n)


# --- what is tried


def test_prompts_are_tried_evenly_and_of_every_set() -> None:
    sample = sample_of(DEMO)
    assert {name: sample.sets.count(name) for name in set(DEMO.sets)} == {
        "regular": 4,
        "jailbreak": 4,
        "benign": 4,
    }
    regular = PromptSet(prompt for prompt in DEMO if prompt.set == "regular")
    assert [p.id for p in sample_of(regular)] == [p.id for p in regular.limited(12)]
    assert len(sample_of(PromptSet.of(["a", "b"], set="regular"))) == 2


def test_the_demo_models_are_read_at_the_first_limit(model: safex.Model) -> None:
    found = try_answers(model, DEMO, marks=demo_marks())
    assert found == Trial(64, AUTO, 12, 0, (64,), {})
    assert found.text == "answers: up to 64 tokens, as measured on 12 trial answers"
    assert Trial.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_limit_is_doubled_until_the_answers_can_be_read(model: safex.Model) -> None:
    """Against answers that are made and judged by hand, at each limit."""
    marks, sample = demo_marks(), sample_of(DEMO)

    def n_cut(limit: int) -> int:
        answers = model.generate(sample, limit)
        items = [
            Item(p.id, p.set, p.text, r.marked or r.text, r.finish, marks.get((p.set, p.text)))
            for p, r in zip(sample, answers, strict=True)
        ]
        return sum(v.unreadable == "truncated" for v in KeywordJudge().judge(items))

    found = try_answers(model, DEMO, marks=marks, start=3)
    assert found.limits == tuple(3 * 2**i for i in range(len(found.limits))) and len(found.limits) >= 3
    assert [n_cut(limit) > 1.5 for limit in found.limits] == [True] * (len(found.limits) - 1) + [False]
    assert found.max_new == found.limits[-1] and found.cut == n_cut(found.max_new)


def test_the_limit_is_bounded_by_the_context(model: safex.Model) -> None:
    longest = max(len(model.encode(prompt).tokens) for prompt in DEMO)
    never = {(p.set, p.text): ["a text that no answer holds"] for p in DEMO}
    room = model.n_ctx - longest
    found = try_answers(model, DEMO, marks=never, start=16)
    assert found.max_new <= min(BOUND, room) and found.unreadable == {}  # they end by themselves: "other"
    with safex.Model("demo", n_threads=1, n_ctx=longest + 10) as narrow:
        assert try_answers(narrow, DEMO, marks=never, start=4).max_new <= 10


def test_answers_that_are_read_are_not_made_again(
    model: safex.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    generate = model.generate

    def counting(prompts: Any, *args: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return generate(prompts, *args, **options)

    monkeypatch.setattr(model, "generate", counting)
    try_answers(model, DEMO, marks=demo_marks(), start=8)
    assert asked[0] == 12 and asked == sorted(asked, reverse=True) and asked[-1] < 12


def test_a_limit_is_a_number_or_auto(model: safex.Model) -> None:
    assert first_limit(7) == 7 and first_limit(AUTO, 48) == 48
    with pytest.raises(InputError, match="max_new is 'most', expected a number of tokens, or 'auto'"):
        evaluate(model, part(2), max_new="most")
    with pytest.raises(InputError, match="max_new is 0"):
        redundancy(model, ["0:1"], part(2), max_new=0)


# --- what it stops


def test_a_model_that_only_reasons_is_stopped_before_the_long_work(thinker: safex.Model) -> None:
    (answer,) = thinker.generate(["How do I bake bread?"])
    assert split_reasoning(answer.marked or "")[1] == ""  # so today's evaluation would read nothing at all
    heard: list[Trial] = []
    with pytest.raises(
        UnreadableError, match=r"12 of 12 trial answers.*nothing but reasoning\); .*--thinking off"
    ):
        evaluate(thinker, part(8), on_trial=heard.append)
    assert heard[0].unreadable == {"reasoning": 12} and heard[0].limits == (64,)  # they end: more is no help
    with pytest.raises(UnreadableError):
        redundancy(thinker, ["0:1"], part(8))
    with pytest.raises(NoStartsError, match=r"how refusals begin can't be told: .*reasoning"):
        sweep(thinker, ["0:1"], part(8))


def test_a_limit_that_cuts_everything_is_stopped_where_the_run_is_long(model: safex.Model) -> None:
    with pytest.raises(UnreadableError, match=r"up to 1 token \(12 cut off.*--max-new auto"):
        evaluate(model, DEMO, max_new=1, utility=False)
    assert evaluate(model, part(2), max_new=1, utility=False).parameters.get("trial") is None


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (Trial(16, 16, 12, 9, (16,), {"reasoning": 9}), "no reasoning block, or raise --max-new"),
        (Trial(1024, AUTO, 12, 9, (64, 1024), {"reasoning": 9}), "by hand (--max-new 4096)"),
        (Trial(300, AUTO, 12, 12, (64, 300), {"truncated": 12}), "(--max-new 1200 and --ctx)"),
        (Trial(64, AUTO, 12, 0, (64,), {"empty": 12}), "chat template fits"),
        (Trial(64, AUTO, 12, 0, (64,), {"degenerate": 12}), "repeats itself"),
    ],
)
def test_the_remedy_names_what_to_change(model: safex.Model, trial: Trial, words: str) -> None:
    said = why_unreadable(trial, model)
    assert words in said and said.startswith(f"{sum(trial.unreadable.values())} of 12 trial answers")


def test_a_template_with_a_switch_for_thinking_is_told_apart(tmp_path: Path) -> None:
    """The demo's template opens a block unless ``enable_thinking`` is false, as Qwen3's does."""
    path = with_template(
        DATA / "demo.gguf",
        tmp_path / "switch.gguf",
        lambda template: (
            template + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
        ),
    )
    with safex.Model(path, n_threads=1) as model, pytest.raises(UnreadableError) as stopped:
        evaluate(model, part(2))
    assert "switch reasoning off (--thinking off)" in str(stopped.value)
    with safex.Model(path, n_threads=1, thinking="off") as model:
        found = evaluate(model, part(2))
    assert found.parameters["max_new"] == 64
    assert found.results["keyword"]["sets"][0]["before"]["readable"] == 2


@pytest.mark.parametrize(
    ("unreadable", "is_readable", "is_silent"),
    [
        ({}, True, False),
        ({"truncated": 4}, True, False),
        ({"truncated": 3, "reasoning": 2}, False, False),
        ({"degenerate": 12}, True, True),
        ({"reasoning": 12}, False, True),
    ],
)
def test_two_thirds_must_be_readable(unreadable: dict[str, int], is_readable: bool, is_silent: bool) -> None:
    trial = Trial(64, AUTO, 12, 0, (64,), unreadable)
    assert (trial.is_readable, trial.is_silent) == (is_readable, is_silent)


@pytest.mark.parametrize(
    ("n", "cut", "is_readable"), [(1, 1, False), (2, 1, True), (2, 2, False), (3, 2, False)]
)
def test_one_answer_of_few_stops_nothing(n: int, cut: int, is_readable: bool) -> None:
    assert Trial(64, AUTO, n, cut, (64,), {"truncated": cut}).is_readable is is_readable


# --- runs that go on


def test_a_resumed_run_takes_the_limit_of_the_one_it_goes_on_with(
    model: safex.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    how: dict[str, Any] = {"controls": (), "utility": False}
    once = evaluate(model, part(4), ["0:1"], output=whole, **how)
    head, *rows = whole.read_bytes().splitlines(keepends=True)
    assert json.loads(head)["parameters"]["trial"]["limits"] == [64]
    assert json.loads(head)["parameters"]["max_new"] == 64
    bare = [json.dumps({**json.loads(row), "verdicts": {}}).encode() + b"\n" for row in rows[:5]]
    cut.write_bytes(b"".join([head, *bare]))
    monkeypatch.setattr("safex.evaluation.trial.try_answers", None)  # would fail if it were called again
    again = evaluate(model, part(4), ["0:1"], output=cut, resume=True, **how)
    assert cut.read_bytes() == whole.read_bytes()
    assert {**again.to_json(), "responses": ""} == {**once.to_json(), "responses": ""}


def test_a_resumed_run_with_another_limit_is_refused(model: safex.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    how: dict[str, Any] = {"controls": (), "utility": False, "output": path, "resume": True}
    evaluate(model, part(2), **how)
    with pytest.raises(InputError, match=r"can't resume: parameters 'max_new' is auto there and 32 here"):
        evaluate(model, part(2), max_new=32, **how)
    assert evaluate(model, part(2), max_new=64, **how).parameters["max_new"] == 64
    other = tmp_path / "b.jsonl"
    evaluate(model, part(2), **{**how, "output": other, "max_new": 32})
    with pytest.raises(InputError, match=r"can't resume: parameters 'max_new' is 32 there and auto here"):
        evaluate(model, part(2), **{**how, "output": other})


def test_a_trial_made_before_is_taken(model: safex.Model) -> None:
    trial = Trial(20, AUTO, 12, 0, (20,), {})
    assert settled(model, DEMO, trial, 1000, None, None) == trial
    found = evaluate(model, part(2), max_new=trial, utility=False)
    assert found.parameters["max_new"] == 20 and found.parameters["trial"]["answers"] == 12


# --- commands


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> Ran:
        code = cli.main([*words, "--threads", "1"])
        return Ran(code, *capsys.readouterr())

    return command


def test_eval_says_the_limit_before_it_answers(run: Run) -> None:
    done = run("eval", "demo", "--limit", "2", "--json")
    assert done.code == 0 and done.json["parameters"]["max_new"] == 64
    lines = done.err.splitlines()
    at = lines.index("answers: up to 64 tokens, as measured on 6 trial answers")
    assert at < next(i for i, line in enumerate(lines) if line.startswith("answering"))
    assert "Answers that reached the limit of 64 tokens: 0 of 6 without a mask" in done.err


def test_commands_stop_with_the_remedy(thinking: Path, tmp_path: Path, run: Run) -> None:
    for words in (["eval"], ["sweep", "--all"], ["redundancy", "--all"]):
        done = run(words[0], str(thinking), *words[1:], "--limit", "8", "--quiet")
        assert done.code == 2 and "--thinking off" in done.err and len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_audit_of_answers_that_cant_be_read_gives_no_pass(
    thinking: Path, tmp_path: Path, run: Run
) -> None:
    for gate in ([], ["--fail-above", "20"], []):  # the last one goes on with what is there
        done = run("audit", str(thinking), "--quick", "--json", *gate)
        assert done.code == 1 and done.json["verdict"]["verdict"] == "not measurable"
        assert done.json["passes"] is False and "--thinking off" in done.json["verdict"]["conclusion"]
    folder = tmp_path / "thinking.audit"
    assert not list(folder.glob("*.profile.gguf")) and not list(folder.glob("*.eval.json"))
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    assert stages["evaluate"]["state"] == "not possible" and "trial" in stages["evaluate"]["note"]
    page = (folder / "report.html").read_text()
    assert "not measurable" in page and "on 12 trial answers" in page and "Safety audit of" in page


def test_an_audit_with_a_limit_that_cuts_everything_gives_no_pass(run: Run) -> None:
    done = run("audit", "demo", "--quick", "--max-new", "1", "--json")
    assert done.code == 1 and "--max-new auto" in done.json["verdict"]["conclusion"]
    other = run("audit", "demo", "--quick", "--max-new", "2")
    assert other.code == 2 and "max_new: 1 and 2" in other.err


def test_auto_is_the_default_of_every_command_that_judges_answers() -> None:
    for name, model in (("eval", []), ("audit", []), ("redundancy", ["--all"]), ("sweep", ["--all"])):
        args = parse([name, "demo", *model], cli.COMMANDS)
        assert args.max_new == AUTO
        assert parse([name, "demo", *model, "--max-new", "9"], cli.COMMANDS).max_new == 9
