"""A sweep that is stopped, anywhere and in any way, goes on and gives the same file as one that never was."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import STEADY, cli, grown, signalled, start, wait_until

import safex
from safex import DeviceError, DiskError, InputError, disk
from safex.attribution import Starts, Sweep, sweep
from safex.attribution.kept import Kept, unfinished
from safex.attribution.pieces import costs, pieces
from safex.cli import main
from safex.journal import Journal
from safex.prompts import PromptSet

EXPERTS = ["0:10", "1:3", "3:11"]
QUICK: dict[str, Any] = {"pairs": 2, "gradient": True, "bootstrap": 20}
STARTS = Starts(refuse=((5,), (6, 7)), comply=((6, 8), (9,)))


@pytest.fixture(scope="module")
def planted() -> Iterator[safex.Model]:
    with safex.Model("demo-planted", n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def few() -> PromptSet:
    """Five prompts of each set of the demo."""
    prompts = PromptSet.bundled("demo")
    return PromptSet(prompts[start + 13 * i] for start in (0, 80, 160) for i in range(5))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a few prompts, so that a small sweep has many."""
    for module in ("runs", "answers"):
        monkeypatch.setattr(f"safex.attribution.{module}.tokens_of_a_call", lambda model: 90)


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


class Stopped(Exception):  # noqa: N818 (no error)
    """Ends a run from within."""


@contextmanager
def stopped_at(piece: int) -> Iterator[None]:
    """Within it, a run ends when its nth piece of those it makes is done but not yet kept."""
    append, left = Journal.append, iter(range(piece))

    def stop(journal: Journal, payload: bytes) -> None:
        if payload.startswith(b"[") and next(left, None) is None:  # the headers are objects
            raise Stopped
        append(journal, payload)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        yield


def run_in_parts(model: safex.Model, prompts: PromptSet, path: Path, each: int, **settings: Any) -> int:
    """Stop after so many pieces, go on, and so to the end; how often it was stopped."""
    for stops in range(999):
        with suppress(Stopped), stopped_at(each):
            sweep(model, EXPERTS, prompts, output=path, resume=stops > 0, **settings)
            return stops
        assert not path.exists()
    raise AssertionError("it makes no headway")


def halt(model: safex.Model, prompts: PromptSet, path: Path, after: int = 12, **settings: Any) -> None:
    """Leave an unfinished run that holds so many pieces."""
    with pytest.raises(Stopped), stopped_at(after):
        sweep(model, EXPERTS, prompts, output=path, **settings)


@pytest.fixture(scope="module")
def whole(planted: safex.Model, few: PromptSet, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a sweep that was never stopped, in the same small pieces."""
    path = tmp_path_factory.mktemp("whole") / "sweep.json"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("runs", "answers"):
            patch.setattr(f"safex.attribution.{module}.tokens_of_a_call", lambda model: 90)
        found = sweep(planted, EXPERTS, few, output=path, **QUICK)
    assert Sweep.load(path) == found and not journal_of(path).exists()
    return path.read_bytes()


# --- stopped and resumed


@pytest.mark.parametrize("each", [1, 2, 7])
def test_a_sweep_in_parts_is_the_same_file(planted, few, whole: bytes, tmp_path: Path, each: int) -> None:
    path = tmp_path / "sweep.json"
    assert run_in_parts(planted, few, path, each, **QUICK) > 4
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"]


def test_only_the_running_piece_is_lost(planted, few, tmp_path: Path, monkeypatch) -> None:
    calls = []
    score = planted.score
    monkeypatch.setattr(planted, "score", lambda *a, **o: calls.append(len(a[0])) or score(*a, **o))
    once = sweep(planted, EXPERTS, few, **QUICK)
    without = len(calls)
    calls.clear()
    stops = run_in_parts(planted, few, tmp_path / "a.json", 5, **QUICK)
    assert without < len(calls) <= without + stops
    assert once == Sweep.load(tmp_path / "a.json")


def test_answers_and_starts_are_not_found_again(
    planted, few, whole: bytes, tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "sweep.json"
    halt(planted, few, path, **QUICK)
    assert (unfinished(path).answers, unfinished(path).masked) == (10, 0)

    def generate(*_: Any, **__: Any) -> None:
        raise AssertionError("the answers are known")

    monkeypatch.setattr(planted, "generate", generate)
    monkeypatch.setattr(Starts, "from_answers", generate)
    sweep(planted, EXPERTS, few, output=path, resume=True, **QUICK)
    assert path.read_bytes() == whole


def test_a_torn_or_damaged_journal_loses_no_more_than_that(
    planted, few, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.json"
    halt(planted, few, path, after=20, **QUICK)
    left = journal_of(path).read_bytes()
    rng = np.random.default_rng(0)
    damaged = bytearray(left)
    damaged[len(left) * 2 // 3] ^= 1
    cuts = [left[:n] for n in (3, 20, *rng.integers(1, len(left), 6).tolist())]
    for content in (*cuts, bytes(damaged), left + b"\0" * 40):
        journal_of(path).write_bytes(content)
        sweep(planted, EXPERTS, few, output=path, resume=True, **QUICK)
        assert path.read_bytes() == whole and not journal_of(path).exists()
        path.unlink()


def test_nothing_is_left_by_a_run_that_did_nothing(planted, few, tmp_path: Path) -> None:
    halt(planted, few, tmp_path / "a.json", after=0)
    sweep(planted, ["0:10"], few, starts=STARTS, bootstrap=20)
    assert list(tmp_path.iterdir()) == []


# --- what is refused


@pytest.mark.parametrize(
    "change, difference",
    [
        ({"mode": "reroute"}, "mode: 'zero' and 'reroute'"),
        ({"gain": 0.5}, "gain: 0.0 and 0.5"),
        ({"gradient": True}, "gradient: False and True"),
        ({"seed": 7}, "seed: 0 and 7"),
        ({"pairs": 4}, "pairs: 0 and 4"),
        ({"experts": ["0:10", "1:3", "3:12"]}, r"experts\[2\]: '3:11' and '3:12'"),
        ({"experts": ["0:10"]}, "experts: 3 values and 1 values"),
        ({"starts": STARTS}, "starts: 'found in the answers' and {'refuse'"),
        ({"prompts": PromptSet.of(["How do I bake bread?", "Why?"], set="regular")}, "prompts_hash: "),
        ({"model": "demo"}, "model.fingerprint: "),
        ({"model": {"n_ubatch": 64}}, "session.n_ubatch: 512 and 64"),
    ],
)
def test_another_run_is_refused_by_name(planted, few, tmp_path: Path, change: Any, difference: str) -> None:
    path = tmp_path / "sweep.json"
    halt(planted, few, path, bootstrap=20)
    before = journal_of(path).read_bytes()
    asked = {"model": planted, "experts": EXPERTS, "prompts": few, "bootstrap": 20, **change}
    if "model" in change:
        name, settings = ("demo", {}) if change["model"] == "demo" else ("demo-planted", change["model"])
        asked["model"] = safex.Model(name, n_threads=1, **settings)
    with pytest.raises(InputError, match="the unfinished run and this one differ in " + difference):
        sweep(asked.pop("model"), asked.pop("experts"), output=path, resume=True, **asked)
    assert journal_of(path).read_bytes() == before


def test_nothing_is_overwritten_unasked(planted, few, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    halt(planted, few, path, bootstrap=20)
    with pytest.raises(InputError, match="unfinished run lies beside it: --resume to go on"):
        sweep(planted, EXPERTS, few, output=path, bootstrap=20)
    with pytest.raises(InputError, match="give one of them"):
        sweep(planted, EXPERTS, few, output=path, bootstrap=20, resume=True, force=True)
    forced = sweep(planted, EXPERTS, few, output=path, seed=3, bootstrap=20, force=True)
    assert Sweep.load(path) == forced and not journal_of(path).exists()
    for resume in (False, True):
        with pytest.raises(InputError, match="exists already: --force to replace it"):
            sweep(planted, EXPERTS, few, output=path, bootstrap=20, resume=resume)
    assert Sweep.load(path) == forced


def test_a_result_that_is_replaced_stays_until_the_new_one_is_whole(planted, few, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text("old")
    halt(planted, few, path, force=True, bootstrap=20)
    assert path.read_text() == "old"
    found = sweep(planted, EXPERTS, few, output=path, resume=True, bootstrap=20)
    assert Sweep.load(path) == found


def test_a_file_of_another_kind_or_in_use_is_refused(planted, few, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    journal_of(path).write_text("mine")
    with pytest.raises(InputError, match="is not a journal of `sweep`: delete it"):
        sweep(planted, EXPERTS, few, output=path, resume=True)
    assert journal_of(path).read_text() == "mine"
    journal_of(path).unlink()
    with Kept(path, {}), pytest.raises(InputError, match="another run is writing this file"):
        sweep(planted, EXPERTS, few, output=path)
    with pytest.raises(InputError, match="no such folder"):
        sweep(planted, EXPERTS, few, output=tmp_path / "no" / "x.json")


def test_a_model_that_gives_no_numbers_is_named(planted, few, monkeypatch) -> None:
    score = planted.score
    monkeypatch.setattr(planted, "score", lambda *a, **o: score(*a, **o) * (np.nan if a[2][0] else 1))
    with pytest.raises(
        DeviceError, match=r"logits are not finite \(prompt number 0, mask 0:10, zero, gain 0\)"
    ):
        sweep(planted, ["0:10"], few, starts=STARTS, bootstrap=20)


# --- pieces


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_full_and_part_few_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, budget = int(rng.integers(1, 300)), 100
    sizes = rng.integers(1, 30, n)
    groups = np.sort(rng.integers(0, max(1, n // int(rng.integers(1, 40))), n))
    found = list(pieces(sizes, groups, budget))
    assert [i for piece in found for i in range(n)[piece]] == list(range(n))
    totals = [sizes[piece].sum() for piece in found]
    assert all(total <= budget for total in totals) and all(2 * total >= budget for total in totals[:-1])
    for piece in found[
        :-1
    ]:  # a group is parted only where leaving it whole would leave half of the budget unused
        first = np.flatnonzero(groups == groups[piece.stop])[0]
        assert first >= piece.stop or 2 * sizes[piece.start : first].sum() < budget


def test_a_run_larger_than_a_piece_stands_alone() -> None:
    found = list(pieces(np.array([5, 300, 5, 5]), np.array([0, 0, 0, 1]), 100))
    assert [(piece.start, piece.stop) for piece in found] == [(0, 1), (1, 2), (2, 4)]


def test_a_common_beginning_counts_once() -> None:
    assert costs([[1, 2, 3, 4], [1, 2, 9], [1, 2]]).tolist() == [2, 1, 1]
    assert costs([[1, 2], [1, 2]]).tolist() == [1, 1] and costs([]).tolist() == []


# --- the command

SOME = ",".join(f"{layer}:{number}" for layer in range(4) for number in range(4))
LONG = ("--experts", SOME, "--neighbours", "0", "--limit", "8", "--ubatch", "16", *STEADY)  # many pieces


def test_ctrl_c_and_sigkill_lose_nothing(tmp_path: Path) -> None:
    words = ("sweep", "demo", *LONG, "-o", "a.json")
    process = start(*words, cwd=tmp_path)
    wait_until(process, grown(tmp_path / "a.json.journal", 11_500))
    done, seconds = signalled(process, signal.SIGINT)
    done.fails(130, "saved in a.json.journal; go on with --resume")
    saved = re.search(r"interrupted; 16 answers and ([\d,]+) masked prompts saved", done.err)
    assert saved and seconds < 3
    cli(*words, cwd=tmp_path).fails(2, "unfinished run", "--resume")
    size = (tmp_path / "a.json.journal").stat().st_size
    process = start(*words, "--resume", cwd=tmp_path)
    wait_until(process, grown(tmp_path / "a.json.journal", size + 500))
    assert signalled(process, signal.SIGKILL)[0].code == -signal.SIGKILL
    resumed = cli(*words, "--resume", cwd=tmp_path)
    assert resumed.code == 0 and "resuming a.json: 16 answers and " in resumed.err
    assert "more were done before" in resumed.out
    assert cli("sweep", "demo", *LONG, "-o", "b.json", "--quiet", cwd=tmp_path).code == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


COMMAND = ["sweep", "demo", "--experts", "0:1,2:3", "--limit", "4", "--bootstrap", "20", "--quiet", *STEADY]


def fail_at_call(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let the nth call of ``Model.score`` fail."""
    score, calls = safex.Model.score, iter(range(number))

    def failing(*words: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise error
        return score(*words, **options)

    monkeypatch.setattr(safex.Model, "score", failing)


@pytest.mark.parametrize(
    "error, code",
    [(DeviceError("the device is lost"), 3), (KeyboardInterrupt(), 130)],
    ids=["device", "ctrl-c"],
)
def test_what_was_saved_is_said(monkeypatch, capfd, tmp_path: Path, error: BaseException, code: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAFEX_DEBUG", raising=False)
    with monkeypatch.context() as patch:
        fail_at_call(patch, 5, error)
        assert main(COMMAND) == code
    out, err = capfd.readouterr()
    what = "the device is lost; " if code == 3 else "interrupted; "
    assert out == "" and err.startswith(f"safex-native: {what}8 answers and ") and err.count("\n") == 1
    assert "masked prompts saved in demo.sweep.json.journal; go on with --resume" in err
    assert main([*COMMAND, "--resume"]) == 0
    assert main([*COMMAND, "-o", "b.json"]) == 0
    assert Path("demo.sweep.json").read_bytes() == Path("b.json").read_bytes()


def test_ctrl_c_before_anything_is_done(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAFEX_DEBUG", raising=False)
    monkeypatch.setattr(safex.Model, "generate", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert main(COMMAND) == 130
    assert capfd.readouterr().err == "safex-native: interrupted; nothing was finished\n"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_what_was_written(planted, few, whole: bytes, tmp_path: Path, monkeypatch) -> None:
    path, append, left = tmp_path / "sweep.json", Journal.append, iter(range(12))

    def full(journal: Journal, payload: bytes) -> None:
        if next(left, None) is None:
            with monkeypatch.context() as patch:
                patch.setattr(disk, "write_at", short_write)
                append(journal, payload)
        append(journal, payload)

    def short_write(fd: int, offset: int, data: bytes) -> int:
        os.pwrite(fd, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left"):
        patch.setattr(Journal, "append", full)
        sweep(planted, EXPERTS, few, output=path, **QUICK)
    assert unfinished(path).torn_bytes == 0
    sweep(planted, EXPERTS, few, output=path, resume=True, **QUICK)
    assert path.read_bytes() == whole


def test_a_run_that_goes_on_replaces_its_own_files(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.json").write_text('["0:1"]')
    extra = ["--join", "set.json", "--csv", "tables"]
    assert main([*COMMAND, *extra]) == 0
    with monkeypatch.context() as patch:
        fail_at_call(patch, 3, DeviceError("gone"))
        assert main([*COMMAND, *extra, "--force"]) == 3
    assert main([*COMMAND, *extra]) == 2
    assert main([*COMMAND, *extra, "--resume"]) == 0
    assert "sweep" in json.loads(Path("set.swept.json").read_text())["groups"]["experts"][0]
    assert main([*COMMAND, "--resume", "--force"]) == 2
    assert "give one of them" in capfd.readouterr().err


def test_a_set_of_another_model_is_refused_before_the_run(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.json").write_text(
        json.dumps({"safex_expert_set": 1, "model": {"fingerprint": "0" * 64}, "groups": {"ctrl": ["0:1"]}})
    )
    assert main([*COMMAND, "--join", "set.json"]) == 2
    assert "join those of one model" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["set.json"]
