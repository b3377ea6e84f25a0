"""What probes read from experts' outputs, as sections: what holds, each task, how the sets lie on a plane."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .content import Block, Prose, Section, Table
from .panels import Figure
from .probing_figures import curve_figure, layers_figure, plane_figure, probes_figure, transfer_figure
from .probing_tables import (
    Probing,
    Task,
    controls_table,
    curve_table,
    evidence_table,
    experts_table,
    layers_table,
    probes_table,
    transfer_table,
)
from .values import fixed, items, listing, number, part, plural, rows

CAVEAT = (
    "A probe shows what can be read from an expert's output, not that the model uses it: masks test that "
    "(eval, sweep)."
)


def probing_sections(probing: Probing, number_: str = "", label: str = "") -> list[Section]:
    """What holds, then a section a task, then the plane; ``number_`` and ``label`` tell several probings apart."""
    tail, file = (f"-{number_}", f"-{label}") if number_ else ("", "")
    tasks = zip(rows(probing.get("tasks")), _task_names(probing), strict=True)
    sections = [
        Section(f"probing{tail}", "What probes read", _overview(probing)),
        *(
            Section(f"probing{tail}-task-{i}", f"Probes: {sides(task)}", _task_blocks(task, f"{name}{file}"))
            for i, (task, name) in enumerate(tasks, 1)
        ),
        Section(f"probing{tail}-plane", "Features on a plane", _some(plane_figure(probing, f"plane{file}"))),
    ]
    named = (Section(s.anchor, f"{s.title}: {label}" if label else s.title, s.blocks) for s in sections)
    return [section for section in named if section.blocks]


def _task_names(probing: Probing) -> list[str]:
    """Distinct names, for pictures."""
    names = [str(task.get("task", "")) for task in rows(probing.get("tasks"))]
    several = Counter(names)
    return [name if several[name] == 1 else f"{name}-{i}" for i, name in enumerate(names, 1)]


def sides(task: Task) -> str:
    """What is told apart, in words."""
    named = [" and ".join(map(str, items(task.get(side)))) for side in ("positive", "negative")]
    return " against ".join(named) if all(named) else str(task.get("task", ""))


def _some(*blocks: Figure | Table | None) -> list[Block]:
    """Those that the file has numbers for."""
    return [block for block in blocks if isinstance(block, Figure) or (block and block.rows)]


# --- what holds


def _overview(probing: Probing) -> list[Block]:
    texts = [_features(part(probing, "features")), CAVEAT]
    notes = [f"Note: {note}" for note in items(probing.get("notes"))]
    return [Prose([text for text in [*texts, *notes] if text]), *_some(evidence_table(probing))]


def _features(features: dict[str, Any]) -> str:
    """What was probed, on which prompts."""
    if not features:
        return ""
    n, prompts = number(features.get("n_experts")), part(features, "prompts")
    whose = f"outputs of {plural(int(n), 'expert')}" if n else "outputs of experts"
    how = listing(f"{key} {features[key]}" for key in ("pool", "phase", "routing") if features.get(key))
    on = listing(f"{fixed(count, 0)} {name}" for name, count in prompts.items())
    return f"Features: {whose} ({how}){f'; prompts: {on}' if prompts else ''}."


# --- a task


def _task_blocks(task: Task, name: str) -> list[Block]:
    """Words, then figures, each with the tables of its numbers behind it."""
    texts = [_prompts(task), *conclusions(task)]
    return [
        Prose([text for text in texts if text]),
        *_some(probes_figure(task, f"probes-{name}"), probes_table(task), controls_table(task)),
        *_some(transfer_figure(task, f"transfer-{name}"), transfer_table(task)),
        *_some(layers_figure(task, f"layers-{name}"), layers_table(task), experts_table(task)),
        *_some(curve_figure(task, f"curve-{name}"), curve_table(task)),
    ]


def conclusions(task: Task) -> list[str]:
    """Each group's, also where nothing was found."""
    return [str(group["conclusion"]) for group in rows(task.get("groups")) if group.get("conclusion")]


def _prompts(task: Task) -> str:
    """How many prompts of each class."""
    n, positive, units = (number(task.get(key)) for key in ("n", "n_positive", "units"))
    if n is None or positive is None:
        return ""
    twins = f"; {plural(int(units), 'prompt')} where twins count once" if units and units < n else ""
    return f"Task {task.get('task', '')}: {plural(int(n), 'prompt')}, {fixed(positive, 0)} positive{twins}."
