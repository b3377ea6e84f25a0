"""What a probe is to tell apart: prompts of some sets from prompts of others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from safex.errors import InputError
from safex.prompts import SETS

REGULAR, JAILBREAK, BENIGN = SETS


@dataclass(frozen=True)
class Task:
    """Sets whose prompts are positive, and sets whose prompts are negative.

    Probes of the task are also tried on the positive sets ``transfer``, of which they have seen no prompt.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    transfer: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words."""
        return f"{' and '.join(self.positive)} against {' and '.join(self.negative)}"

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that probes are trained on."""
        return self.positive + self.negative


TASKS = {
    task.name: task
    for task in (
        Task("harmful", (REGULAR, JAILBREAK), (BENIGN,)),
        Task("regular-benign", (REGULAR,), (BENIGN,), (JAILBREAK,)),
        Task("regular-jailbreak", (REGULAR,), (JAILBREAK,)),
    )
}
_SPEC = re.compile(r"([^:+]+(?:\+[^:+]+)*):([^:+]+(?:\+[^:+]+)*)")


def parse_task(text: str) -> Task:
    """A task by name, or as ``POSITIVE+POSITIVE:NEGATIVE``. Raises InputError.

    >>> str(parse_task("regular+jailbreak:benign"))
    'regular and jailbreak against benign'
    """
    if text in TASKS:
        return TASKS[text]
    match = _SPEC.fullmatch(text)
    if not match:
        raise InputError(
            f"task {text!r}: expected one of {', '.join(TASKS)}, or sets such as {REGULAR}+{JAILBREAK}:{BENIGN}"
        )
    positive, negative = (tuple(side.split("+")) for side in match.groups())
    names = positive + negative
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"task {text!r} names set {twice!r} twice")
    return Task(text, positive, negative)


def choose_tasks(names: Sequence[str] | None, sets: Sequence[str]) -> list[Task]:
    """The tasks asked for, or those of ``TASKS`` that prompts of these sets allow. Raises InputError.

    The sets of ``transfer`` that there are no prompts of are left out.
    """
    held = list(dict.fromkeys(sets))
    if isinstance(names, str):
        raise InputError(f"tasks is the text {names!r}, expected a list: [{names!r}]")
    tasks = (
        [task for task in TASKS.values() if set(task.sets) <= set(held)]
        if names is None
        else [parse_task(name) for name in dict.fromkeys(names)]
    )
    if not tasks:
        raise InputError(
            f"the prompts are of {_sets(held)}: a probe needs two kinds of prompts to tell apart, such as {REGULAR} "
            f"and {BENIGN}; dump both"
            + (f", or name a task such as {held[0]}:{held[1]}" if len(held) > 1 else "")
        )
    for task in tasks:
        missing = [name for name in task.sets if name not in held]
        if missing:
            raise InputError(f"task {task.name!r} needs set {missing[0]!r}, the features hold {_sets(held)}")
    return [
        Task(t.name, t.positive, t.negative, tuple(name for name in t.transfer if name in held))
        for t in tasks
    ]


def _sets(names: Sequence[str]) -> str:
    return f"set{'s' * (len(names) > 1)} {', '.join(names)}"
