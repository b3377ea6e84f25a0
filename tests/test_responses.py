"""Responses files: what is written is read again, nothing is lost, and what is wrong is one line; `judge` on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge_endpoint import endpoint, fails, labels

import safex
import safex.cli
from safex import responses
from safex.errors import DiskError, InputError
from safex.judges import Verdict
from safex.responses import Header, Record, Responses, ResponsesWriter, load, save

HEADER = Header({"name": "demo", "model.fingerprint": "abc"}, {"max_new": 64, "judges": ["keyword"]})
REFUSAL, COMPLIANCE = "I'm sorry, but I can't help with that.", "Sure, mix flour and water, then bake it."


def record(number: int = 0, **more: Any) -> Record:
    given = {"id": f"r-{number:03d}", "set": "regular", "prompt": f"How {number}?", "response": REFUSAL}
    return Record(**{**given, **more})


def written(path: Path, records: list[Record], header: Header = HEADER) -> Path:
    with ResponsesWriter(path, header) as writer:
        for one in records:
            writer.append(one)
    return path


# --- the file


def test_everything_comes_back(tmp_path: Path) -> None:
    records = [
        record(0),
        record(
            1, category="theft", pair="p-1", mask="mask", experts=["1:2", "3:4"], mode="reroute", sample=2
        ),
        record(
            2, response="line one\nline two\u2028\x85 \u4f60\u597d \U0001f35e", finish="length", tokens=64
        ),
        record(3, comply=["first check"], gain=0.5, phase="prompt"),
        record(4, response="half a pair \ud800", extra={"temperature": 0.7}),
        record(5)
        .judged("keyword", Verdict("refuse", None, "sorry"))
        .judged("logit", Verdict("comply", 0.25)),
    ]
    path = written(tmp_path / "a.jsonl", records)
    assert load(path) == Responses(HEADER, records)
    assert len(path.read_bytes().split(b"\n")) == len(records) + 2
    save(tmp_path / "b.jsonl", HEADER, records)
    assert (tmp_path / "b.jsonl").read_bytes() == path.read_bytes()


def test_fields_of_a_line(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", [record(0, experts=["1:2"]).judged("logit", Verdict("refuse", 0.75))]
    )
    head, line = map(json.loads, path.read_text().splitlines())
    assert head == {"safex_responses": 1, "model": HEADER.model, "parameters": HEADER.parameters}
    names = "id set prompt response category pair mask experts mode gain phase sample tokens finish verdicts"
    assert set(line) == set(names.split())
    assert (line["experts"], line["verdicts"]) == (["1:2"], {"logit": {"label": "refuse", "score": 0.75}})


def test_a_line_of_another_tool_needs_little(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"safex_responses": 1}\n\n{"id": "a", "set": "s", "prompt": "p", "response": "r", "experts": [[1, 2]]}'
    )
    (one,) = load(tmp_path / "a.jsonl").records
    assert (one.mask, one.sample, one.to_json()["experts"]) == ("none", 0, ("1:2",))


def test_resume_cuts_a_torn_line_at_every_byte(tmp_path: Path) -> None:
    records = [record(i) for i in range(3)]
    whole = written(tmp_path / "whole.jsonl", records).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in {
        *range(0, len(whole), 29),
        *(end + i for end in ends for i in (-2, -1, 0, 1) if end + i <= len(whole)),
    }:
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:cut])
        with ResponsesWriter(path, HEADER, resume=True) as writer:
            kept = sum(end - 1 <= cut for end in ends[1:]) if cut >= ends[0] - 1 else 0
            assert len(writer.done) == kept, cut
            for one in records:
                if one.key not in writer.done:
                    writer.append(one)
        assert path.read_bytes() == whole, cut


def test_load_leaves_a_torn_line_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [record(0), record(1)])
    path.write_bytes(path.read_bytes()[:-5])
    loaded = load(path)
    assert (loaded.torn, [r.id for r in loaded.records]) == (True, ["r-000"])


def test_existing_files_are_safe(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [record(0)])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"exists already: --resume to go on"):
        ResponsesWriter(path, HEADER)
    (tmp_path / "other.txt").write_text("my notes")
    with pytest.raises(InputError, match=r"is no responses file"):
        ResponsesWriter(tmp_path / "other.txt", HEADER, resume=True)
    assert (tmp_path / "other.txt").read_text() == "my notes" and path.read_bytes() == before
    with ResponsesWriter(path, HEADER, force=True) as writer:
        assert writer.done == set()
    with (
        ResponsesWriter(path, HEADER, resume=True),
        pytest.raises(InputError, match="another run is writing"),
    ):
        ResponsesWriter(path, HEADER, resume=True)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (replace(HEADER, model={"name": "demo", "model.fingerprint": "x"}), "model 'model.fingerprint' is"),
        (replace(HEADER, parameters={**HEADER.parameters, "max_new": 8}), "parameters 'max_new' is 64 there and 8"),
        (replace(HEADER, parameters={**HEADER.parameters, "seed": 1}), "parameters 'seed' is null there and 1"),
        (replace(HEADER, parameters={"max_new": 64}), "parameters 'judges' is"),
    ],
)  # fmt: skip
def test_another_run_is_refused_by_name(header: Header, part: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [record(0)])
    with pytest.raises(InputError, match="can't resume") as refused:
        ResponsesWriter(path, header, resume=True)
    assert part in str(refused.value)
    same = replace(
        HEADER, parameters={**HEADER.parameters, "judges": ("keyword",)}
    )  # a tuple is a list in JSON
    with ResponsesWriter(path, same, resume=True) as writer:
        assert len(writer.done) == 1


def test_an_answer_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with ResponsesWriter(path, HEADER) as writer:
        writer.append(record(0))
        writer.append(record(0, mask="mask"))
        writer.append(record(0, sample=1))
        with pytest.raises(
            InputError, match="'r-000' of set 'regular', mask 'none', sample 0 is recorded already"
        ):
            writer.append(record(0))
    with pytest.raises(InputError, match="the writer is closed"):
        writer.append(record(9))
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(InputError, match=r"line 5: answer 'r-000' .* occurs twice"):
        load(path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"id": 7}, "'id' is int, expected str"),
        ({"sample": True}, "'sample' is bool, expected int"),
        ({"tokens": "many"}, "'tokens' is str"),
        ({"category": 1}, "'category' is int, expected str or null"),
        ({"comply": [1]}, "'comply' must be a list of texts"),
        ({"experts": ["x"]}, "'experts' must be a list of 'L:E' texts"),
        ({"experts": [5]}, "'experts' must be a list of 'L:E' texts"),
        ({"verdicts": {"k": {"label": "fine"}}}, "verdict of 'k' has label 'fine', expected one of refuse"),
        ({"verdicts": {"k": "refuse"}}, "verdict of 'k' has label None"),
    ],
)
def test_wrong_lines_say_where_and_what(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [HEADER.to_json(), record(0).to_json(), {**record(1).to_json(), **change}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError) as refused:
        load(path)
    assert f"{path}, line 3: " in str(refused.value) and part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is no responses file"),
        ("[1]\n", "is no responses file"),
        ('{"id": "a"}\n', "is no responses file"),
        ('{"safex_responses": 2}\n', "schema version 2, expected 1"),
        ('{"safex_responses": 1, "model": 3}\n', "'model' is int, expected an object"),
        ('{"safex_responses": 1}\nnot json\n', "line 2: is no JSON object"),
        ('{"safex_responses": 1}\n{"id": "a"}\n', "line 2: has no 'set'"),
        ('{"safex_responses": 1}\n' + "[" * 100_000 + "\n", "line 2: is no JSON object"),
    ],
)
def test_wrong_files_say_what(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(InputError) as refused:
        load(tmp_path / "a.jsonl")
    assert part in str(refused.value) and str(tmp_path) in str(refused.value)


def test_missing_places_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no such folder"):
        ResponsesWriter(tmp_path / "none" / "a.jsonl", HEADER)


def test_a_killed_run_loses_nothing_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    code = (
        "import os, signal, sys\nfrom safex.responses import *\n"
        f"writer = ResponsesWriter({str(path)!r}, Header())\n"
        "for i in range(50): writer.append(Record(str(i), 's', 'p', 'r'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert len(load(path).records) == 50


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    with ResponsesWriter(path, HEADER) as writer:
        writer.append(record(0))
        before = path.read_bytes()

        def half(fd: int, offset: int, data: bytes) -> int:
            os.pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(responses.disk, "write_at", half)
            with pytest.raises(DiskError, match="No space left"):
                writer.append(record(1))
        assert path.read_bytes() == before
        writer.append(record(1))
    assert len(load(path).records) == 2


# --- safex-native judge


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setitem(safex.cli.COMMANDS, "judge", "verdicts on saved answers, by other judges")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        code = safex.cli.main(["judge", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    texts = [REFUSAL, COMPLIANCE, "", "la " * 20]
    made = [record(i, response=texts[i % 4], mask=("none", "mask")[i // 4]) for i in range(8)]
    return written(tmp_path / "run.jsonl", made, Header())


def test_judge_counts_by_set_and_mask(judge: Any, answers: Path) -> None:
    code, out, _ = judge(answers, "--judge", "keyword", "--json")
    found = json.loads(out)
    counts = {"n": 4, "readable": 2, "refuse": 1, "comply": 1, "other": 0}
    counts |= {"empty": 1, "truncated": 0, "reasoning": 0, "degenerate": 1}
    assert code == 0 and found["output"] is None and found["agreement"] == []
    assert found["counts"] == [
        {"judge": "keyword", "set": "regular", "mask": m, **counts} for m in ("none", "mask")
    ]
    code, out, _ = judge(answers, "--judge", "keyword")
    assert code == 0 and "1 (50%)" in out and "empty 1, degenerate 1" in out


def test_judge_writes_verdicts_beside_those_there(judge: Any, answers: Path, tmp_path: Path) -> None:
    loaded = load(answers)
    save(answers, loaded.header, [r.judged("human", Verdict("refuse")) for r in loaded.records])
    code, out, _ = judge(answers, "--judge", "keyword", "-o", "out.jsonl", "--json")
    (pair,) = json.loads(out)["agreement"]
    assert code == 0 and pair["judges"] == ["human", "keyword"] and pair["agree"] == 0.25
    assert pair["table"]["refuse"] == {"refuse": 2, "comply": 2, "other": 4}
    made = load(tmp_path / "out.jsonl").records
    assert [set(r.verdicts) for r in made] == [{"human", "keyword"}] * 8
    code, _, err = judge(answers, "--judge", "keyword", "-o", "out.jsonl")
    assert code == 2 and "exists: choose another -o" in err
    assert judge(answers, "--judge", "keyword", "-o", "out.jsonl", "--force")[0] == 0


def test_judge_by_an_endpoint_and_by_logits(judge: Any, answers: Path) -> None:
    def answer(request: dict[str, Any], _: int) -> Any:
        return labels("refuse" if "sorry" in request["messages"][1]["content"] else "comply")

    with endpoint(answer) as served:
        words = ["--judge", f"openai:j@{served.url}", "--judge", "logit", "--model", "demo", "--threads", 1]
        code, out, err = judge(answers, *words, "--json", "--quiet")
    assert code == 0, err
    rows = {(row["judge"], row["mask"]): row for row in json.loads(out)["counts"]}
    assert rows["openai:j", "none"]["refuse"] == 1 and ("logit", "mask") in rows
    (pair,) = json.loads(out)["agreement"]
    assert pair["n"] + pair["left_out"] == 8


def test_a_failing_endpoint_keeps_partial_results(
    judge: Any, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safex.cli.judge.PIECE", 4)
    with endpoint(lambda _, n: labels("comply") if n < 4 else fails(500)) as served:
        spec = f"openai:j@{served.url}"
        code, out, err = judge(answers, "--judge", spec, "--parallel", 1, "--retries", 1, "-o", "out.jsonl")
    last = err.splitlines()[-1]
    assert (
        (code, out) == (3, "")
        and "HTTP 500" in last
        and "4 of 8 verdicts of openai:j are in out.jsonl" in last
    )
    assert [len(r.verdicts) for r in load(tmp_path / "out.jsonl").records] == [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--judge", "keyword", "--judge", "keyword"], "judge keyword is asked for twice"),
        (["--judge", "nonsense"], "no judge 'nonsense'; expected one of keyword"),
        (["--judge", "logit"], "name it (--model)"),
        (["--judge", "gguf:none.gguf:wildguard"], "none.gguf"),
        (["--judge", "gguf:none.gguf"], "write gguf:PATH:TEMPLATE"),
        (["--judge", "keyword", "-o", "run.jsonl", "--force"], "is one of the inputs"),
        ([], "--judge"),
    ],
)
def test_judge_refuses_bad_input(judge: Any, answers: Path, words: list[str], part: str) -> None:
    code, out, err = judge(answers, *words)
    assert (code, out) == (2, "") and part in err.splitlines()[-1]


def test_judge_refuses_another_model_and_no_answers(judge: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", [record(0)])
    code, _, err = judge(path, "--judge", "logit", "--model", "demo", "--threads", 1)
    assert code == 2 and "is not the model that gave these answers (fingerprint abc)" in err
    code, _, err = judge(written(tmp_path / "none.jsonl", []), "--judge", "keyword")
    assert code == 2 and "holds no answers" in err
