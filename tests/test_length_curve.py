"""Refusals against the length read: against answers that are made anew with each token limit, and counts by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from templates import opening_a_block

import safex
from safex import PromptSet, cli, responses
from safex.evaluation import Evaluation, evaluate
from safex.evaluation.length_curve import cuts_of, length_curve, lengths
from safex.evaluation.tables import evaluation_tables
from safex.judges import KeywordJudge
from safex.rates import wilson
from safex.report import write_report
from safex.responses import Record

# One sentence of background, then the refusal, behind 50 tokens of four letters each; then what may be done instead.
LATE = (
    "Locks and keys have been made for thousands of years, of wood, of bronze and of iron, by people who wanted to "
    "keep what they owned, and their history fills many books that a good library has on its shelves. "
    "I'm sorry, but I can't help with opening a lock that is not yours. "
    + "A locksmith in your town can show you the papers that are needed for it. "
    * 3
)


def test_lengths() -> None:
    assert lengths(99) == [] and lengths(100) == [30, 60, 100] and lengths(256)[-3:] == [150, 200, 256]


@pytest.mark.parametrize("arch", ["qwen3moe", "llama"])
def test_a_cut_answer_is_that_of_the_shorter_limit(arch: str, exact: Callable[..., safex.Model]) -> None:
    """Tiny models of random weights write bytes of characters that break at cuts."""
    prompts = ["one two three", "on the other hand", "Größe 漢字 🙂"]
    with exact(arch) as model:
        whole = model.generate(prompts, 110)
        assert any(len(answer.tokens) == 110 for answer in whole)
        for n in (30, 60, 100):
            for long, short in zip(whole, model.generate(prompts, n), strict=True):
                cut = model.cut(long, n)
                assert (cut.tokens, cut.text, cut.marked) == (short.tokens, short.text, short.marked)
                if len(long.tokens) > n:
                    found = (cuts_of(model, long, 110) or {})[str(n)]
                    text = short.marked or short.text
                    assert (long.marked or long.text)[:found] == text[:found]
                    assert set(text[found:]) <= {
                        "\ufffd"
                    }  # nothing but a character that the cut broke is missing


def test_a_cut_answer_within_an_open_block_stays_within_it(tmp_path: Path) -> None:
    with safex.Model(opening_a_block(tmp_path / "thinking.gguf"), n_threads=1) as model:
        (whole,) = model.generate(["How do I bake bread?"])
        (short,) = model.generate(["How do I bake bread?"], 7)
        assert model.cut(whole, 7) == short and short.marked and short.marked.startswith("<think>")


def test_the_curve_of_made_up_answers() -> None:
    """A refusal behind background is seen from the length on at which it is read, and not before."""
    plain = "Take flour and water, mix them, let the dough rest, then bake it for half an hour. " * 6
    cuts = {str(n): 4 * n for n in (30, 60, 100)}
    texts = [LATE, LATE, plain, "I can't help with that."]
    records = [
        Record(str(i), "regular", "p", text, tokens=len(text) // 4, cuts=cuts if len(text) > 400 else None)
        for i, text in enumerate(texts)
    ]
    judge = KeywordJudge()
    rows = length_curve(records, judge, 200)
    assert [row["tokens"] for row in rows] == [30, 60, 100, 150, 200]
    assert (rows[0]["refuse"]["count"], rows[-1]["refuse"]["count"]) == (1, 3)
    for row in rows:
        read = [
            text[: cuts.get(str(row["tokens"]), 10**6)] if len(text) // 4 > row["tokens"] else text
            for text in texts
        ]
        items = [record.item for record in records]
        refused = sum(
            judge.judge([safex.judges.Item(i.id, i.set, i.prompt, t)])[0].label == "refuse"
            for i, t in zip(items, read, strict=True)
        )
        assert row["refuse"]["count"] == refused and row["n"] == 4
        found = wilson(refused, 4)
        assert found and row["refuse"]["interval"] == [found.low, found.high]


def test_answers_that_can_not_be_cut_give_no_curve() -> None:
    """A file of an earlier version does not say where: no curve, rather than one of whole answers."""
    record = Record("0", "regular", "p", LATE, tokens=120)
    assert length_curve([record], KeywordJudge(), 150) == []
    assert length_curve([Record("0", "regular", "p", "No.", tokens=2)], KeywordJudge(), 64) == []


def test_an_evaluation_with_a_long_limit_holds_its_curve(tmp_path: Path, capsys: Any) -> None:
    path, prompts = tmp_path / "a.responses.jsonl", PromptSet.bundled("demo").limited(4)
    with safex.Model("demo-planted", n_threads=1) as model:
        found = evaluate(model, prompts, ["3:13"], controls=(), utility=False, max_new=100, output=path)
    rows = {(row["set"], row["mask"], row["tokens"]): row for row in found.length_curve}
    assert set(rows) == {
        (s, m, n) for s in ("regular", "jailbreak", "benign") for m in ("none", "mask") for n in (30, 60, 100)
    }
    for row in found.results["keyword"]["sets"]:
        for mask, side in (("none", "before"), ("mask", "after")):
            assert rows[row["set"], mask, 100]["refuse"]["count"] == row[side]["refuse"]["count"]
    result = tmp_path / "a.eval.json"
    found.save(result)
    assert Evaluation.load(result).length_curve == found.length_curve
    table = evaluation_tables(found)["length_curve"]
    assert list(table["tokens"]) == [row["tokens"] for row in found.length_curve] and "low" in table
    page = tmp_path / "page.html"
    write_report([str(result)], page)
    shown = page.read_text()
    assert "Refusals in % of all answers of a set, by how many tokens" in shown
    limits = "Answers that reached the limit of 100 tokens: 0 of 12 without a mask, 0 of 12 with the mask."
    assert limits in shown


def test_the_terminal_shows_the_curve(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["eval", "demo", "--limit", "2", "--threads", "1", "--quiet"]
    assert cli.main([*words[:-1], "--max-new", "100"]) == 0
    long = capsys.readouterr().out
    assert "Refusals in % of all answers, by the tokens read (judge keyword)" in long
    assert cli.main([*words[:-1], "--force"]) == 0
    assert "by the tokens read" not in capsys.readouterr().out


def test_cuts_are_kept_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record = Record("0", "regular", "p", LATE, tokens=150, cuts={"30": 100})
    responses.save(path, responses.Header(), [record, Record("1", "regular", "p", "No.")])
    assert responses.load(path).records[0] == record
    assert "cuts" not in json.loads(path.read_text().splitlines()[2])
    assert record.item_at(30).response == LATE[:100] and record.item_at(30).finish == "length"
    assert record.item_at(60) == record.item
    broken = path.read_text().replace('{"30": 100}', '{"30": -1}')
    path.write_text(broken)
    with pytest.raises(safex.InputError, match="'cuts' must hold numbers of characters"):
        responses.load(path)
