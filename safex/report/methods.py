"""What a reader needs to judge and repeat the work: formulas, parameters, versions, commands, input files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from safex.chat_settings import CHAT_KEYS
from safex.expert_set import ExpertSet
from safex.profile import Profile

from .audit_section import run_facts
from .commands import commands
from .content import Block, Column, Commands, Prose, Section, Table, text_cell
from .formulas import formulas
from .sources import NO_TEMPLATE_HASH, PROFILE, TITLES, Source, Sources
from .values import MISSING, items, listing, part, rows


def methods_section(sources: Sources) -> Section:
    """Definitions, then parameters and facts of each file, then commands."""
    tables = [table for kind in TITLES if (table := _facts_table(kind, sources.of(kind))).rows]
    blocks: list[Block] = [
        Prose(formulas(sources)),
        *_prompts_shown(sources),
        *tables,
        Prose(["To repeat this report:"]),
        Commands(commands(sources)),
    ]
    return Section("methods", "Methods", blocks)


def _prompts_shown(sources: Sources) -> list[Block]:
    """What the model was shown in the runs that the files are of: a paragraph for each kind of prompt."""
    files: dict[str, list[str]] = {}
    for source in sources.files:
        facts = FACTS.get(source.kind, lambda _: {})(source.content)
        made = {key: value for name, value in facts.items() for key in PROMPT_FACTS if name.endswith(key)}
        if made.get("template_hash"):
            files.setdefault(what_was_shown(made), []).append(source.path.name)
    lines = [f"{shown} ({listing(names)})" for shown, names in files.items()]
    return [Prose(["What the model was shown:", *lines])] if lines else []


def what_was_shown(facts: dict[str, Any]) -> str:
    """The chat template, and all that it was rendered with, in words.

    >>> what_was_shown({"template_hash": "12ab", "chat.thinking": "off", "chat.date": "2026-11-30"})
    "Prompts in the chat template of the model's file, thinking off, the date 2026-11-30; template hash 12ab"
    """
    system = facts.get("chat.system")
    values = {
        "system message": None if system is None else f"“{system}”",
        "template variables": facts.get("chat.template_kwargs"),
        "thinking": facts.get("chat.thinking"),
        "the date": facts.get("chat.date"),
    }
    given = [f"{name} {value}" for name, value in values.items() if value is not None]
    digest = str(facts["template_hash"])
    if digest == NO_TEMPLATE_HASH:
        return "Prompts as plain text: the model has no chat template"
    template = "Prompts in the chat template of the model's file"
    return f"{', '.join([template, *(given or ['nothing set'])])}; template hash {digest[:12]}"


def sources_section(sources: Sources) -> Section:
    """The input files and their hashes."""
    body = [
        [text_cell(source.path), text_cell(TITLES[source.kind]), text_cell(_digest(source))]
        for source in sources.files
    ]
    columns = [Column("file"), Column("kind"), Column("SHA-256")]
    return Section(
        "sources", "Input files", [Table("What this page was made from.", columns, body, tools=False)]
    )


def _digest(source: Source) -> str:
    """A manifest changes with every stage, that of this page among them."""
    return MISSING if source.kind == "manifest" else source.sha256


def _facts_table(kind: str, files: list[Source]) -> Table:
    """What the files of a kind say of their making, a column each."""
    of = FACTS.get(kind, lambda content: part(content, "parameters"))
    columns = [of(source.content) for source in files]
    names = list(dict.fromkeys(name for facts in columns for name in facts))
    body = [
        [text_cell(name), *(text_cell(_shown(facts.get(name))) for facts in columns)]
        for name in names
        if any(facts.get(name) not in (None, []) for facts in columns)
    ]
    titles = [Column("name"), *(Column(source.path.name) for source in files)]
    return Table(f"Parameters and origin: {TITLES[kind]}", titles, body, tools=False)


def _profile_facts(profile: Profile) -> dict[str, Any]:
    sets = {name: profile.sets.count(name) for name in profile.set_names}
    return {
        "prompts": ", ".join(f"{n:,} {name}" for name, n in sets.items()),
        "phases": list(profile.phases),
        "layers with experts": len(profile.layers),
        "experts per layer": profile.n_experts,
        "top-k": sorted(set(profile.top_k)),
        **profile.meta,
    }


def _expert_set_facts(experts: ExpertSet) -> dict[str, Any]:
    return {**experts.parameters, **{f"profile.{key}": value for key, value in experts.profile.items()}}


def _probing_facts(probing: dict[str, Any]) -> dict[str, Any]:
    model = part(probing, "model")
    return {
        **{f"features.{key}": value for key, value in part(probing, "features").items()},
        **part(probing, "parameters"),
        **{key: model[key] for key in model if key not in SHAPE},
    }


def _evaluation_facts(evaluation: dict[str, Any]) -> dict[str, Any]:
    kinds = Counter(str(row.get("kind", "")) for row in rows(evaluation.get("controls")))
    return {
        **part(evaluation, "parameters"),
        "mask": items(part(evaluation, "mask").get("experts")),
        "control masks": dict(kinds) or None,
        "judges": items(evaluation.get("judges")),
        "responses": evaluation.get("responses"),
        **part(evaluation, "model"),
    }


def _redundancy_facts(found: dict[str, Any]) -> dict[str, Any]:
    return {
        **part(found, "parameters"),
        "order of masking": items(found.get("experts")),
        "control orders": {str(row.get("kind", "")): row.get("n") for row in rows(found.get("controls"))}
        or None,
        "responses": found.get("responses"),
        **part(found, "model"),
    }


def _sweep_facts(sweep: dict[str, Any]) -> dict[str, Any]:
    model = part(sweep, "model")
    return {**part(sweep, "parameters"), **{key: model[key] for key in model if key not in SHAPE}}


PROMPT_FACTS = (*CHAT_KEYS, "template_hash")
SHAPE = ("layers", "n_experts", "top_k", "name", "architecture", "quant_types", "fingerprint")
FACTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    PROFILE: _profile_facts,
    "expert_set": _expert_set_facts,
    "probing": _probing_facts,
    "evaluation": _evaluation_facts,
    "sweep": _sweep_facts,
    "redundancy": _redundancy_facts,
    "manifest": run_facts,
}


def _shown(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return listing(value) if isinstance(value, list) else str(value)
