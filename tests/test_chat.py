"""What the model is shown: settings, the date, thinking, roles, contents, and where the user's text ends."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from cli_runner import environment

import safex
from safex import chat as chat_module
from safex.attribution.starts import Starts
from safex.auditing.stages import STAGES
from safex.chat import ChatTemplate
from safex.chat_settings import ChatSettings, read_system
from safex.cli import main
from safex.errors import InputError
from safex.prompts import Prompt
from safex.serve_gate import RefusedError, prepare

CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
SWITCHED = (
    CHATML + "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{%- endif %}"
)
NO_SYSTEM = (
    "{%- if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace("in messages -%}", "in messages if m.role != 'system' -%}")
BROKEN = "{% for m in messages %}{{ m.content }}"
REFUSES_ALL = "{{ raise_exception('never') }}"
STAGE_NAMES = [stage.name for stage in STAGES]
HI = [{"role": "user", "content": "Hi"}]


def chat(source: str, **settings: Any) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", ChatSettings.of(**settings))


# --- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"system": 5}, "system is int"),
        ({"template_kwargs": [1]}, "template_kwargs is list, expected an object"),
        ({"template_kwargs": {"messages": []}}, "'messages' is filled"),
        ({"template_kwargs": {"add_generation_prompt": False}}, "'add_generation_prompt' is filled"),
        ({"template_kwargs": {"bos_token": ""}}, "'bos_token' is filled"),
        ({"template_kwargs": {"a b": 1}}, "can't be the name"),
        ({"template_kwargs": {"a": {1, 2}}}, "not JSON"),
        ({"template_kwargs": {"a": float("nan")}}, "not JSON"),
        ({"template_kwargs": {"tools": "x"}}, "must be a list of objects"),
        ({"thinking": "maybe"}, "thinking is 'maybe'"),
        ({"date": "2026-2-1"}, "expected a day as YYYY-MM-DD"),
        ({"date": "2026-02-30"}, "expected a day as YYYY-MM-DD"),
        ({"date": 5}, "expected a day as YYYY-MM-DD"),
    ],
)
def test_a_setting_that_can_not_be_is_refused_before_the_model_is_loaded(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        safex.Model("no-such-model.gguf", **settings)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--template-kwargs", "{"], "is no JSON"),
        (["--template-kwargs", "[]"], "expected an object"),
        (["--template-kwargs", '{"a": NaN}'], "NaN is no JSON number"),
        (["--template-kwargs", '{"a": 1, "a": 2}'], "occurs twice"),
        (["--template-kwargs", '{"messages": []}'], "'messages' is filled"),
        (["--system", "@no-such-file"], "no-such-file: no such file"),
        (["--system", "@"], "names no file"),
        (["--date", "yesterday"], "YYYY-MM-DD"),
        (["--thinking", "maybe"], "invalid choice"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "demo", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err and len(err.splitlines()) == 1


def test_every_command_that_shows_prompts_takes_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        "profile",
        "dump",
        "eval",
        "sweep",
        "redundancy",
        "trace",
        "audit",
        "serve",
        "judge",
        "info",
    ):
        assert main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert all(f"--{name}" in out for name in ("system", "template-kwargs", "thinking", "date")), command


def test_a_system_message_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "system.txt"
    path.write_bytes("\ufeffBe brief.\n\n".encode())
    assert read_system(f"@{path}") == "Be brief.\n"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_system(f"@{path}")
    path.write_bytes(b"\n")
    with pytest.raises(InputError, match="is empty"):
        read_system(f"@{path}")


# --- system messages


def test_the_system_message_stands_before_every_prompt() -> None:
    assert chat(CHATML, system="Be brief.").render(HI) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<|im_start|>system\n<|im_end|>" in chat(CHATML, system="").render(HI)
    assert chat("", system="Be brief.").render(HI) == "Be brief.\nHi"


def test_two_system_messages_are_refused_unless_the_conversations_own_is_to_be_kept() -> None:
    own = [{"role": "system", "content": "Own."}, *HI]
    with pytest.raises(InputError, match="a system message of its own"):
        chat(CHATML, system="Set.").render(own)
    assert "Set." not in chat(CHATML, system="Set.").render(own, keep_system=True)


@pytest.mark.parametrize(
    ("source", "said"),
    [(NO_SYSTEM, "no message of role 'system' .no system here."), (DROPS_SYSTEM, "leaves messages")],
)
def test_a_template_without_a_system_role_says_so(source: str, said: str) -> None:
    for shown, messages in (
        (chat(source, system="Be brief."), HI),
        (chat(source), [{"role": "system", "content": "Own."}, *HI]),
    ):
        with pytest.raises(InputError, match=said):
            shown.render(messages)
    assert chat(source).render(HI).endswith("assistant\n")


# --- thinking


def test_thinking_sets_what_the_template_reads() -> None:
    off = chat(SWITCHED, thinking="off")
    assert off.render(HI).endswith("<think></think>")
    assert off.notes() == ["thinking off: the chat template gets enable_thinking = False"]
    assert not chat(SWITCHED, thinking="on").render(HI).endswith("<think></think>")
    assert chat(SWITCHED, template_kwargs={"enable_thinking": False}).render(HI) == off.render(HI)


def test_thinking_that_a_template_does_not_know_is_a_note() -> None:
    for source in (CHATML, "{# enable_thinking #}" + CHATML, ""):
        (note,) = chat(source, thinking="off").notes()
        assert "no effect" in note
    unused = "{%- if false and enable_thinking %}x{% endif %}" + CHATML
    assert "no effect" in chat(unused, thinking="on").notes()[0]


def test_thinking_and_a_variable_that_contradicts_it_are_refused() -> None:
    with pytest.raises(InputError, match="enable_thinking = False, and template_kwargs sets it to True"):
        chat(SWITCHED, thinking="off", template_kwargs={"enable_thinking": True}).render(HI)
    assert chat(SWITCHED, thinking="off", template_kwargs={"enable_thinking": False}).render(HI)


@pytest.mark.parametrize(
    ("named", "off"), [("'high', 'low', 'no_think'", "no_think"), ("'medium'", "low"), ("'none'", "none")]
)
def test_effort_is_lowered_to_a_value_that_the_template_names(named: str, off: str) -> None:
    source = (
        "{% set known = [" + named + "] %}{{ 'Effort: ' ~ (reasoning_effort | default('medium')) }}" + CHATML
    )
    shown = chat(source, thinking="off")
    assert shown.render(HI).startswith(f"Effort: {off}")
    assert ("may still think" in shown.notes()[0]) == (off == "low")


def test_thinking_can_be_a_word_in_the_system_message() -> None:
    source = (
        "{%- set ns = namespace(on=true) %}{%- for m in messages if '/no_think' in m.content %}"
        "{%- set ns.on = false %}{% endfor %}" + CHATML + "{{ '<think>' if ns.on else '<think></think>' }}"
    )
    assert chat(source).render(HI).endswith("<think>")
    assert chat(source, thinking="off", system="Be brief.").render(HI).endswith("<think></think>")


def test_a_variable_that_the_template_never_reads_is_a_note() -> None:
    (note,) = chat(SWITCHED, template_kwargs={"enable_thinkin": False}).notes()
    assert "reads no 'enable_thinkin'" in note and "enable_thinking" in note.partition("variables in it")[2]


# --- the date


def test_the_date_is_that_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat(DATED, date="2026-03-04").render(HI).startswith("Today: 04 Mar 2026\n")
    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 6))
    opened = chat(DATED)
    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 7))
    assert opened.render(HI).startswith("Today: 06 May 2026\n")


def test_the_date_is_part_of_the_hash_only_where_it_is_shown() -> None:
    def hashes(source: str, **more: Any) -> list[str]:
        return [chat(source, date=day, **more).hash for day in ("2026-03-04", "2026-03-05")]

    assert len(set(hashes(DATED))) == 2
    assert len(set(hashes(CHATML))) == 1
    unused = "{% if date_string is not defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}"
    assert len(set(hashes(unused + CHATML, template_kwargs={"date_string": "1 May"}))) == 1
    only_without_system = DATED.replace(
        "{{ 'Today", "{% if messages[0].role != 'system' %}{{ 'Today", 1
    ).replace("'\n' }}", "'\n' }}{% endif %}", 1)
    assert len(set(hashes(only_without_system))) == 2
    assert len(set(hashes(only_without_system, system="Be brief."))) == 1


def test_the_hash_is_the_old_one_where_nothing_is_set_and_no_date_shown() -> None:
    import hashlib

    plain = chat(CHATML).hash
    assert plain == hashlib.sha256(CHATML.encode()).hexdigest()
    others = [
        chat(CHATML, system="x").hash,
        chat(CHATML, system="").hash,
        chat(SWITCHED, thinking="off").hash,
        chat(SWITCHED, template_kwargs={"enable_thinking": True}).hash,
        chat(SWITCHED).hash,
        plain,
    ]
    assert len(set(others)) == len(others)
    assert (
        chat(SWITCHED, thinking="off").hash == chat(SWITCHED, template_kwargs={"enable_thinking": False}).hash
    )


# --- templates that fail, and the environment of transformers


@pytest.mark.parametrize(("source", "said"), [(BROKEN, "does not compile"), (REFUSES_ALL, "never")])
def test_a_template_that_fails_does_so_when_it_is_rendered(source: str, said: str) -> None:
    failing = chat(source)
    assert failing and failing.hash == chat(source).hash and not failing.uses_date
    with pytest.raises(InputError, match=said):
        failing.render(HI)
    with pytest.raises(InputError, match=said):
        failing.split(HI)


def test_a_template_that_needs_tools_says_how_to_give_them() -> None:
    needy = CHATML + "{%- for tool in tools %}{{ tool.name }}{% endfor %}"
    with pytest.raises(InputError, match="template_kwargs can set what it lacks"):
        chat(needy).render(HI)
    assert chat(needy, template_kwargs={"tools": [{"name": "oven"}]}).render(HI).endswith("oven")


def test_a_template_that_leaves_the_users_text_out_is_refused() -> None:
    with pytest.raises(InputError, match="does not show the user's text"):
        chat("{{ 'Answer:' }}").split(HI)


def test_json_is_written_as_transformers_writes_it() -> None:
    value = {"z": "<b> & 'ü'", "a": [1, 2]}
    source = (
        "{{ v | tojson }}|{{ v | tojson(indent=1, sort_keys=true) }}|"
        "{{ v | tojson(ensure_ascii=true, separators=(',', ':')) }}"
    )
    shown = chat(source, template_kwargs={"v": value}).render(HI)
    assert shown == "|".join(
        (
            json.dumps(value, ensure_ascii=False),
            json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True),
            json.dumps(value, separators=(",", ":")),
        )
    )


def test_generation_blocks_loop_controls_and_absent_tools() -> None:
    source = (
        "{%- for m in messages -%}{%- if loop.index > 1 %}{% break %}{% endif %}"
        "{%- generation -%}[{{ m.content }}]{%- endgeneration -%}{%- endfor -%}"
        "{{ tools is none }} {{ documents is none }} {{ other is defined }} {{ pad_token is defined }}"
    )
    assert chat(source).render([*HI, *HI]) == "[Hi]True True False False"
    assert ChatTemplate("{{ pad_token }}", special={"pad_token": "<pad>"}).render(HI) == "<pad>"
    with pytest.raises(InputError, match="underscore"):
        chat("{% set ns = namespace(_a=1) %}").render(HI)


# --- contents


PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
TAKES_PARTS = (
    "{%- for m in messages -%}{{ m.role + ':' }}{%- if m.content is string %}{{ m.content }}{% else %}"
    "{%- for p in m.content %}{{ '<' + p.text + '>' }}{% endfor %}{% endif %}{{ '\n' }}{%- endfor %}{{ 'A:' }}"
)
ONLY_PARTS = TAKES_PARTS.replace("{%- if m.content is string %}{{ m.content }}{% else %}", "").replace(
    "{% endfor %}{% endif %}", "{% endfor %}"
)
PRINTS_LISTS = "{%- for m in messages -%}{{ m.role }}:{{ m.content }};{% endfor %}A:"


@pytest.mark.parametrize(
    ("source", "content", "shown"),
    [
        (TAKES_PARTS, PARTS, "user:<Hel><lo>\nA:"),
        (TAKES_PARTS, "Hello", "user:Hello\nA:"),
        (ONLY_PARTS, "Hello", "user:<Hello>\nA:"),
        (CHATML, PARTS, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
        (PRINTS_LISTS, PARTS, "user:Hello;A:"),
        ("", PARTS, "Hello"),
    ],
)
def test_contents_are_shown_in_the_form_that_the_template_takes(
    source: str, content: Any, shown: str
) -> None:
    assert chat(source).render([{"role": "user", "content": content}]) == shown


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "takes text only"),
        ({"role": "user", "content": [{"text": "x"}]}, "has no type"),
        ({"role": "user", "content": 5}, "its content is int"),
        ({"content": "x"}, "is no object with a role"),
        ("x", "is no object with a role"),
    ],
)
def test_what_is_no_message_is_refused(message: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        chat(CHATML).render([message])


CALLS = (
    "{%- for m in messages -%}{{ m.role + ':' + m.content }}{%- for c in m.tool_calls or [] -%}"
    "{{ '<call>' + c.function.name }}{%- for k, v in c.function.arguments.items() %}{{ ' ' ~ k ~ '=' ~ v }}{% endfor %}"
    "{%- endfor -%}{{ '\n' }}{%- endfor -%}{{ 'A:' }}"
)


@pytest.mark.parametrize("arguments", ['{"city": "Köln"}', {"city": "Köln"}])
@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}])
def test_a_tool_call_without_content_is_shown(arguments: Any, content: dict[str, Any]) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    turn = {"role": "assistant", **content, "tool_calls": [call]}
    shown = chat(CALLS).render([*HI, turn, {"role": "tool", "content": "warm"}])
    assert shown == "user:Hi\nassistant:<call>weather city=Köln\ntool:warm\nA:"


def test_a_prompt_carries_parts_and_tool_calls(demo: safex.Model) -> None:
    turns = (("user", PARTS), {"role": "assistant", "content": "Yes?"}, ("user", "And?"))
    prompts = safex.PromptSet([Prompt("And?", "regular", "0", messages=turns)])
    (response,) = demo.generate(prompts, max_new=1)
    assert "user\nHello<|im_end|>" in demo.detokenize(response.prompt_tokens, special=True)


# --- where the user's text ends


@pytest.mark.parametrize(
    ("source", "text", "suffix"),
    [
        (CHATML, "assistant", "<|im_end|>\n<|im_start|>assistant\n"),
        ("Q: {{ messages[-1].content | trim }}\nA:", " spaced ", "\nA:"),
        ("Q: {{ messages[-1].content }} Say it: {{ messages[-1].content }}!\nA:", "hello", "!\nA:"),
        (
            "{{ messages[-1].content }}{{ '\nToday is ' + strftime_now('%Y') }}\nA:",
            "2026",
            "\nToday is 2026\nA:",
        ),
        (
            "{{ messages[-1].content }}{{ '/no' if not messages[-1].content.endswith('/no') }}\nA:",
            "x/no",
            "\nA:",
        ),
        (
            "{{ messages[-1].content }}{{ '/no' if not messages[-1].content.endswith('/no') }}\nA:",
            "x",
            "/no\nA:",
        ),
        ("{{ messages[-1].content }} ({{ messages[-1].content | length }})\nA:", "abc", " (3)\nA:"),
        ("{{ messages[-1].content | replace('/t', '') }}\nA:", "go /t", "\nA:"),
        ("{{ messages[-1].content | upper }}\nA: SAFEXPROBE", "go", None),
    ],
)
def test_the_suffix_is_what_follows_the_text(source: str, text: str, suffix: str | None) -> None:
    shown = chat(source, date="2026-03-04")
    if suffix is None:
        with pytest.raises(InputError, match="does not show"):
            shown.split([{"role": "user", "content": text}])
    else:
        assert shown.split([{"role": "user", "content": text}])[1] == suffix


# --- through a model


@pytest.fixture
def tiny_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A tiny model with a chat template of one's own."""

    def write(template: str) -> Path:
        monkeypatch.setattr(tiny_models, "CHAT_TEMPLATE", template)
        return tiny_models.write_tiny(tmp_path / "tiny.gguf", "qwen3moe")

    return write


def test_a_model_with_a_broken_template_is_described_but_shown_nothing(
    tiny_with: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_with(BROKEN)
    assert main(["info", str(path), "--json", "--threads", "1"]) == 0
    assert "does not compile" in json.loads(capsys.readouterr().out)["chat"]["problem"]
    assert main(["mask", str(path), "1:1", "-o", str(tmp_path / "masked.gguf")]) == 0
    assert main(["verify", str(path), str(tmp_path / "masked.gguf")]) == 0
    capsys.readouterr()
    assert (
        main(["profile", str(path), "-o", str(tmp_path / "p.profile.gguf"), "--threads", "1", "--quiet"]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not compile" in line
    with safex.Model(path, n_threads=1) as model:
        assert model.profile([[1, 2, 3]]).counts.shape[0] == 1  # raw tokens need no template


def test_results_say_what_the_model_was_shown(tiny_with: Callable[[str], Path]) -> None:
    path = tiny_with(DATED.replace("{{ 'Today", "{% if x is defined %}{{ x }}{% endif %}{{ 'Today", 1))
    settings = {"system": "Be brief.", "template_kwargs": {"x": "y"}, "thinking": True, "date": "2026-03-04"}
    with safex.Model(path, n_threads=1, **settings) as model:
        meta = model.profile(["Hi"]).meta
    assert meta["chat.system"] == "Be brief."
    assert meta["chat.template_kwargs"] == '{"x":"y"}'
    assert meta["chat.thinking"] == "on"
    assert meta["chat.date"] == "2026-03-04"
    with safex.Model(path, n_threads=1) as plain:
        assert not {"chat.system", "chat.template_kwargs", "chat.thinking"} & set(plain.provenance())
        assert plain.provenance()["chat.date"] == datetime.date.today().isoformat()
        assert plain.provenance()["template_hash"] != meta["template_hash"]


class _StoppedError(Exception):
    pass


def _stop(*_: object) -> None:
    raise _StoppedError


@pytest.mark.parametrize("command", ["profile", "dump", "generate"])
def test_a_run_that_goes_on_shows_the_date_of_the_day_on_which_it_began(
    command: str, tiny_with: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tiny_with(DATED), tmp_path / "out"
    prompts = safex.PromptSet.of(["one", "two", "three"], set="regular")

    def run(model: safex.Model, progress: Any = None, resume: bool = False) -> Any:
        if command == "profile":
            return model.profile(prompts, output=output, resume=resume, progress=progress).meta
        if command == "dump":
            return model.dump(["1:1"], prompts, output=output, resume=resume, progress=progress).meta
        found = safex.evaluate(
            model, prompts, max_new=2, output=output, resume=resume, progress=progress, utility=False
        )
        return found.model

    def stop(*args: Any) -> None:
        if args[0 if command != "generate" else 1] > 0:
            raise _StoppedError

    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 6))
    with safex.Model(path, n_threads=1, n_ubatch=16) as model, pytest.raises(_StoppedError):
        run(model, stop)
    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 7))
    with (
        safex.Model(path, n_threads=1, n_ubatch=16, date="2026-05-07") as other,
        pytest.raises(InputError, match=r"chat\.date"),
    ):
        run(other, resume=True)
    with safex.Model(path, n_threads=1, n_ubatch=16) as model:
        meta = run(model, resume=True)
        assert meta["chat.date"] == "2026-05-06"
        assert "06 May 2026" in model.chat.render(HI)


def test_profiles_of_other_prompts_are_no_shards_of_one_run(tiny_with: Callable[[str], Path]) -> None:
    path = tiny_with(CHATML)
    profiles = []
    for number, system in enumerate((None, "Be brief.")):
        with safex.Model(path, n_threads=1, system=system) as model:
            profiles.append(model.profile(safex.PromptSet.of([f"prompt {number}"], set=f"s{number}")))
    with pytest.raises(InputError, match=r"differ in chat\.system"):
        safex.Profile.merge(profiles)


# --- the other commands


def test_a_sweep_that_goes_on_shows_the_date_of_the_day_on_which_it_began(
    tiny_with: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tiny_with(DATED), tmp_path / "out.sweep.json"
    prompts = safex.PromptSet.of(["one", "two"], set="regular")
    starts = Starts(((5,),), ((6,),), {}, {})

    def run(model: safex.Model, **more: Any) -> Any:
        found = safex.sweep(model, ["1:1"], prompts, starts=starts, bootstrap=10, output=output, **more)
        return found.model["chat.date"]

    def stop(what: str, done: int, total: int) -> None:
        if done:
            raise _StoppedError

    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 6))
    with safex.Model(path, n_threads=1) as model, pytest.raises(_StoppedError):
        run(model, progress=stop)
    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 7))
    with (
        safex.Model(path, n_threads=1, date="2026-05-07") as other,
        pytest.raises(InputError, match=r"chat\.date"),
    ):
        run(other, resume=True)
    with safex.Model(path, n_threads=1) as model:
        assert run(model, resume=True) == "2026-05-06"


def test_an_audit_that_goes_on_asks_the_same(
    tiny_with: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tiny_with(DATED), tmp_path / "tiny.audit"
    skip = ["identify", "sweep", "probe", "evaluate", "redundancy", "report"]

    def run(**settings: Any) -> dict[str, Any]:
        with safex.Model(path, n_threads=1, **settings) as model:
            found = safex.audit(
                model, folder, skip=[name for name in skip if name in STAGE_NAMES], limit=4, max_new=2
            )
        parameters: dict[str, Any] = found.manifest["parameters"]
        return parameters

    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 6))
    assert run()["chat.date"] == "2026-05-06"
    monkeypatch.setattr(chat_module, "today", lambda: datetime.date(2026, 5, 7))
    assert run()["chat.date"] == "2026-05-06"
    for settings, name in (({"date": "2026-05-07"}, "date"), ({"system": "x"}, "system")):
        with pytest.raises(InputError, match=rf"chat\.{name}"):
            run(**settings)


def test_the_logit_judge_sees_the_prompts_that_were_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--limit", "2", "--max-new", "32", "--threads", "1", "--quiet"]
    assert main(["eval", "demo", "--system", "Be brief.", *words]) == 0
    (header, *_) = (tmp_path / "demo.responses.jsonl").read_text().splitlines()
    assert json.loads(header)["model"]["chat.system"] == "Be brief."
    judge = [
        "judge",
        "demo.responses.jsonl",
        "--judge",
        "logit",
        "--model",
        "demo",
        "--threads",
        "1",
        "--quiet",
    ]
    assert main([*judge, "-o", "judged.jsonl"]) == 0
    capsys.readouterr()
    assert main([*judge, "-o", "other.jsonl", "--system", "Be long."]) == 2
    assert "would be shown other prompts" in capsys.readouterr().err


def test_the_report_says_what_the_model_was_shown(
    tiny_with: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, profile, page = tiny_with(SWITCHED), tmp_path / "p.profile.gguf", tmp_path / "p.html"
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    words = [
        "--prompts",
        f"regular={tmp_path / 'prompts.txt'}",
        "--thinking",
        "off",
        "--system",
        "Be <brief>.",
    ]
    assert main(["profile", str(path), "-o", str(profile), "--threads", "1", *words]) == 0
    assert "gets enable_thinking = False" in capsys.readouterr().err
    assert main(["report", str(profile), "-o", str(page), "--quiet"]) == 0
    text = page.read_text()
    assert "system message “Be &lt;brief&gt;.”, thinking off; template hash" in text
    assert "--system" in text and "--thinking off" in text


def test_a_trace_says_what_the_model_was_shown(
    tiny_with: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tiny_with(SWITCHED), tmp_path / "trace.json"
    words = ["trace", str(path), "Hi", "--max-new", "1", "--threads", "1", "--quiet", "--thinking", "off"]
    assert main([*words, "-o", str(output)]) == 0
    assert json.loads(output.read_text())["chat.thinking"] == "off"
    assert main([*words, "--raw"]) == 2
    assert "--raw shows the text as it is" in capsys.readouterr().err


def test_info_says_what_the_template_does_with_the_options(
    tiny_with: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_with(SWITCHED + "{{ strftime_now('%Y') }}")
    kwargs = '{"enable_thinking": true, "typo": 1}'
    assert main(["info", str(path), "--json", "--threads", "1", "--template-kwargs", kwargs]) == 0
    said = json.loads(capsys.readouterr().out)["chat"]
    assert said["problem"] is None and said["shows_date"]
    assert said["variables"] == ["enable_thinking"]
    assert said["switches"] == {"on": "enable_thinking = True", "off": "enable_thinking = False"}
    assert "reads no 'typo'" in said["notes"][0]


SERVED = """
import json, sys
from pathlib import Path
import safex
from safex.chat_settings import ChatSettings
from safex.serve import Served
from safex.serve_llama import LoadOptions, masked_llama

path, shown = Path(sys.argv[1]), json.loads(sys.argv[2])
said = []
with masked_llama(path, [], LoadOptions(n_ctx=256, n_threads=1, chat=ChatSettings.of(**shown))) as llama:
    tokenize = llama.tokenize
    llama.tokenize = lambda *args, **more: said.append(tokenize(*args, **more)) or said[-1]
    for messages in json.loads(sys.argv[3]):
        llama.create_chat_completion(messages=messages, max_tokens=1)
    card = Served(path).card(llama.shown)
with safex.Model(path, n_threads=1, **shown) as model:
    wanted = model.encode("Hi").tokens
    same = {name: card["metadata"].get(name) == value for name, value in model.chat.describe().items()}
print(json.dumps([said, wanted, same]))
"""


def test_the_server_shows_what_a_model_shows(tiny_with: Callable[[str], Path]) -> None:
    path = tiny_with(DATED + "{{ '<think></think>' if enable_thinking is defined and not enable_thinking }}")
    shown = {"system": "Be brief.", "thinking": "off", "date": "2026-03-04"}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    own = [{"role": "system", "content": "Own."}, *HI]
    words = [sys.executable, "-c", SERVED, str(path), json.dumps(shown), json.dumps([HI, parts, own])]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (plain, as_parts, with_own), wanted, same = json.loads(done.stdout)
    assert plain == as_parts == wanted
    assert with_own != wanted
    assert len(same) == 4 and all(same.values())


@pytest.mark.parametrize("name", ["chat_template_kwargs", "reasoning_effort", "chat_template"])
def test_the_server_takes_from_no_request_what_it_shows(name: str) -> None:
    request = {"messages": HI, name: {"enable_thinking": False}}
    with pytest.raises(RefusedError, match="start the server with --template-kwargs"):
        prepare(json.dumps(request).encode(), "demo", 100)
