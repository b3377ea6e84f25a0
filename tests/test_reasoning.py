"""Reasoning told from the answer, in every format of the table, and told from a mere mention of its marks."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
import upstream_files
from reasoning_cases import CASES

from safex.generation import Response
from safex.judges import Item, KeywordJudge
from safex.reasoning import FORMATS, formats_of, opened_by, split_reasoning


def test_names_of_cases_differ() -> None:
    assert len({name for name, *_ in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(("text", "reasoning", "answer"), [pytest.param(*c[1:], id=c[0]) for c in CASES])
def test_reasoning_and_answer(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)
    response = Response(text, [], "stop", [])
    assert (response.reasoning, response.answer) == (reasoning, answer)


# --- the pinned source's real templates: what each prompt leaves open, read in the rendered prompts

THINK = "<think>"
SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "on": {"enable_thinking": True, "thinking": True},
    "off": {"enable_thinking": False, "thinking": False},
    "enable_thinking on": {"enable_thinking": True},
    "enable_thinking off": {"enable_thinking": False},
    "effort high": {"reasoning_effort": "high"},
    "effort low": {"reasoning_effort": "low"},
    "mode enabled": {"thinking_mode": "enabled"},
    "mode disabled": {"thinking_mode": "disabled"},
    "budget 0": {"thinking_budget": 0},
    "reasoning off": {"reasoning": False},
}
ALWAYS = set(SETTINGS)
UNLESS_OFF = ALWAYS - {"off", "enable_thinking off"}
IF_ON = {"on", "enable_thinking on"}
OPENED = {
    "Apriel-1.6-15b-Thinker-fixed": ("Here are my reasoning steps:", ALWAYS),
    "Bielik-11B-v3.0-Instruct": (THINK, IF_ON),
    "Cohere2MoE": ("<|START_THINKING|>", ALWAYS - {"reasoning off"}),
    "GLM-4.7-Flash": (THINK, UNLESS_OFF),
    "Kimi-K3": ("<|open|>think<|sep|>", ALWAYS - {"off"}),
    "MiniMax-M2": (THINK, ALWAYS),
    "MiniMax-M3": ("<mm:think>", {"mode enabled"}),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (THINK, UNLESS_OFF),
    "NVIDIA-Nemotron-Nano-v2": (THINK, ALWAYS),
    "Qwen-QwQ-32B": (THINK, IF_ON),
    "Qwen3.5-4B": (THINK, UNLESS_OFF),
    "Reka-Edge": (THINK, IF_ON),
    "Spark2.5": (THINK, UNLESS_OFF),
    "StepFun3.5-Flash": (THINK, ALWAYS),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (THINK, ALWAYS),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (THINK, IF_ON),
    "deepseek-ai-DeepSeek-V3.1": (THINK, IF_ON),
    "deepseek-ai-DeepSeek-V3.2": (THINK, IF_ON),
    "deepseek-ai-DeepSeek-V4": (THINK, IF_ON),
    "deepseek-ai-DeepSeek-V4-Flash-0731": (THINK, IF_ON),
    "inclusionai-ling-3.0-flash": (THINK, UNLESS_OFF),
    "llama-cpp-deepseek-r1": (THINK, ALWAYS),
    "llama-cpp-rwkv-world": (THINK, IF_ON),
    "openbmb-MiniCPM5-1B": (THINK, IF_ON),
    "poolside-Laguna-S-2.1": (THINK, UNLESS_OFF),
    "poolside-Laguna-XS-2.1": (THINK, IF_ON),
    "poolside-Laguna-XS.2": (THINK, IF_ON),
    "tencent-Hy3": ("<think:opensource>", {"effort high", "effort low"}),
}
APPLY = {
    "Apertus-8B-Instruct": ["apertus"],
    "Apriel-1.6-15b-Thinker-fixed": ["thinking", "apriel"],
    "ByteDance-Seed-OSS": ["seed"],
    "Cohere2MoE": ["cohere"],
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ["cohere"],
    "Kimi-K3": ["kimi-k3"],
    "MiniMax-M3": ["minimax"],
    "google-gemma-4-31B-it": ["gemma4"],
    "google-gemma-4-31B-it-interleaved": ["gemma4"],
    "mistralai-Ministral-3-14B-Reasoning-2512": ["mistral"],
    "muse-glimmer": ["muse"],
    "openai-gpt-oss-120b": ["harmony"],
    "unsloth-Apriel-1.5": ["thinking", "apriel"],
    "upstage-Solar-Open-100B": ["solar"],
}
# Without a word of reasoning in their templates, or with its tags only behind a switch in the user's hands.
NONE = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B", "Kimi-K2-Instruct",
    "LFM2-8B-A1B", "MiMo-VL", "MiniMax-M1", "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder", "fireworks-ai-llama-3-firefunction-v2", "google-gemma-2-2b-it",
    "ibm-granite-granite-4.0", "ibm-granite-granite-4.1", "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2", "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct", "microsoft-Phi-3.5-mini-instruct", "mistralai-Mistral-Nemo-Instruct-2407",
    "moonshotai-Kimi-K2", "unsloth-mistral-Devstral-Small-2507",
}  # fmt: skip


def test_what_each_real_template_leaves_open() -> None:
    found = upstream_files.templates()
    assert len(found) == 70 and OPENED.keys() <= found.keys()
    wrong = {}
    for name, source in found.items():
        opening, when = OPENED.get(name, ("", set()))
        for setting, given in SETTINGS.items():
            expected = opening if setting in when else ""
            prompt = upstream_files.render(source, **given)
            if opened_by(prompt) != expected:
                wrong[name, setting] = prompt[-80:]
            if opened_by(upstream_files.render(source, add_generation_prompt=False, **given)):
                wrong[name, setting, "no generation prompt"] = prompt[-80:]
    assert wrong == {}


def test_the_user_can_not_open_a_block() -> None:
    """Words of the user's that end with a mark stand before the template's own ending."""
    for name, source in upstream_files.templates().items():
        if name in OPENED:
            continue
        text = upstream_files.render(source, enable_thinking=False).replace("QQQ", "What is this: <think>")
        assert opened_by(text) == "", name


def test_which_formats_a_template_tells() -> None:
    found = upstream_files.templates()
    told = {name: [each.name for each in formats_of(source)] for name, source in found.items()}
    assert told == {name: APPLY.get(name, [] if name in NONE else ["think"]) for name in found}


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("<|im_start|>assistant\n<think>\n\n", THINK),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|assistant|></think>", ""),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        ("<|start|>assistant<|channel|>final<|message|>", ""),
        ("<|turn>model\n<|channel>thought\n", "<|channel>thought"),
        ("<|turn>model\n<|channel>thought\n<channel|>", ""),
        ("<|begin|>assistant<|think|>", "<|think|>"),
        ("[|assistant|]<thought>\n", "<thought>"),
        ("assistant\n◁think▷", "◁think▷"),
        ("<longcat_assistant><longcat_think>\n", "<longcat_think>"),
        ("<|im_start|>assistant\n<|im_start|>think\n", "<|im_start|>think"),
        ("", ""),
    ],
)
def test_openings_at_a_prompts_end(prompt: str, opening: str) -> None:
    assert opened_by(prompt) == opening
    if opening:
        assert split_reasoning(f"{opening}\nI cannot? is it so") == ("I cannot? is it so", "")


# --- judged


@pytest.mark.parametrize("case", CASES, ids=[name for name, *_ in CASES])
def test_refusals_in_reasoning_are_no_refusals(case: tuple[str, str, str, str]) -> None:
    """The judge's verdict on a marked text is the one on its answer alone."""
    _, text, reasoning, answer = case
    judge = KeywordJudge()
    verdict, alone = (judge.judge_one(Item("0", "regular", "?", each)) for each in (text, answer))
    assert verdict.label == alone.label
    assert (verdict.unreadable == "reasoning") == bool(reasoning and not answer)


@pytest.mark.parametrize(
    "piece",
    [
        "<|",
        "<|start|>assistant ",
        "<think> b </think> c ",
        "a <think> b ",
        "\n<think>\nb </think> c",
        "a `<think>` b ",
        "</think> a ",
        "<|start|>assistant<|channel|>final<|message|>a b ",
    ],
)
def test_a_text_of_marks_takes_time_that_grows_with_its_length(piece: str) -> None:
    """Four times the text took sixteen times as long, or more."""
    times = []
    for length in (25_000, 100_000):
        texts = [f"{n} {piece * (length // len(piece))}" for n in range(3)]
        started = [time.process_time()]
        for text in texts:
            split_reasoning(text)
            started.append(time.process_time())
        times.append(min(b - a for a, b in pairwise(started)))
    assert times[1] < 9 * times[0] + 0.02


def test_a_block_of_many_marks_ends_where_it_is_closed() -> None:
    thought = "I may write <think> once more.\n" * 300
    assert split_reasoning(f"<think>\n{thought}</think>\nBread.")[1] == "Bread."


def test_formats_have_names_and_models() -> None:
    assert len({each.name for each in FORMATS}) == len(FORMATS)
    assert all(each.models and each.open for each in FORMATS)


def test_the_manual_lists_the_table() -> None:
    """A line for each format, in the table's order, with who writes it and every mark that is a fixed text."""
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    section = page.partition("## Reasoning\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("- **") and "): `" in line]
    assert [line.split("**")[1] for line in lines] == [each.name for each in FORMATS]
    for line, each in zip(lines, FORMATS, strict=True):
        assert f"({each.models}): " in line
        marks = [mark for mark in (*each.open, *each.close) if isinstance(mark, str)]
        marks += [] if each.messages or each.wrapped else [m for m in each.answer if isinstance(m, str)]
        assert all(f"`{mark}`" in line for mark in marks), each.name
