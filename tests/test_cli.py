"""Every command as a real process on the demo model."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cli_runner import (
    EXACT,
    PROGRAM,
    STEADY,
    assert_same_counts,
    cli,
    environment,
    grown,
    many_prompts,
    signalled,
    start,
    wait_until,
)

import safex
import safex.library
import safex.model_file
from safex.cli import COMMANDS, main

HEAVY = ("numpy", "rich", "gguf", "jinja2", "pyarrow", "sklearn", "safex._native", "safex.model")


@pytest.fixture(scope="module")
def run_of_demo(tmp_path_factory: pytest.TempPathFactory):
    """A folder, and what `profile demo` printed there."""
    folder = tmp_path_factory.mktemp("run")
    return folder, cli("profile", "demo", *STEADY, cwd=folder)


# --- help, versions, usage


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_instant_and_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys, safex.cli\n"
        f"code = safex.cli.main({words!r})\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_has_an_example_and_the_common_options(name: str) -> None:
    done = cli(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"example:\n  safex-native {name} " in done.out
    assert "--json" in done.out and "--quiet" in done.out and "--debug" in done.out


def test_import_of_the_package_is_instant_and_its_names_load_on_first_use() -> None:
    code = (
        "import sys, safex\n"
        f"heavy = sorted((set({HEAVY!r}) | {{'scipy'}}) & set(sys.modules))\n"
        "names = {name: getattr(safex, name).__module__ for name in safex.__all__ if name != '__version__'}\n"
        "print(heavy, sorted(names) == sorted(safex._HOME), dir(safex) == sorted(safex.__all__))\n"
        "print(*(names[name] for name in ('evaluate', 'Evaluation', 'sweep', 'Sweep', 'make_judge')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[] True True",
        "safex.evaluation.evaluating safex.evaluation.result safex.attribution.sweeping "
        "safex.attribution.result safex.judges",
    ]
    assert safex.make_judge("keyword").name == "keyword"
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = safex.evalute


def test_main_help_lists_the_commands() -> None:
    assert {
        "info",
        "profile",
        "identify",
        "eval",
        "judge",
        "sweep",
        "dump",
        "probe",
        "serve",
        "audit",
    } <= COMMANDS.keys()
    done = cli("--help")
    assert done.code == 0
    assert all(f"  {name:<12}{text}" in done.out for name, text in COMMANDS.items())


def test_version_says_ours_and_upstreams() -> None:
    from safex.library import UPSTREAM_ID

    done = cli("--version")
    assert done.out == f"safex-native {safex.__version__} (llama.cpp {UPSTREAM_ID})\n"


def test_the_installed_program_is_the_same() -> None:
    program = Path(sys.executable).with_name("safex-native")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == cli("--version").out


@pytest.mark.parametrize(
    "words, parts",
    [
        (
            [],
            [
                "no command given",
                "info, profile, identify, compare, audit, report, eval, judge, sweep, redundancy, dump, probe, mask, "
                "merge, verify, restore, diff, serve, trace",
            ],
        ),
        (["pofile", "demo"], ["no command 'pofile'", "did you mean profile?"]),
        (["xyzzy"], ["no command 'xyzzy'", "expected one of info, profile, identify"]),
        (["profile"], ["expected MODEL, or traces", "safex-native profile --help"]),
        (["profile", "demo", "--nope"], ["--nope", "safex-native profile --help"]),
        (["profile", "demo", "--ctx", "0"], ["--ctx", "a whole number, at least 1, found '0'"]),
        (["profile", "demo", "--threads", "x"], ["--threads", "found 'x'"]),
        (["profile", "demo", "--gpu-layers", "-2"], ["--gpu-layers", "at least -1"]),
        (["profile", "demo", "--max-new", "5"], ["--max-new needs --response"]),
        (["profile", "demo", "--phase", "response"], ["--phase response needs --response"]),
        (["profile", "demo", "--column", "text"], ["--column needs --prompts"]),
        (["profile", "demo", "-o", ""], ["names no file"]),
        (["trace", "demo"], ["expected one prompt", "--prompt-file"]),
        (["trace", "demo", "a", "--prompt-file", "b"], ["expected one prompt"]),
        (["trace", "demo", "  "], ["the prompt is empty"]),
        (["trace", "demo", "--prompt-file", "nowhere.txt"], ["nowhere.txt: can't be read", "No such file"]),
        (["trace", "demo", "a", "-o", "nowhere/x.json"], ["nowhere/x.json", "no such folder"]),
        (["audit"], ["the following arguments are required: MODEL"]),
        (["audit", "nowhere.gguf"], ["nowhere.gguf: no such model file"]),
        (["audit", "demo", "--skip", "verdict"], ["stage 'verdict' can't be skipped"]),
        (["audit", "demo", "-o", "no/such"], ["the folder above doesn't exist"]),
        (["info", "nowhere.profile.gguf"], ["nowhere.profile.gguf: no such file"]),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    words: list[str], parts: list[str], capfd: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("safex-native: ")
    assert all(part in err for part in parts), err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for words, extra in ((["--debug", "info", "x"], {}), (["info", "x", "--debug"], {})):
        done = cli(*words, cwd=tmp_path, **extra)
        assert done.code == 2 and "Traceback" in done.err and "x: no such model file" in done.err
    assert "Traceback" in cli("info", "x", cwd=tmp_path, SAFEX_DEBUG="1").err
    assert "Traceback" not in cli("info", "x", cwd=tmp_path, SAFEX_DEBUG="0").err


def test_an_unexpected_error_is_called_a_bug(monkeypatch, capfd: pytest.CaptureFixture[str]) -> None:
    import safex.cli.info

    def broken(args: object) -> int:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.delenv("SAFEX_DEBUG", raising=False)
    monkeypatch.setattr(safex.cli.info, "run", broken)
    assert main(["info", "demo"]) == 3
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "this is a bug in safex-native: ZeroDivisionError: one two; run again with --debug" in err


# --- info


def test_info_of_a_model() -> None:
    done = cli("info", "demo", *STEADY)
    assert done.code == 0
    facts = cli("info", "demo", "--json", "--quiet", *STEADY).json
    numbers = (f"{facts['parameters']:,}", facts["fingerprint"], f"{facts['context_trained']} tokens")
    for part in (*numbers, "qwen3moe", "Q8_0", "0-3 (4 of 4 blocks)", "yes", "Toy Mixture-of-Experts"):
        assert part in done.out, part
    assert "loading" in done.err


def test_info_as_json_has_everything() -> None:
    done = cli("info", "demo", "--json", *STEADY)
    facts = done.json
    assert (facts["kind"], facts["layers"], facts["experts"], facts["top_k"]) == (
        "model",
        [0, 1, 2, 3],
        32,
        4,
    )
    assert facts["chat_template"] and facts["devices"] and len(facts["fingerprint"]) == 64
    assert facts["metadata"]["general.architecture"] == facts["architecture"] == "qwen3moe"
    assert Path(facts["llama_library"]).parent == safex.library.folder()
    assert (facts["upstream_id"], facts["tool_version"]) == (safex.library.UPSTREAM_ID, safex.__version__)
    assert facts["bytes"] == Path(facts["path"]).stat().st_size
    assert "experts per layer" in done.err


def test_info_tells_groups_dense_layers_and_shared_experts(tiny_path) -> None:
    facts = cli("info", tiny_path("deepseek2"), "--json", "--quiet", *STEADY).json
    assert (facts["layers"], facts["shared_experts"], facts["gating"]) == ([1, 2, 3], 1, "sigmoid")
    assert (facts["groups"], facts["groups_used"]) == (4, 2)
    assert cli("info", tiny_path("qwen2moe"), "--json", "--quiet", *STEADY).json["shared_experts"] == 1
    assert cli("info", tiny_path("qwen3moe"), "--json", "--quiet", *STEADY).json["shared_experts"] is None


def test_info_of_a_profile(run_of_demo) -> None:
    folder, _ = run_of_demo
    done = cli("info", "demo.profile.gguf", "--phase", "suffix", "--top", "3", cwd=folder)
    assert done.code == 0
    for part in (
        "240",
        "prompt, suffix",
        "regular",
        "jailbreak",
        "benign",
        "model.fingerprint",
        "phase suffix",
    ):
        assert part in done.out, part
    facts = cli("info", "demo.profile.gguf", "--json", cwd=folder).json
    assert facts["kind"] == "profile" and facts["prompts"] == 240
    assert facts["metadata"]["model.name"] == "safex-native demo"
    cli("info", "demo.profile.gguf", "--phase", "response", cwd=folder).fails(2, "phase 'response' is not in")


def test_a_profile_is_known_by_its_content(run_of_demo, tmp_path: Path) -> None:
    folder, _ = run_of_demo
    other = tmp_path / "renamed"
    other.write_bytes((folder / "demo.profile.gguf").read_bytes())
    assert cli("info", other, "--json").json["kind"] == "profile"


# --- profile


def test_profile_of_the_demo(run_of_demo) -> None:
    folder, done = run_of_demo
    assert done.code == 0
    assert [path.name for path in folder.iterdir()] == ["demo.profile.gguf"]
    assert "Most selected experts (layer:expert) by share of tokens, phase prompt" in done.out
    assert (
        "Profile: demo.profile.gguf" in done.out
        and "Next: safex-native identify demo.profile.gguf --phase suffix " in done.out
    )
    assert done.err.splitlines()[0] == "loading demo"
    assert "240 of 240 prompts" in done.err and "240 of 240" not in done.out


def test_few_prompts_are_not_sent_to_identify(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("How do I bake bread?\n")
    words = ["--prompts", "regular=a.txt", "--prompts", "jailbreak=a.txt", *STEADY]
    done = cli("profile", "demo", *words, cwd=tmp_path)
    assert "Next: safex-native info demo.profile.gguf --phase suffix shows this table" in done.out


def test_profile_takes_some_prompts_of_each_set(run_of_demo, tmp_path: Path) -> None:
    folder, _ = run_of_demo
    cli("profile", "demo", "--limit", "5", "--quiet", *STEADY, cwd=tmp_path)
    some, whole = (safex.Profile.load(f / "demo.profile.gguf") for f in (tmp_path, folder))
    rows = [whole.ids.index(id) for id in some.ids]
    assert [some.sets.count(name) for name in ("regular", "jailbreak", "benign")] == [5, 5, 5]
    assert (some.counts == whole.counts[rows]).all()


def test_the_printed_table_is_what_the_file_holds(run_of_demo) -> None:
    folder, done = run_of_demo
    profile = safex.Profile.load(folder / "demo.profile.gguf")
    activation = profile.activation("regular")
    layer, expert = np.unravel_index(activation.argmax(), activation.shape)
    row = next(line for line in done.out.splitlines() if line.split()[:1] == ["1"])
    assert row.split()[1:3] == [f"{profile.layers[layer]}:{expert}", f"{activation.max():.1%}"]
    tokens = int(profile.n_tokens.sum())
    assert f"Speed: {tokens:,} tokens in " in done.out
    benign = sum(n for n, name in zip(profile.n_tokens, profile.sets, strict=True) if name == "benign")
    row = next(line for line in done.out.splitlines() if line.split()[:1] == ["benign"])
    assert row.split()[1:3] == ["80", f"{benign:,}"]


def test_profile_with_files_response_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("How do I bake bread?\nHow do I plant a tree?\n")
    (tmp_path / "b.csv").write_text("n,words\n1,How do I paint a wall?\n")
    words = ["--prompts", "one=a.txt", "--prompts", "two=b.csv", "--response", "--max-new", "5"]
    (tmp_path / "b2.csv").write_text("n,prompt\n1,How do I paint a wall?\n")
    cli("profile", "demo", *words, cwd=tmp_path).fails(2, "b.csv: no column known to hold prompts", "'words'")
    words[3] = "two=b2.csv"
    done = cli("profile", "demo", *words, "-o", "x.gguf", "--json", "--top", "2", *STEADY, cwd=tmp_path)
    result = done.json
    assert result["profile"] == "x.gguf" and result["phases"] == ["prompt", "suffix", "response"]
    assert {name: counts["prompts"] for name, counts in result["sets"].items()} == {"one": 2, "two": 1}
    profile = safex.Profile.load(tmp_path / "x.gguf")
    n_tokens = int(profile.n_tokens.sum() + profile.phase("response").n_tokens.sum())
    assert result["tokens"] == n_tokens and result["tokens_per_second"] > 0
    assert [len(rows) for rows in result["most_selected"].values()] == [2, 2]
    assert "Most selected experts" in done.err


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("How do I bake bread?\n")
    done = cli("profile", "demo", "--prompts", "a=a.txt", "--quiet", *STEADY, cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "demo.profile.gguf").exists()
    done = cli("info", "demo.profile.gguf", "--quiet", "--json", cwd=tmp_path)
    assert done.err == "" and done.json["prompts"] == 1


def test_the_default_output_has_no_part_number(tmp_path: Path) -> None:
    shutil.copy(safex.model_file.resolve("demo"), tmp_path / "big-00001-of-00001.gguf")
    (tmp_path / "a.txt").write_text("How do I bake bread?\n")
    words = ["--prompts", "a=a.txt", "--quiet", *STEADY]
    assert cli("profile", "big-00001-of-00001.gguf", *words, cwd=tmp_path).code == 0
    assert (tmp_path / "big.profile.gguf").exists()


def test_a_column_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("n,words\n1,How do I paint a wall?\n")
    words = ["--prompts", "a=b.csv", "--column", "words", "--quiet", *STEADY]
    assert cli("profile", "demo", *words, cwd=tmp_path).code == 0


def test_a_model_without_a_chat_template_is_named(tmp_path: Path, monkeypatch) -> None:
    import tiny_models

    monkeypatch.setattr(tiny_models.gguf.GGUFWriter, "add_chat_template", lambda *_: None)
    model = tiny_models.write_tiny(tmp_path / "plain.gguf", "qwen3moe")
    (tmp_path / "a.txt").write_text("the other hand\n")
    done = cli("profile", model, "--prompts", "a=a.txt", *STEADY, cwd=tmp_path)
    assert done.code == 0 and "note: this model has no chat template" in done.err
    assert (tmp_path / "plain.profile.gguf").exists()
    done = cli("info", model, *STEADY)
    assert "NONE" in done.out and "no chat template" in done.err
    assert cli("info", model, "--json", "--quiet", *STEADY).json["chat_template"] is None


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("How do I bake bread?\n")
    leader, follower = pty.openpty()
    words = ["profile", "demo", "--prompts", "a=a.txt", *STEADY]
    done = subprocess.Popen(
        [*PROGRAM, *words],
        cwd=tmp_path,
        stderr=follower,
        stdout=subprocess.PIPE,
        env=environment(TERM="xterm"),
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    out, _ = done.communicate(timeout=60)
    os.close(leader)
    assert done.returncode == 0 and b"\x1b[" in shown and b"1 of 1 prompts" in shown
    assert shown.rstrip().endswith(b"\x1b[2K") or b"\x1b[?25h" in shown  # the cursor is back
    assert b"\x1b[" not in out and b"Most selected" in out


# --- interruption


def test_ctrl_c_saves_and_resume_gives_the_same_profile(tmp_path: Path, tiny_path) -> None:
    many_prompts(tmp_path / "many.txt")
    words = ["profile", tiny_path("qwen3moe"), "--prompts", "benign=many.txt", *STEADY, *EXACT]
    process = start(*words, "-o", "a.profile.gguf", cwd=tmp_path)
    journal = tmp_path / "a.profile.gguf.journal"
    wait_until(process, grown(journal, 150_000))
    done, seconds = signalled(process, signal.SIGINT)
    match = re.search(r"interrupted; (\d+) of 400 prompts saved in a\.profile\.gguf\.journal", done.err)
    done.fails(130, "go on with --resume")
    assert seconds < 1.5 and match and not (tmp_path / "a.profile.gguf").exists()
    cli(*words, "-o", "a.profile.gguf", cwd=tmp_path).fails(2, "unfinished run", "--resume")
    resumed = cli(*words, "-o", "a.profile.gguf", "--resume", "--json", cwd=tmp_path)
    saved = int(match[1])
    assert resumed.json["resumed_prompts"] == saved > 0
    assert f"resuming a.profile.gguf: {saved:,} of 400 prompts are done" in resumed.err
    assert not journal.exists()
    whole = cli(*words, "-o", "b.profile.gguf", "--quiet", cwd=tmp_path)
    assert whole.code == 0
    assert_same_counts(tmp_path / "a.profile.gguf", tmp_path / "b.profile.gguf")
    n_tokens = sum(counts["prompt"] for counts in resumed.json["sets"].values())
    assert 0 < resumed.json["tokens"] < n_tokens


def test_ctrl_c_before_the_first_prompt_leaves_nothing(tmp_path: Path, monkeypatch, capfd) -> None:
    from safex.cli.progress import LineProgress

    monkeypatch.delenv("SAFEX_DEBUG", raising=False)
    monkeypatch.setattr(LineProgress, "running", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "demo", *STEADY]) == 130
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1] == "safex-native: interrupted; no prompt was finished"
    assert list(tmp_path.iterdir()) == []


def test_threads_of_python_go_on_while_a_profile_runs() -> None:
    prompts = [f"How do I bake bread number {i} with flour, water and salt?" for i in range(600)]
    ticks, stop, during = [0], threading.Event(), []

    def count() -> None:
        while not stop.wait(0.001):
            ticks[0] += 1

    def watch(done: int, total: int, tokens: int) -> None:
        during.append((time.monotonic(), ticks[0]))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        with safex.Model("demo", n_threads=1) as model:
            model.profile(prompts, progress=watch)
    finally:
        stop.set()
        counter.join()
    seconds, ticked = during[-1][0] - during[0][0], during[-1][1] - during[0][1]
    assert ticked > 20 * seconds, f"{ticked} ticks of a millisecond in {seconds:.2f} s"


# --- trace


def test_trace_prints_json_and_writes_a_file(tmp_path: Path) -> None:
    words = ["trace", "demo", "How do I bake bread?", "--max-new", "6", *STEADY]
    done = cli(*words, "--json", "-o", "t.json", cwd=tmp_path)
    assert done.json == json.loads((tmp_path / "t.json").read_text())
    assert list(done.json)[:3] == ["model", "prompt", "input_tokens"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    shown = cli(*words, cwd=tmp_path)
    assert (
        f"Answer: {done.json['output_text']}" in shown.out and "Most used experts of the output" in shown.out
    )


def test_trace_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("How do I bake\nbread?\n")
    words = ["--raw", "--max-new", "0", "--json", "--quiet", *STEADY]
    result = cli("trace", "demo", "--prompt-file", "p.txt", *words, cwd=tmp_path).json
    assert result["prompt"] == "How do I bake\nbread?" and result["output_tokens"] == []


# --- streams


def test_a_reader_that_goes_away_is_no_error(run_of_demo) -> None:
    folder, _ = run_of_demo
    reader, writer = os.pipe()
    os.close(reader)
    words = [*PROGRAM, "info", "demo.profile.gguf", "--json", "--quiet"]
    done = subprocess.run(words, cwd=folder, stdout=writer, stderr=subprocess.PIPE, env=environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_for_a_reader_that_goes_away() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "--help"], stdout=writer, stderr=subprocess.PIPE, env=environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_progress_that_nobody_reads_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("How do I bake bread?\n")
    reader, writer = os.pipe()
    os.close(reader)
    words = [*PROGRAM, "profile", "demo", "--prompts", "a=a.txt", *STEADY]
    done = subprocess.run(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=writer, env=environment())
    os.close(writer)
    assert done.returncode == 0 and b"Most selected" in done.stdout


def test_full_standard_output_is_said(run_of_demo) -> None:
    folder, _ = run_of_demo
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "info", "demo.profile.gguf"],
            cwd=folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    assert done.returncode == 3
    assert done.stderr == "safex-native: standard output can't be written: No space left on device\n"


def test_an_ascii_terminal_gets_ascii(run_of_demo) -> None:
    folder, _ = run_of_demo
    done = cli("info", "demo.profile.gguf", cwd=folder, PYTHONIOENCODING="ascii")
    assert done.code == 0 and done.out.isascii()
