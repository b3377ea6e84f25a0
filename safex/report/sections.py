"""The page: its head, and the sections that each kind of result file gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safex.expert_set import ExpertSet

from .activation import ExpertMap, Mark, expert_map
from .audit_section import Banner, banner, run_section, verdict_section
from .comparison_tables import comparison_figure, comparison_tables, facts, prompts_line
from .content import Block, Map, Prose, Section
from .divergence import divergences
from .evaluation_section import evaluation_section
from .figures import cluster_figure, divergence_figure, set_styles, stability_figures
from .methods import methods_section, sources_section
from .panels import Figure
from .probing_section import probing_sections
from .redundancy_section import redundancy_section
from .set_tables import cluster_table, controls_table, group_table
from .sources import PROFILE, Source, Sources, model_facts
from .sweep_section import sweep_section
from .values import items, listing, number, part, plural

MAP_CAPTION = (
    "One cell an expert: column its number, row its layer (GGUF block index; blocks without experts are left out). "
    "A set shows the activation, the share of tokens for which the router selects the expert; a difference shows one "
    "set's activation minus the other's. Symbols mark the groups; click a name in the legend to hide its symbols, "
    "click a cell to keep its numbers below."
)


AUDITS = ("verdict", "probing", "evaluation", "sweep", "redundancy")  # more than how experts are selected


@dataclass(frozen=True)
class Page:
    """All that is on the page. ``models`` are rows (name, architecture, quantization, fingerprint, files)."""

    title: str
    models: list[tuple[str, str, str, str, str]]
    conclusions: list[tuple[str, str]]  # file, sentences
    warnings: list[str]
    sections: list[Section]
    verdict: Banner | None = None

    @property
    def has_map(self) -> bool:
        """Whether an expert can be shown on a map."""
        return any(isinstance(block, Map) for section in self.sections for block in section.blocks)


def build_page(sources: Sources, title: str | None = None) -> Page:
    """Put the page together."""
    models = _models(sources)
    name = next((model[0] for model in models if model[0]), "")
    what = "Safety audit" if any(map(sources.of, AUDITS)) else "Expert routing"
    sections = [section for build in BUILDERS.values() for section in build(sources)]
    sections += [methods_section(sources), sources_section(sources)]
    return Page(
        title or (f"{what} of {name}" if name else what),
        models,
        _conclusions(sources),
        sources.warnings + _comparison_warnings(sources),
        sections,
        next((banner(source.content) for source in sources.of("verdict")), None),
    )


# --- head


def _models(sources: Sources) -> list[tuple[str, str, str, str, str]]:
    found: dict[str, tuple[str, str, str, str, list[str]]] = {}
    for source in sources.files:
        for model in _models_of(source):
            row = tuple(
                _text(model.get(key)) for key in ("name", "architecture", "quant_types", "fingerprint")
            )
            name, architecture, quant, fingerprint = row
            if any(row):
                known = found.setdefault(
                    fingerprint or "/".join(row), (name, architecture, quant, fingerprint, [])
                )
                known[4].append(source.path.name)
    return [(*row[:4], listing(dict.fromkeys(row[4]))) for row in found.values()]


def _models_of(source: Source) -> list[dict[str, Any]]:
    if source.kind == PROFILE:
        return [model_facts(source.content.meta)]
    if source.experts is not None:
        return [source.experts.model]
    return [part(source.content, side) for side in ("a", "b")]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _conclusions(sources: Sources) -> list[tuple[str, str]]:
    contents = [(s, s.content) for s in sources.files if s.kind not in (PROFILE, "verdict")]
    texts = [(s, c.conclusion if isinstance(c, ExpertSet) else c.get("conclusion")) for s, c in contents]
    return [(s.path.name, str(text)) for s, text in texts if text]


def _comparison_warnings(sources: Sources) -> list[str]:
    return [
        f"{source.path.name}: {warning}"
        for source in sources.of("comparison")
        for warning in items(source.content.get("warnings"))
    ]


# --- profiles


def _profile_sections(sources: Sources) -> list[Section]:
    profiles = sources.of(PROFILE)
    if not profiles:
        return []
    maps = [expert_map(label, p.content, _marks(sources, p)) for label, p in labelled(profiles)]
    heatmap = Section("map", "Experts of each layer", [Map(MAP_CAPTION, maps)])
    figures = [_divergence(p, of, len(profiles) > 1) for p, of in zip(profiles, maps, strict=True)]
    blocks: list[Block] = [figure for figure in figures if figure]
    return [heatmap, Section("layers", "Where routing differs", blocks)] if blocks else [heatmap]


def numbered(files: list[Source]) -> list[tuple[Source, str, str]]:
    """The files with number and label; both are empty where there is one file."""
    if len(files) == 1:
        return [(files[0], "", "")]
    return [(source, str(i), label) for i, (label, source) in enumerate(labelled(files), 1)]


def labelled(files: list[Source]) -> list[tuple[str, Source]]:
    """The files under distinct labels."""
    taken: dict[str, int] = {}
    labelled = []
    for source in files:
        n = taken[source.label] = taken.get(source.label, 0) + 1
        labelled.append((source.label if n == 1 else f"{source.label} ({n})", source))
    return labelled


def _marks(sources: Sources, profile: Source) -> list[Mark]:
    sets = labelled(sources.sets_on(profile))
    marks: list[Mark] = []
    for label, source in sets:
        phase = source.content.parameters.get("phase")
        for name, entries in source.content.entries.items():
            shown = f"{label}: {name}" if len(sets) > 1 else name
            marks.append(Mark(shown, len(marks), entries, phase))
    return marks


def _divergence(profile: Source, of: ExpertMap, many: bool) -> Figure | None:
    by_phase = {phase: divergences(profile.content, of, phase) for phase in profile.content.phases}
    return divergence_figure(by_phase, of.layers, of.label if many else "")


# --- expert sets


def _expert_set_sections(sources: Sources) -> list[Section]:
    return [
        section
        for source, number_, label in numbered(sources.of("expert_set"))
        for section in _set_sections(source.content, number_, label)
    ]


def _set_sections(experts: ExpertSet, number_: str, label: str) -> list[Section]:
    tail, file = (f"-{number_}", f"-{label}") if number_ else ("", "")
    controls = controls_table(experts)
    clusters = experts.clusters or {}
    found = [cluster_figure(clusters, f"clusters{file}"), cluster_table(clusters)]
    sections = [
        Section(f"groups{tail}", "Groups of experts", _group_blocks(experts)),
        Section(f"controls{tail}", "Controls", [controls] if controls else []),
        Section(f"stability{tail}", "Stability", [*stability_figures(experts.curves, f"stability{file}")]),
        Section(f"clusters{tail}", "Clusters", [*_cluster_prose(clusters), *(b for b in found if b)]),
    ]
    named = (Section(s.anchor, f"{s.title}: {label}" if label else s.title, s.blocks) for s in sections)
    return [section for section in named if section.blocks]


def _group_blocks(experts: ExpertSet) -> list[Block]:
    tables = [group_table(name, entries) for name, entries in experts.entries.items()]
    phase = experts.parameters.get("phase")
    prose = (
        f"The experts of each group, best first. p is the activation{f' in phase {phase}' if phase else ''}, below "
        "it its bootstrap interval. Click a column's name to sort by it."
    )
    empty = [table.caption for table in tables if not table.rows]
    filled: list[Block] = [table for table in tables if table.rows]
    texts = ([prose] if filled else []) + [f"{caption}." for caption in empty]
    return [Prose(texts), *filled] if texts else []


def _cluster_prose(clusters: dict[str, Any]) -> list[Block]:
    out = part(clusters, "left_out")
    n = number(out.get("experts"))
    left_out = f"{plural(int(n), 'expert')} left out: {out.get('why', '')}".rstrip(": ") + "." if n else ""
    texts = [str(text) for text in (clusters.get("note"), left_out) if text]
    return [Prose(texts)] if texts else []


# --- probings, evaluations, sweeps, redundancy curves


def _probing_sections(sources: Sources) -> list[Section]:
    return [
        section
        for source, number_, label in numbered(sources.of("probing"))
        for section in probing_sections(source.content, number_, label)
    ]


def _evaluation_sections(sources: Sources) -> list[Section]:
    return [
        evaluation_section(source.content, number_, label)
        for source, number_, label in numbered(sources.of("evaluation"))
    ]


def _sweep_sections(sources: Sources) -> list[Section]:
    return [
        sweep_section(source.content, number_, label)
        for source, number_, label in numbered(sources.of("sweep"))
    ]


def _redundancy_sections(sources: Sources) -> list[Section]:
    return [
        redundancy_section(source.content, number_, label)
        for source, number_, label in numbered(sources.of("redundancy"))
    ]


# --- comparisons


def _comparison_sections(sources: Sources) -> list[Section]:
    return [
        _comparison_section(source.content, number_, label)
        for source, number_, label in numbered(sources.of("comparison"))
    ]


def _comparison_section(comparison: dict[str, Any], number_: str, label: str) -> Section:
    sides = [
        f"{side.upper()}: {facts(part(comparison, side))}." for side in ("a", "b") if comparison.get(side)
    ]
    texts = [text for text in (*sides, prompts_line(comparison)) if text]
    figure = comparison_figure(comparison, f"comparison-{label}" if label else "comparison", set_styles([]))
    blocks: list[Block] = [Prose(texts), *comparison_tables(comparison), *([figure] if figure else [])]
    anchor = f"comparison-{number_}" if number_ else "comparison"
    return Section(anchor, f"Comparison: {label}" if label else "Comparison", blocks)


# --- audits


def _verdict_sections(sources: Sources) -> list[Section]:
    return [verdict_section(source.content) for source in sources.of("verdict")]


def _manifest_sections(sources: Sources) -> list[Section]:
    return [run_section(source.content) for source in sources.of("manifest")]


BUILDERS: dict[str, Callable[[Sources], list[Section]]] = {
    "verdict": _verdict_sections,
    PROFILE: _profile_sections,
    "expert_set": _expert_set_sections,
    "probing": _probing_sections,
    "evaluation": _evaluation_sections,
    "sweep": _sweep_sections,
    "redundancy": _redundancy_sections,
    "comparison": _comparison_sections,
    "manifest": _manifest_sections,
}
