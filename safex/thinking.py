"""What "thinking on" and "thinking off" mean to a model: the variables and words that its template reads for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError
from .template_environment import texts_in

if TYPE_CHECKING:
    from .chat import ChatTemplate


class Switch(NamedTuple):
    """A template variable that turns thinking on or off, and its two values."""

    name: str
    on: Any
    off: Any


SWITCHES = (
    Switch("enable_thinking", True, False),  # Qwen3, GLM, Gemma 4, SmolLM3, Nemotron 3 and most others
    Switch("thinking", True, False),  # DeepSeek V3.1 and later, Granite, Kimi
    Switch("thinking_mode", "enabled", "disabled"),  # MiniMax M3
    Switch("thinking_option", "on", "off"),  # Ling
    Switch("thinking_budget", -1, 0),  # Seed-OSS: tokens, -1 without bound
    Switch("reasoning", True, False),  # Cohere
    *(
        Switch(name, True, False)
        for name in ("add_thinking", "add_thoughts", "enable_reasoning", "use_thinking", "thinking_enabled")
    ),
)
# How much to think, in words. Of the values that a template itself names, the first is taken.
EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
MOST_EFFORT = ("high", "medium")
LEAST_EFFORT = ("none", "no_think", "minimal", "low")
LEAST_KNOWN = (
    "low"  # where a template prints any value: the least that models with such a variable are trained on
)
WORDS = (("/think", "/no_think"), ("detailed thinking on", "detailed thinking off"))  # in the system message


@dataclass(frozen=True)
class Thinking:
    """What is done for it: ``variables`` of the template, a ``system_word``. ``note`` says which, in one line."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    system_word: str = ""
    note: str = ""

    @property
    def what(self) -> str:
        """What is done, in a few words; empty for nothing."""
        if self.system_word:
            return f"{self.system_word!r} in the system message"
        return " and ".join(f"{name} = {value!r}" for name, value in self.variables.items())


def resolve_thinking(chat: ChatTemplate, on: bool) -> Thinking:
    """What ``chat``'s template understands of it, found by rendering. Raises InputError where settings contradict."""
    switches = [switch for switch in SWITCHES if switch.name in chat.reads]
    _check_given(chat.settings.template_kwargs, switches, on)
    useful = [s for s in switches if _differs(chat, {s.name: s.on}, {s.name: s.off})]
    if useful:
        return _with_note(on, Thinking({switch.name: switch.on if on else switch.off for switch in useful}))
    effort = _effort(chat, on)
    if effort is not None:
        return effort
    word = next((words[not on] for words in WORDS if words[not on] in texts_in(chat.source)), None)
    if word is not None:
        return _with_note(on, Thinking(system_word=word))
    wanted = "on" if on else "off"
    return Thinking(
        note=f"the model's chat template has no switch for thinking: thinking {wanted} has no effect"
    )


def _with_note(on: bool, found: Thinking, more: str = "") -> Thinking:
    note = f"thinking {'on' if on else 'off'}: the chat template gets {found.what}{more}"
    return Thinking(found.variables, found.system_word, note)


def _check_given(given: Mapping[str, Any], switches: list[Switch], on: bool) -> None:
    for switch in switches:
        value = switch.on if on else switch.off
        if switch.name in given and given[switch.name] != value:
            raise InputError(
                f"thinking {'on' if on else 'off'} means {switch.name} = {value!r}, and template_kwargs sets it to "
                f"{given[switch.name]!r}: leave one of them out"
            )


def _effort(chat: ChatTemplate, on: bool) -> Thinking | None:
    name = next((name for name in EFFORTS if name in chat.reads), None)
    if name is None:
        return None
    named = texts_in(chat.source)
    value = next((value for value in (MOST_EFFORT if on else LEAST_EFFORT) if value in named), None)
    if on and value is None:
        return Thinking(note=f"thinking on: the chat template always thinks; how much, {name} says")
    value = value or LEAST_KNOWN
    given = chat.settings.template_kwargs.get(name)
    if on and given is not None:
        return Thinking(note=f"thinking on: template_kwargs says how much, {name} = {given!r}")
    if given not in (None, value):
        raise InputError(
            f"thinking off means {name} = {value!r} for this model, and template_kwargs sets it to {given!r}: leave "
            "one of them out"
        )
    if not _differs(chat, {name: value}, {name: LEAST_KNOWN if on else MOST_EFFORT[0]}):
        return None
    least = "" if on or value != LEAST_KNOWN else ", the least effort it knows: the model may still think"
    return _with_note(on, Thinking({name: value}), least)


def _differs(chat: ChatTemplate, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a prompt is rendered differently with one setting and the other; not where one can't be rendered."""
    try:
        first, second = (chat.render_probe(variables) for variables in (one, other))
    except InputError:
        return False
    return first != second
