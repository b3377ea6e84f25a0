"""The table of reasoning formats: which marks enclose what a model thinks, and which its answer.

A mark is written here as the model writes it. Marks like ``<think>`` also match with attributes, white space, a suffix
such as ``:opensource``, and in any case; all other texts match letter by letter, in any case. What a fixed text can't
say stands as a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias

Text: TypeAlias = "str | re.Pattern[str]"

# What a mark does.
OPEN = "open"  # reasoning begins
CLOSE = "close"  # reasoning ends
ANSWER = "answer"  # the answer begins
END = "end"  # the answer ends
PREAMBLE = "preamble"  # words for the user before a tool call
TOOL = "tool"  # a tool call
OVER = "over"  # whatever was being said ends
SKIP = "skip"  # nothing: a header, a switch

KINDS = (TOOL, OPEN, CLOSE, ANSWER, END, PREAMBLE, OVER, SKIP)  # at one place the first that fits counts

_TAG = re.compile(r"<(/?)([A-Za-z][\w:|-]*)>")
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s<>"']+))*"""


@dataclass(frozen=True)
class Format:
    """One way to mark reasoning.

    ``models`` says who writes it. ``open`` to ``skip`` are the marks, by what they do. ``tokens`` are parts of marks
    that may be single tokens; ``evidence`` are texts in a template or vocabulary that tell the format where its marks
    don't; ``hints`` what a text must hold where a mark is a pattern. ``leading``: the opening counts only as the first
    thing of an answer, since it is ordinary language. ``stray``: a closing without an opening ends reasoning (the
    prompt opened it, or nobody). ``prompt_opens``: templates end with the opening. ``messages``: the answer is a row of
    messages, each with a header that says what it is. ``paired``: reasoning counts only where the answer's mark
    follows. ``wrapped``: the answer's marks count only behind reasoning, since answers may hold such tags themselves.
    """

    name: str
    models: str
    open: tuple[Text, ...]
    close: tuple[Text, ...] = ()
    answer: tuple[Text, ...] = ()
    end: tuple[Text, ...] = ()
    preamble: tuple[Text, ...] = ()
    tool: tuple[Text, ...] = ()
    over: tuple[Text, ...] = ()
    skip: tuple[Text, ...] = ()
    tokens: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    leading: bool = False
    stray: bool = True
    prompt_opens: bool = True
    messages: bool = False
    paired: bool = False
    wrapped: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Any mark of the format; the group's name is what it does."""
        groups = [(kind, [_pattern(text) for text in getattr(self, kind)]) for kind in KINDS]
        return re.compile(
            "|".join(f"(?P<{kind}>{'|'.join(texts)})" for kind, texts in groups if texts), re.IGNORECASE
        )

    @cached_property
    def opened(self) -> re.Pattern[str]:
        """A prompt's ending that leaves the reasoning open."""
        texts = "|".join(_pattern(text) for text in self.open)
        return re.compile(rf"({texts})\s*\Z", re.IGNORECASE)

    @cached_property
    def doubled(self) -> re.Pattern[str]:
        """Openings that reasoning begins with once more."""
        return re.compile(rf"(?:\s*(?:{'|'.join(map(_pattern, self.open))}))+", re.IGNORECASE)

    @cached_property
    def cores(self) -> tuple[str, ...]:
        """Small letters of which a text with any mark of the format holds some."""
        kinds = (getattr(self, kind) for kind in KINDS)
        texts = [mark for kind in kinds for mark in kind if isinstance(mark, str)]
        tags = [_TAG.fullmatch(text) for text in texts]
        marks = [tag[2] if tag else text for tag, text in zip(tags, texts, strict=True)]
        return tuple({mark.lower() for mark in (*marks, *self.tokens, *self.hints)})

    @property
    def names(self) -> tuple[str, ...]:
        """The texts that may be single tokens of a vocabulary."""
        marks = (*self.open, *self.close, *self.answer, *self.end, *self.tool, *self.over)
        return (*self.tokens, *(mark for mark in marks if isinstance(mark, str) and not self.leading))

    def applies(self, template: str, vocabulary: Collection[str] = ()) -> bool:
        """Whether a model's chat template or vocabulary holds this format's marks."""
        marks = [mark for mark in (*self.open, *self.close) if isinstance(mark, str)]
        return any(text in template or text in vocabulary for text in (*marks, *self.evidence))


def _pattern(text: Text) -> str:
    """A mark as a pattern."""
    if isinstance(text, re.Pattern):
        return text.pattern
    tag = _TAG.fullmatch(text)
    if not tag:
        return re.escape(text)
    slash, name = tag.groups()
    return rf"<\s*{slash}\s*{re.escape(name)}(?::[\w.-]+)?{'' if slash else _ATTRIBUTES}\s*>"


# The tags in which models with tagged reasoning may put the answer: Hunyuan and R1-Zero's recipe (answer), ERNIE and
# Granite 3.3 (response), Marco-o1 (output).
WRAPPERS = ("answer", "response", "output", "solution", "final_answer")


def _tagged(name: str, models: str, tag: str, *more: str) -> Format:
    """Reasoning between ``<tag>`` and ``</tag>``."""
    return Format(
        name,
        models,
        open=tuple(f"<{each}>" for each in (tag, *more)),
        close=tuple(f"</{each}>" for each in (tag, *more)),
        answer=tuple(f"<{each}>" for each in WRAPPERS),
        end=tuple(f"</{each}>" for each in WRAPPERS),
        evidence=(f"<{tag}{{}}>",),  # Hy3's template puts a suffix into the braces
        wrapped=True,
    )


# gpt-oss: [<|start|>assistant][ to=RECIPIENT]<|channel|>NAME[ to=RECIPIENT][<|constrain|>TYPE]<|message|>TEXT<|end|>
_START = r"(?:<\|start\|>\s*\w+\s*|\A\s*(?:assistant)?)?"
_REST = r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_TO_TOOL = r"\s*\bto=(?!(?:assistant|user|all|self)\b)[^\s<]+"

FORMATS: tuple[Format, ...] = (
    _tagged(
        "think",
        "DeepSeek-R1 and V3.1 to V4, Qwen3, QwQ, GLM, Nemotron, Kimi-K2-Thinking, MiniMax-M1 and M2, Hunyuan, Hy3, "
        "EXAONE 4, ERNIE 4.5, Granite 3.3, Phi-4-reasoning, SmolLM3, Olmo-3, Laguna, LFM2.5, Ring, Ling, Step, MiMo, "
        "InternLM, Magistral 2506, Falcon-H1R, Bielik, MiniCPM5, Reka, Spark",
        "think",
    ),
    _tagged("thinking", "Apriel's tool calls, Reflection, models told to", "thinking"),
    _tagged("reasoning", "models told to", "reasoning", "reason"),
    _tagged("thought", "EXAONE-Deep, Marco-o1", "thought", "thoughts"),
    _tagged("seed", "Seed-OSS", "seed:think"),
    _tagged("minimax", "MiniMax-M3", "mm:think"),
    _tagged("longcat", "LongCat-Flash-Thinking", "longcat_think"),
    _tagged("ifm", "K2-Horizon", "ifm|think", "ifm|think_fast", "ifm|think_faster"),
    Format("mistral", "Magistral, Ministral 3 Reasoning", open=("[THINK]",), close=("[/THINK]",)),
    Format("kimi", "Kimi-VL-Thinking, Kimi-Dev", open=("◁think▷",), close=("◁/think▷",)),
    Format(
        "kimi-k3",
        "Kimi-K3",
        open=("<|open|>think<|sep|>",),
        close=("<|close|>think<|sep|>",),
        answer=("<|open|>response<|sep|>",),
        end=("<|close|>response<|sep|>",),
        tool=("<|open|>tools<|sep|>",),
        over=("<|close|>tools<|sep|>",),
        skip=(
            re.compile(r"<\|open\|>message[^<]*<\|sep\|>"),
            "<|close|>message<|sep|>",
            "<|end_of_msg|>",
        ),
        tokens=("<|open|>", "<|close|>", "<|sep|>"),
        evidence=("<|end_of_msg|>",),  # the template builds its marks by macros
    ),
    Format(
        "cohere",
        "Command R7B, Command A Reasoning, Cohere2MoE",
        open=("<|START_THINKING|>",),
        close=("<|END_THINKING|>",),
        answer=("<|START_RESPONSE|>", "<|START_TEXT|>"),
        end=("<|END_RESPONSE|>", "<|END_TEXT|>"),
        tool=("<|START_ACTION|>",),
        over=("<|END_ACTION|>",),
        skip=("<|END_OF_TURN_TOKEN|>",),
        tokens=("<|START_ACTION|>", "<|END_ACTION|>"),
    ),
    Format(
        "gemma4",
        "Gemma 4",
        open=(re.compile(r"<\|channel>\s*thought\b"),),
        close=("<channel|>",),
        skip=(re.compile(r"<\|channel>(?!\s*thought\b)\w*"), "<turn|>"),
        tokens=("<|channel>",),
        evidence=("<|channel>",),
        prompt_opens=False,
    ),
    Format(
        "harmony",
        "gpt-oss",
        open=(re.compile(rf"{_START}<\|channel\|>\s*analysis\b(?!{_TO_TOOL})(?:{_REST})?"),),
        answer=(
            re.compile(rf"{_START}<\|channel\|>\s*final\b(?:{_REST})?"),
            re.compile(r"(?:<\|start\|>\s*\w+\s*|\A\s*)<\|message\|>"),
        ),
        preamble=(
            re.compile(rf"{_START}<\|channel\|>\s*commentary\b(?!\s+to=)(?:{_REST})?"),
            re.compile(rf"{_START}<\|channel\|>[^<]*<\|message\|>"),
        ),
        tool=(
            re.compile(rf"(?:<\|start\|>\s*\w+|\A){_TO_TOOL}\s*(?:<\|channel\|>)?{_REST}"),
            re.compile(rf"{_START}<\|channel\|>\s*\w+{_TO_TOOL}{_REST}"),
        ),
        over=("<|end|>", "<|return|>", "<|call|>"),
        skip=(
            re.compile(r"<\|channel\|>\s*commentary(?:\s+to=assistant)?\s*(?=<\|channel\|>)"),
            re.compile(rf"{_START}<\|channel\|>\s*\w*\Z"),
            re.compile(r"<\|start\|>\s*\w*"),
        ),
        tokens=("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"),
        evidence=("<|channel|>",),
        stray=False,
        messages=True,
    ),
    Format(
        "harmony-bare",
        "gpt-oss where special tokens were left out of the text",
        open=(
            re.compile(r"\A\s*analysis(?=(?-i:[^\sa-z<:;.,'’)(\]\[*_-]))"),
            re.compile(r"assistantanalysis(?=\S)"),
        ),
        answer=(re.compile(r"assistantfinal(?=\S)"),),
        preamble=(re.compile(r"assistantcommentary(?!\s*to=)(?=\S)"),),
        tool=(re.compile(r"assistantcommentary\s*to=\S+(?:\s*(?:code|json))?"),),
        hints=("analysis", "assistantfinal"),
        leading=True,
        stray=False,
        prompt_opens=False,
        messages=True,
    ),
    Format(
        "solar",
        "Solar Open",
        open=(re.compile(r"(?:<\|begin\|>\s*assistant\s*)?<\|think\|>"),),
        answer=(re.compile(r"(?:<\|begin\|>\s*assistant\s*)?<\|content\|>"),),
        tool=(re.compile(r"(?:<\|begin\|>\s*assistant\s*)?<\|tool_calls\|>"),),
        over=("<|end|>", "<|calls|>", "<|flush|>"),
        skip=(re.compile(r"<\|begin\|>\s*assistant"),),
        tokens=("<|think|>", "<|content|>", "<|tool_calls|>", "<|begin|>"),
        evidence=("<|begin|>assistant<|think|>", "<|flush|>"),
        stray=False,
        messages=True,
    ),
    Format(
        "muse",
        "Muse Glimmer",
        open=(re.compile(r"(?:<\|start\|>\s*assistant\s*)?\bto=self\s*<\|message\|>"),),
        answer=(
            re.compile(r"(?:<\|start\|>\s*assistant\s*)?\bto=user\s*<\|message\|>"),
            re.compile(r"<\|start\|>\s*assistant\s*<\|message\|>"),
        ),
        tool=(re.compile(r"(?:<\|start\|>\s*assistant\s*)?\bto=(?!(?:self|user)\b)[^\s<]+\s*<\|message\|>"),),
        over=("<|eom|>", "<|eot|>"),
        skip=(re.compile(r"<\|start\|>\s*assistant"),),
        tokens=("<|message|>", "<|start|>"),
        evidence=("to=self<|message|>",),
        stray=False,
        messages=True,
    ),
    Format(
        "apertus",
        "Apertus",
        open=("<|inner_prefix|>",),
        close=("<|inner_suffix|>",),
        answer=("<|answer_prefix|>",),
        end=("<|answer_suffix|>",),
        tool=("<|tools_prefix|>",),
        over=("<|tools_suffix|>",),
    ),
    Format(
        "pangu",
        "openPangu",
        open=("[unused16]",),
        close=("[unused17]",),
        skip=("[unused10]",),
    ),
    Format(
        "openthinker",
        "OpenThinker, Sky-T1",
        open=("<|begin_of_thought|>",),
        close=("<|end_of_thought|>",),
        answer=("<|begin_of_solution|>",),
        end=("<|end_of_solution|>",),
    ),
    Format(
        "s1",
        "s1",
        open=(re.compile(r"<\|im_start\|>think\b"),),
        answer=(re.compile(r"<\|im_start\|>answer\b"),),
        skip=("<|im_end|>",),
        tokens=("<|im_start|>",),
        stray=False,
    ),
    Format(
        "apriel",
        "Apriel",
        open=("Here are my reasoning steps:",),
        close=("[BEGIN FINAL RESPONSE]",),
        end=("[END FINAL RESPONSE]",),
        tokens=("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
        leading=True,
    ),
    Format(
        "granite",
        "Granite 3.2",
        open=(re.compile(r"Here(?:['’]s| is) my thought process:"),),
        close=(re.compile(r"Here(?:['’]s| is) my response:"),),
        evidence=("Here is my thought process:",),
        hints=("my thought process:",),
        leading=True,
        stray=False,
        prompt_opens=False,
    ),
    Format(
        "headings",
        "HuatuoGPT-o1",
        open=(re.compile(r"## Thinking[ \t]*\n"),),
        hints=("## thinking",),
        answer=(re.compile(r"## Final Response[ \t]*\n"),),
        leading=True,
        stray=False,
        prompt_opens=False,
        paired=True,
    ),
)

# What begins a tool call: reasoning that was never closed ends there, as models leave the closing mark out.
TOOL_CALLS = (
    "<tool_call>", "<tool_calls>", "<toolcall>", "<seed:tool_call>", "<minimax:tool_call>", "<longcat_tool_call>",
    "<|tool_call>", "<|tool_call_start|>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "[TOOL_CALLS]",
    "<｜tool▁calls▁begin｜>", "<｜DSML｜function_calls>", "<｜DSML｜tool_calls>", "<|tools_prefix|>",
)  # fmt: skip


@cache
def tool_call() -> re.Pattern[str]:
    """The beginning of a tool call on a line of its own."""
    return re.compile(rf"^[ \t]*(?:{'|'.join(map(re.escape, TOOL_CALLS))})", re.IGNORECASE | re.MULTILINE)


@cache
def closing() -> re.Pattern[str]:
    """The closing of any format: models that err close one tag with another's."""
    texts = [_pattern(text) for each in FORMATS if each.wrapped for text in each.close]
    return re.compile("|".join(texts), re.IGNORECASE)


def formats_of(template: str, vocabulary: Collection[str] = ()) -> list[Format]:
    """The formats whose marks a chat template or a vocabulary holds.

    >>> [each.name for each in formats_of("{{ '<|im_start|>assistant\\\\n<think>\\\\n' }}")]
    ['think']
    """
    return [each for each in FORMATS if each.applies(template, vocabulary)]


@cache
def mark_names() -> tuple[str, ...]:
    """Every text of the table that may be a single token, each once."""
    return tuple(dict.fromkeys(name for each in FORMATS for name in each.names))
