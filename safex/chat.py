"""Chat templates: the text a model is really shown, and the part of it that follows the user's words."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from .chat_messages import (
    SYSTEM_ROLES,
    Message,
    last_text,
    plain,
    shows_calls,
    text_of,
    variants,
    with_last_text,
    with_word,
)
from .chat_settings import RESERVED, ChatSettings, to_date
from .errors import InputError
from .template_environment import compile_template, variables_read
from .thinking import Thinking, resolve_thinking

PROBE = "safexprobe"  # a user's text that no template holds


def today() -> datetime.date:
    """The day on which a model is opened."""
    return datetime.date.today()


# Special tokens that a chat template may name, and where a file says which token each is.
SPECIAL_TOKENS = {
    "pad_token": "padding",
    "unk_token": "unknown",
    "sep_token": "seperator",  # the format's own spelling
    "cls_token": "cls",
    "mask_token": "mask",
}


def special_tokens(metadata: Mapping[str, str]) -> dict[str, int]:
    """The special tokens besides BOS and EOS that a file's metadata names, by the template's names for them."""
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL_TOKENS.items()}
    return {name: int(token) for name, token in found.items() if token and token.isdecimal()}


class ChatTemplate:
    """A model's own Jinja template, rendered in Jinja's sandbox. Without one, prompts are shown as they are.

    It is compiled when something is first rendered, so that a model whose template is broken can be opened.
    """

    def __init__(
        self,
        source: str,
        bos: str = "",
        eos: str = "",
        settings: ChatSettings | None = None,
        special: Mapping[str, str] | None = None,
    ) -> None:
        """``special``: further special tokens by the template's name for them, as ``pad_token``."""
        self.source = source
        self.settings = settings or ChatSettings()
        self.date = self.settings.date or today()
        self.bos = bos
        self._special = {"bos_token": bos, "eos_token": eos, **(special or {})}
        self._date_calls = 0
        self._known_forms: dict[tuple[str, bool], bool] = {}  # by role, and whether the content is a text
        self._role_problems: dict[str, str] = {}

    def __bool__(self) -> bool:
        """True where the model has a template."""
        return bool(self.source)

    # --- rendering

    def render(self, messages: Sequence[Message], *, keep_system: bool = False, **variables: Any) -> str:
        """The full prompt up to the point where the model is to answer.

        The system message of the settings is put before the messages. Where these bring their own, it is refused, or
        theirs is kept with ``keep_system``. ``variables`` of this conversation, as tools, are for the template. Raises
        InputError where it does not compile, can't render these messages, or would leave the system message out.
        """
        return self.render_conversation(self.conversation(messages, keep_system), variables)

    def conversation(self, messages: Sequence[Message], keep_system: bool = False) -> list[dict[str, Any]]:
        """The messages as the template gets them: the system message first, no nulls, contents of its kind."""
        made = [plain(message, number) for number, message in enumerate(messages, start=1)]
        system, own = self.settings.system, bool(made) and made[0]["role"] in SYSTEM_ROLES
        if system is not None and own and not keep_system:
            raise InputError(
                "the conversation begins with a system message of its own, and another one is set (--system): "
                "leave one of them out"
            )
        if system is not None and not own:
            made.insert(0, {"role": "system", "content": system})
        if not self:
            return made
        if self._thinking.system_word:
            made = with_word(made, self._thinking.system_word)
        for role in SYSTEM_ROLES:
            if any(message["role"] == role for message in made):
                self._check_role(role)
        return [self._in_known_form(message) for message in made]

    def render_conversation(
        self, conversation: Sequence[Message], variables: Mapping[str, Any] | None = None
    ) -> str:
        """What ``conversation`` made, as text."""
        if not self:
            return "\n".join(text for message in conversation if (text := text_of(message)) is not None)
        variables = {**self.variables, **(variables or {})}
        try:
            return self._rendered(conversation, variables)
        except InputError:
            for variant in variants(conversation):
                with suppress(InputError):
                    shown = self._rendered(variant, variables)
                    if shows_calls(shown, conversation):
                        return shown
            raise

    def _rendered(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """Render once, nothing checked. The one place where a template runs."""
        template = compile_template(self.source)
        given = {"tools": None, "documents": None, **self._special, **variables}
        given["strftime_now"] = self._strftime_now
        try:
            return str(template.render(messages=list(messages), add_generation_prompt=True, **given))
        except Exception as error:
            reason = str(error) or type(error).__name__
            if reason.endswith("is undefined") or "NoneType" in reason:
                reason += "; template_kwargs can set what it lacks, such as tools"
            raise InputError(f"the model's chat template can't render this conversation: {reason}") from error

    def _strftime_now(self, form: str) -> str:
        """The date that the study has, at midnight."""
        self._date_calls += 1
        return datetime.datetime.combine(self.date, datetime.time()).strftime(form)

    def check(self) -> None:
        """Raise InputError where the template does not compile or can't show a user's text."""
        if self:
            _ = self.suffix

    # --- what it is rendered with

    @property
    def reads(self) -> frozenset[str]:
        """The variables that the template may read, besides those that are always filled. Raises InputError."""
        if not self:
            return frozenset()
        compile_template(self.source)
        return variables_read(self.source)

    @property
    def readable_variables(self) -> list[str]:
        """Names of variables that ``template_kwargs`` may set. Raises InputError where the template fails."""
        return sorted(self.reads - set(RESERVED))

    def thinking_switches(self) -> dict[str, str]:
        """What "on" and "off" set, in words; empty where the template has no switch."""
        bare = ChatTemplate(self.source, special=self._special)
        return {name: resolve_thinking(bare, name == "on").what for name in ("on", "off")}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that the settings fill: those given, and those that ``thinking`` stands for."""
        return {**self._thinking.variables, **self.settings.template_kwargs}

    @cached_property
    def _thinking(self) -> Thinking:
        if self.settings.thinking is None or not self:
            return Thinking()
        return resolve_thinking(self, self.settings.thinking)

    @property
    def uses_date(self) -> bool:
        """Whether the date is part of what the model is shown: the template asked for it. False where it fails."""
        if not self:
            return False
        return self._date_calls > 0 or self._date_in_probes

    @cached_property
    def _date_in_probes(self) -> bool:
        try:
            given = self.variables
        except InputError:
            return False
        before = self._date_calls
        for messages in self._probes():
            with suppress(InputError):
                self._rendered(messages, given)
        used, self._date_calls = self._date_calls > before, before
        return used

    def _probes(self) -> list[list[dict[str, Any]]]:
        """The shapes of conversations: one turn and several, with a system message where there may be one."""
        user, answer = {"role": "user", "content": PROBE}, {"role": "assistant", "content": "Yes."}
        plain = [[user], [user, answer, user]]
        system = {"role": "system", "content": self.settings.system or PROBE}
        with_system = [[system, *turns] for turns in plain]
        return with_system if self.settings.system is not None else plain + with_system

    def use_recorded_date(self, recorded: object) -> None:
        """Take the date of the run that is resumed, unless one was given: ``recorded`` as ``describe`` wrote it."""
        if self.settings.date is None and isinstance(recorded, str):
            self.date = to_date(recorded)

    def describe(self) -> dict[str, Any]:
        """What result files say of it: settings that were given or that count, and the hash of it all."""
        settings = self.settings
        described: dict[str, Any] = {
            "chat.system": settings.system,
            "chat.template_kwargs": _json(settings.template_kwargs) if settings.template_kwargs else None,
            "chat.thinking": None if settings.thinking is None else "on" if settings.thinking else "off",
            "chat.date": self.date.isoformat() if self.uses_date else None,
        }
        given = {name: value for name, value in described.items() if value is not None}
        return {**given, "template_hash": self.hash}

    @property
    def hash(self) -> str:
        """SHA-256 of the template and of all that it is rendered with.

        Where nothing is set and the template shows no date it is that of the template alone, as it always was.
        """
        word = self.settings.system
        try:
            variables = self.variables if self else {}
            switch = self._thinking.system_word
        except InputError:  # a template that fails; nothing is rendered with it
            variables, switch = dict(self.settings.template_kwargs), ""
        date = self.date.isoformat() if self.uses_date else None
        if word is None and not variables and not switch and date is None:
            return hashlib.sha256(self.source.encode()).hexdigest()
        return hashlib.sha256(_json([self.source, word, variables, switch, date]).encode()).hexdigest()

    def notes(self) -> list[str]:
        """What the settings do and what they don't, in one line each. Raises InputError where they contradict."""
        settings = self.settings
        if not self:
            given = {
                "thinking": settings.thinking is not None,
                "template_kwargs": bool(settings.template_kwargs),
                "date": settings.date is not None,
            }
            names = [name for name, is_given in given.items() if is_given]
            return [f"the model has no chat template: {name} has no effect" for name in names]
        found = [] if settings.thinking is None else [self._thinking.note]
        unread = sorted(set(settings.template_kwargs) - self.reads)
        if unread:
            known = ", ".join(self.readable_variables) or "none"
            found.append(
                f"the model's chat template reads no {' and no '.join(map(repr, unread))}: without effect "
                f"(variables in it: {known})"
            )
        if settings.date is not None and not self.uses_date:
            own = " (it reads date_string: template_kwargs can set it)" if "date_string" in self.reads else ""
            found.append(f"the model's chat template never asks for the date: date has no effect{own}")
        return found

    # --- what it does with contents and roles

    def render_probe(self, variables: Mapping[str, Any], content: object = PROBE, role: str = "user") -> str:
        """A conversation with one message that holds ``content``, rendered with these variables besides the given."""
        message, user = {"role": role, "content": content}, {"role": "user", "content": "Hello."}
        of_role: dict[str, list[dict[str, Any]]] = {
            "user": [*self._system(), message],
            "system": [message, user],
            "developer": [message, user],
        }
        messages: list[dict[str, Any]] = of_role.get(role, [*self._system(), user, message, user])
        return self._rendered(messages, {**self.settings.template_kwargs, **variables})

    def _system(self) -> list[dict[str, Any]]:
        system = self.settings.system
        return [] if system is None else [{"role": "system", "content": system}]

    def _takes(self, role: str, content: object) -> bool:
        """Whether the template shows such a content of a role as text: not left out, and not as the list it is."""
        key = (role, isinstance(content, str))
        if key not in self._known_forms:
            try:
                shown = self.render_probe(self.variables, content, role)
            except InputError:
                shown = ""
            as_list = any(mark in shown for mark in (f"'text': '{PROBE}'", f'"text": "{PROBE}"'))
            self._known_forms[key] = PROBE in shown and not as_list
        return self._known_forms[key]

    def _in_known_form(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message whose content, a text or a list of parts, has the form that the template shows."""
        content, role = message.get("content"), message["role"]
        parts = [{"type": "text", "text": PROBE}]
        if isinstance(content, str) and not self._takes("user", PROBE) and self._takes("user", parts):
            return {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content, list) and not self._takes(role, parts):
            return {**message, "content": text_of(message)}
        return message

    def _check_role(self, role: str) -> None:
        """Refuse a system message that the template would not show. Raises InputError."""
        if role not in self._role_problems:
            self._role_problems[role] = self._role_problem(role)
        if self._role_problems[role]:
            raise InputError(self._role_problems[role])

    def _role_problem(self, role: str) -> str:
        """Why a conversation can't begin with a message of a role; empty where it can."""
        remedy = "leave the system message out, or put its text before the user's"
        content = self._in_known_form({"role": role, "content": PROBE})["content"]
        try:
            shown = self.render_probe(self.variables, content, role)
        except InputError as error:
            try:
                self._rendered([{"role": "user", "content": "Hello."}], self.variables)
            except InputError:
                return ""  # it fails without the message too, and that is what to say
            reason = error.__cause__ or error
            return f"the model's chat template takes no message of role {role!r} ({reason}): {remedy}"
        if PROBE not in shown:
            return f"the model's chat template leaves messages of role {role!r} out without a word: {remedy}"
        return ""

    # --- what follows the user's text

    @cached_property
    def suffix(self) -> str:
        """What an ordinary prompt ends with after the user's text. Raises InputError where that text is not shown."""
        if not self:
            return ""
        shown = self.render([{"role": "user", "content": PROBE}])
        _, found, suffix = shown.rpartition(PROBE)
        if not found:
            raise InputError(
                "the model's chat template does not show the user's text, so no prompt can be given to the model: "
                "use a file with another template"
            )
        return suffix

    def split(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The full prompt, and the part of it that follows the text of the last message."""
        conversation = self.conversation(messages)
        shown = self.render_conversation(conversation)
        if not self:
            return shown, ""
        text = last_text(conversation[-1]) if conversation else ""
        if not text or _ends_as(shown, text, self.suffix):
            return shown, self.suffix if shown.endswith(self.suffix) else ""
        return shown, self._suffix_behind(conversation, text, shown)

    def _suffix_behind(self, conversation: list[dict[str, Any]], text: str, shown: str) -> str:
        """What follows the last message, found by exchanging its text; some templates look at the text they show."""
        behind = self._tail(conversation, PROBE + text)
        form = next((form for form in _forms_of(text) if form and behind.startswith(form)), None)
        tails = [] if form is None else [behind[len(form) :]]
        tails += [self._tail(conversation, text + PROBE), self._tail(conversation, PROBE)]
        as_long = "".join("y" if letter == "x" else "x" for letter in text)
        with suppress(InputError):
            other = self.render_conversation([*conversation[:-1], with_last_text(conversation[-1], as_long)])
            tails.append(other[len(other) - common_tail(shown, other) :])
        fitting = (tail for tail in tails if _ends_as(shown, text, tail))
        common = (shown[len(shown) - common_tail(shown, tail) :] for tail in tails)
        return next(fitting, None) or max(common, key=len, default="")

    def _tail(self, conversation: list[dict[str, Any]], marked: str) -> str:
        """What follows the mark where the last message has a marked text; empty where it is not shown."""
        with suppress(InputError):
            changed = [*conversation[:-1], with_last_text(conversation[-1], marked)]
            _, found, tail = self.render_conversation(changed).rpartition(PROBE)
            return tail if found else ""
        return ""


def _ends_as(shown: str, text: str, suffix: str) -> bool:
    """Whether a prompt is something, then the user's text, perhaps trimmed, then the suffix."""
    if not shown.endswith(suffix):
        return False
    before = shown[: len(shown) - len(suffix)]
    return any(form and before.endswith(form) for form in _forms_of(text))


def _forms_of(text: str) -> tuple[str, ...]:
    """How templates show a text: as it is, or trimmed."""
    return text, text.lstrip(), text.rstrip(), text.strip()


def common_tail(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the longest common ending of two sequences.

    >>> common_tail("ending", "bending"), common_tail([1, 2], [3, 2]), common_tail("", "a")
    (6, 1, 0)
    """
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
