"""Trial answers: a few prompts are answered before the long work, to see whether their answers can be read.

An answer that ends inside its reasoning, or is cut before anything can be judged, is no evidence. With ``auto`` the
token limit is doubled until enough trial answers can be read; a limit that was asked for is only tried. Where more
than a third stay unreadable the run stops before it begins, with what to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from safex import responses
from safex.errors import InputError
from safex.evaluation.marks import Marks
from safex.generation import Sampling
from safex.judges import (
    REASONING,
    TRUNCATED,
    EndpointJudge,
    GuardJudge,
    Item,
    Judge,
    KeywordJudge,
    Verdict,
)
from safex.judges.readable import Read
from safex.model import Model, Response
from safex.prompts import Prompt, PromptSet
from safex.thinking import Thinking, resolve_thinking

AUTO = "auto"
START = 64  # tokens that are tried first
BOUND = 1024  # tokens that `auto` goes up to: 16 times the work of START; whoever wants more says how much
ANSWERS = 12  # fill one batch; where half of all answers are unreadable, 1 or none of 12 is in 300 trials one
TOO_MANY = 1 / 8  # share of answers cut before they can be read, from above which the limit is doubled
# Share of answers without an answer in them from above which the run stops: a quarter makes a rate not measurable (see
# judges.readable), and with so few trial answers a third is seen in 1 of 40 runs where it is no more than 15 %.
TOO_SILENT = 1 / 3
LONG = 10  # a limit that was asked for is tried where the run has so many times as many answers as the trial

Progress: TypeAlias = Callable[[str, int, int], None]  # what, done, total


class UnreadableError(InputError):
    """Too many trial answers can't be read: what follows could not be judged."""


@dataclass(frozen=True)
class Trial:
    """What the trial answers showed.

    ``max_new`` is the token limit of the run, ``asked`` the one that was asked for ("auto" or a number), ``limits``
    those that were tried, ``answers`` how many prompts were answered. Of these ``cut`` were unreadable because the
    limit came first; ``unreadable`` counts all that could not be read, by reason.
    """

    max_new: int
    asked: int | str
    answers: int
    cut: int = 0
    limits: tuple[int, ...] = ()
    unreadable: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """One line: the limit, and what it rests on."""
        how = "measured" if self.asked == AUTO else "asked for and tried"
        found = (
            f"answers: up to {self.max_new} {_tokens(self.max_new)}, as {how} on {self.answers} trial answers"
        )
        return f"{found} (unreadable: {self.why})" if self.unreadable else found

    @property
    def is_readable(self) -> bool:
        """Whether enough trial answers can be read: few are only reasoning, or cut too early."""
        return self._silent <= TOO_SILENT * self.answers or self._silent < min(2, self.answers)

    @property
    def is_silent(self) -> bool:
        """Whether no trial answer at all can be read, for whatever reason."""
        return sum(self.unreadable.values()) == self.answers

    @property
    def why(self) -> str:
        """Why answers can't be read, in words, the most frequent reason first."""
        return Read(self.answers, 0, self.unreadable).why

    @property
    def _silent(self) -> int:
        return sum(self.unreadable.get(reason, 0) for reason in (REASONING, TRUNCATED))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a file gives them back."""
        return {**asdict(self), "limits": list(self.limits), "unreadable": dict(self.unreadable)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trial:
        """The trial that ``to_json`` wrote."""
        return cls(**{**value, "limits": tuple(value["limits"])})


MaxNew: TypeAlias = "int | str | Trial"
OnTrial: TypeAlias = Callable[[Trial], None]


def first_limit(max_new: MaxNew, start: int = START) -> int:
    """The limit that is known before the trial. Raises InputError for a word other than ``auto``, and below 1.

    >>> first_limit("auto"), first_limit(100)
    (64, 100)
    """
    if isinstance(max_new, Trial):
        return max_new.max_new
    if max_new == AUTO:
        return start
    if isinstance(max_new, str):
        raise InputError(f"max_new is {max_new!r}, expected a number of tokens, or {AUTO!r}")
    if max_new < 1:
        raise InputError(f"max_new is {max_new}, expected at least 1 token")
    return max_new


def sample_of(prompts: PromptSet, n: int = ANSWERS) -> PromptSet:
    """About ``n`` prompts, as many of each set, evenly spaced.

    >>> sample_of(PromptSet.of(map(str, range(100)), set="regular"), 4).texts
    ['0', '25', '50', '75']
    """
    return prompts.limited(max(2, -(-n // max(1, len(set(prompts.sets))))))


def is_long(prompts: PromptSet, n_answers: int) -> bool:
    """Whether a run of ``n_answers`` is long enough for a trial to spare much of it."""
    return n_answers >= LONG * len(sample_of(prompts))


def try_answers(
    model: Model,
    prompts: PromptSet,
    max_new: int | str = AUTO,
    *,
    judges: Sequence[Judge] = (),
    marks: Marks | None = None,
    sampling: Sampling | None = None,
    start: int = START,
    progress: Progress | None = None,
) -> Trial:
    """Answer a few prompts without a mask, under ``max_new`` tokens or (``auto``) as many as they need.

    ``auto`` begins with ``start`` tokens and doubles the limit while more than an eighth of the answers are cut before
    they can be read, up to 1,024, or what the context holds beside the longest prompt. Answers that can be read are not
    made again. ``judges`` are those of the run: the first that reads without asking another model says what is
    readable; ``marks`` what compliance must contain. Raises InputError as ``first_limit`` does.

    >>> import safex
    >>> with safex.Model("demo", n_threads=1) as model:
    ...     try_answers(model, safex.PromptSet.bundled("demo")).max_new
    64
    """
    limit = first_limit(max_new, start)
    bound = limit if max_new != AUTO else max(limit, min(BOUND, _room(model, prompts)))
    asked = _Asked(model, list(sample_of(prompts)), _reader(judges), marks or {}, sampling or Sampling())
    limits: list[int] = []
    while True:
        (progress or _silent)(f"trying {len(asked.prompts)} answers of up to {limit} {_tokens(limit)}", 0, 1)
        asked.answer(limit)
        limits.append(limit)
        if limit >= bound or asked.n_cut <= TOO_MANY * len(asked.prompts):
            break
        limit = min(2 * limit, bound)
    return Trial(limit, max_new, len(asked.prompts), asked.n_cut, tuple(limits), asked.unreadable)


def check_readable(trial: Trial, model: Model) -> None:
    """Raise UnreadableError, with the remedy, where too many trial answers can't be read."""
    if not trial.is_readable:
        raise UnreadableError(why_unreadable(trial, model))


def settled(
    model: Model,
    prompts: PromptSet,
    max_new: MaxNew,
    n_answers: int,
    resumed: Path | None,
    on_trial: OnTrial | None,
    **how: Any,
) -> Trial | None:
    """The trial of a run of ``n_answers``: that of the run to go on with, that which was made before, or one made now.

    None where a limit was asked for and the run is hardly longer than a trial. ``resumed`` is the responses file to go
    on with, ``how`` goes to ``try_answers``. Raises InputError for a run that asked for another limit, UnreadableError.
    """
    found, trial = kept_trial(resumed, max_new) if resumed else (False, None)
    if not found:
        if isinstance(max_new, Trial):
            trial = max_new
        elif max_new == AUTO or is_long(prompts, n_answers):
            trial = try_answers(model, prompts, max_new, **how)
    if trial is not None:
        if on_trial:
            on_trial(trial)
        check_readable(trial, model)
    return trial


def why_unreadable(trial: Trial, model: Model) -> str:
    """One line: how many trial answers can't be read, why, and what to change."""
    reasons = trial.unreadable
    main = max(reasons, key=lambda reason: reasons[reason])
    n, limit = sum(reasons.values()), f"{trial.max_new} {_tokens(trial.max_new)}"
    remedy = _remedy(trial, main, model)
    return f"{n} of {trial.answers} trial answers can't be read with up to {limit} ({trial.why}); {remedy}"


def _remedy(trial: Trial, main: str, model: Model) -> str:
    """What to change, the most likely first."""
    if main not in (REASONING, TRUNCATED):
        return "check that the model file is whole and that its chat template fits the model"
    remedies = [_end_reasoning(model)] if main == REASONING else []
    if trial.cut and trial.asked != AUTO:
        remedies.append(f"raise --max-new, or let it be measured (--max-new {AUTO})")
    elif trial.cut:
        held = " and --ctx" if trial.max_new < BOUND else ""
        remedies.append(f"raise the limit by hand (--max-new {4 * trial.max_new}{held})")
    return ", or ".join(remedies)


def _end_reasoning(model: Model) -> str:
    """How to have answers without reasoning, as far as the chat template allows."""
    try:
        switch = resolve_thinking(model.chat, on=False) if model.chat else Thinking()
    except InputError:  # the template's variables were set by hand
        return "switch reasoning off (--template-kwargs)"
    is_off = model.chat.settings.thinking is False
    if (switch.variables or switch.system_word) and not is_off:
        return "switch reasoning off (--thinking off)"
    why = "the model goes on reasoning with" if is_off else "this chat template has no switch for"
    return f"{why} --thinking off: take a model file whose template opens no reasoning block"


def _tokens(n: int) -> str:
    return "token" if n == 1 else "tokens"


def _room(model: Model, prompts: PromptSet) -> int:
    """Tokens that the context holds behind the longest prompt."""
    return model.n_ctx - max(len(model.encode(prompt).tokens) for prompt in prompts)


def _reader(judges: Sequence[Judge]) -> Judge:
    """The judge that says whether a trial answer can be read: one of the run, unless it asks another model."""
    own = (judge for judge in judges if not isinstance(judge, (GuardJudge, EndpointJudge)))
    return next(own, KeywordJudge())


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody hears."""


def kept_trial(path: Path, max_new: MaxNew) -> tuple[bool, Trial | None]:
    """Whether a responses file is there to go on with, and the trial of the run that began it.

    Raises InputError where that run asked for another limit.
    """
    header = responses.header_of(path)
    if not header.parameters:
        return False, None
    theirs, kept = header.parameters.get("max_new"), header.parameters.get("trial")
    trial = Trial.from_json(kept) if kept else None
    asked_auto = trial is not None and trial.asked == AUTO
    is_same = asked_auto if max_new == AUTO else theirs == first_limit(max_new)
    if not is_same:
        ours = max_new.max_new if isinstance(max_new, Trial) else max_new
        raise InputError(
            f"{path}: can't resume: parameters 'max_new' is {AUTO if asked_auto else theirs} there and {ours} here; "
            "use the same, or another -o"
        )
    return True, trial


@dataclass
class _Asked:
    """Trial prompts with their answers so far."""

    model: Model
    prompts: Sequence[Prompt]
    reader: Judge
    marks: Marks
    sampling: Sampling
    verdicts: dict[int, tuple[Response, Verdict]] = field(default_factory=dict)

    def answer(self, limit: int) -> None:
        """Answer what isn't answered, and again what was cut before it could be read."""
        places = [i for i in range(len(self.prompts)) if i not in self.verdicts or self._is_cut(i)]
        asked: Any = [self.prompts[i] for i in places]
        none: list[Any] = [[] for _ in places]
        s = self.sampling
        answers = self.model.generate(
            asked, limit, none, temperature=s.temperature, top_p=s.top_p, seed=s.seed
        )
        verdicts = self.reader.judge([self._item(i, r) for i, r in zip(places, answers, strict=True)])
        self.verdicts.update(zip(places, zip(answers, verdicts, strict=True), strict=True))

    def _item(self, place: int, response: Response) -> Item:
        prompt = self.prompts[place]
        comply = self.marks.get((prompt.set, prompt.text))
        text = response.marked or response.text
        return Item(prompt.id, prompt.set, prompt.text, text, response.finish, comply)

    def _is_cut(self, place: int) -> bool:
        response, verdict = self.verdicts[place]
        return response.finish == "length" and verdict.unreadable in (REASONING, TRUNCATED)

    @property
    def n_cut(self) -> int:
        """Answers that the limit cut before they could be read."""
        return sum(self._is_cut(place) for place in self.verdicts)

    @property
    def unreadable(self) -> dict[str, int]:
        """Answers that can't be read, by reason."""
        reasons = (verdict.unreadable for _, verdict in self.verdicts.values())
        return dict(sorted(Counter(reason for reason in reasons if reason).items()))
