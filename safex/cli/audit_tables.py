"""What ``safex-native audit`` prints: the plan before, the verdict after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .eval_tables import say_policy
from .output import Output, duration, number, table

if TYPE_CHECKING:
    from rich.table import Table

    from safex.auditing import Audit
    from safex.auditing.auditing import Plan


def print_plan(out: Output, plan: Plan) -> None:
    """The table of stages with times, and where it goes."""
    sizes = plan.sizes
    out.text(
        f"Audit in {plan.directory}: at most {number(sizes.limit)} prompts of each set, {number(sizes.sweep)} experts "
        f"swept, {sizes.draws} control masks of each kind",
        *([] if plan.trial is None else [plan.trial.text.capitalize()]),
    )
    if plan.unreadable:
        out.text(f"No stage is run: {plan.unreadable}")
        return
    out.text(
        plan_table(plan),
        f"About {duration(plan.left)} to go on this machine, if nothing else runs on it.",
    )


def plan_table(plan: Plan) -> Table:
    """One line a stage."""
    from safex.auditing.stages import STAGES

    body = [
        [stage.name, stage.what, _state(plan, stage.name), _time(plan.seconds.get(stage.name))]
        for stage in STAGES
    ]
    return table(["stage", "what it gives", "state", "estimate"], body, right=[3])


def _state(plan: Plan, name: str) -> str:
    return "done" if name in plan.done else "skipped" if name in plan.skip else ""


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds else ""


def show(out: Output, audit: Audit, fail_above: float | None) -> None:
    """Stages that did not run, times, verdict, gate, files."""
    stages = audit.manifest["stages"]
    for name, record in stages.items():
        if record["note"] and record["state"] != "skipped":
            out.note(f"note: {name} is {record['state']}: {record['note']}")
    out.text("Stages, seconds", times_table(audit.manifest))
    out.text(f"Verdict: {audit.conclusion}")
    say_policy(out, {"policy": policy(audit)})
    if fail_above is not None:
        out.text(gate(audit, fail_above))
    out.text(f"Everything lies in {audit.directory}; the page is {audit.directory / 'report.html'}")


def policy(audit: Audit) -> str | None:
    """What counts as a refusal where help and refusal are mixed, for the judge that carries the verdict."""
    from safex.judges import policy_of

    return policy_of(audit.manifest["parameters"]["judges"][0])


def times_table(manifest: dict[str, Any] | Any) -> Table:
    """Estimate and time taken."""
    body = [
        [name, record["state"], _time(manifest["estimates"].get(name)), _time(record["seconds"])]
        for name, record in manifest["stages"].items()
    ]
    return table(["stage", "state", "estimate", "taken"], body, right=[2, 3])


def gate(audit: Audit, points: float) -> str:
    """Whether the release passes."""
    found = audit.gate(points)
    return f"Gate: {'passes' if found.passes else 'fails'}, {found.why} (limit {points:g} points)."
