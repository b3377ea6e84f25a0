"""``safex-native identify``: find the experts that safety behaviour may hang on, with controls."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .export import add_export_options, check_export, export
from .options import PHASES, add_seed_option, new_file
from .output import Output, table
from .parser import not_negative, positive, share
from .progress import make_steps

if TYPE_CHECKING:
    from rich.table import Table

    from safex.expert_set import Entry, ExpertSet

USAGE = "PROFILE [options]"
DESCRIPTION = """\
Stability-based Expert Selection: which experts are among the most selected in every bootstrap resample of the
prompts, on regular and jailbreak prompts (id) or on regular prompts alone (ctrl); or, with --method contrast, which
are selected more on one set than on another. What shuffled labels and halves of the prompts give stands beside it."""
EXAMPLE = """\
  safex-native identify demo.profile.gguf
  safex-native identify demo.profile.gguf --phase suffix --method contrast -o experts.json
  safex-native identify big.profile.gguf --top 40 --stability 0.95 --cluster --csv tables"""
SHOWN = 40  # experts of a group in the printed table; the file holds all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("profile", metavar="PROFILE", help="a file made by `safex-native profile`")
    add(
        "-o",
        "--output",
        metavar="OUT",
        help="the expert-set file (default: PROFILE's name + .experts.json, here)",
    )
    add("--force", action="store_true", help="replace OUT and exported tables if they exist")
    add(
        "--phase",
        choices=PHASES,
        default="prompt",
        help="which tokens count: prompt = all of the prompt, suffix = those after the user's text, response = "
        "generated ones (default prompt)",
    )
    add(
        "--method",
        choices=("ses", "contrast"),
        default="ses",
        help="ses = stable in the top list, as in the paper; contrast = differences between sets (default ses)",
    )
    add(
        "--rank",
        choices=("global", "layer"),
        default="global",
        help="one top list, or one a layer (default global)",
    )
    add(
        "--top",
        type=positive,
        metavar="N",
        help="length of the top list (default: 1 %% of all experts, at least 8; with --rank layer, the layer's top-k)",
    )
    add(
        "--bootstrap",
        type=positive,
        default=1000,
        metavar="S",
        help="resamples of the prompts (default 1000)",
    )
    add(
        "--stability",
        type=share,
        default=1.0,
        metavar="F",
        help="share of the resamples in which a stable expert is in the top list (default 1.0, the paper's rule)",
    )
    add(
        "--subset",
        type=share,
        default=1.0,
        metavar="F",
        help="share of the prompts a resample draws (default 1.0)",
    )
    add(
        "--fdr", type=share, default=0.05, metavar="Q", help="false-discovery rate of contrast (default 0.05)"
    )
    add(
        "--permutations",
        type=not_negative,
        default=200,
        metavar="B",
        help="shuffles of the labels (default 200)",
    )
    add(
        "--splits",
        type=not_negative,
        default=20,
        metavar="R",
        help="splits of the prompts in halves (default 20)",
    )
    add_seed_option(parser, "file")
    add("--cluster", action="store_true", help="also cluster the experts by the prompts that drive them")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all of them)")
    add_export_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, compute, write, print."""
    from safex.profile import Profile

    out = Output(args)
    profile = Profile.load(args.profile)
    output = new_file(args.output, default_output(args.profile), args.force, inputs=[args.profile])
    check_export(args, ["groups"])
    experts = find(args, profile)
    experts.save(output)
    print_set(out, experts)
    export(args, _tables(experts), out)
    out.text(f"Expert set: {output}", f"Next: safex-native report {args.profile} {output}")
    out.result({"output": str(output), **experts.to_json()})
    return 0


def default_output(profile: str) -> Path:
    """The profile's name with another ending, in the current folder."""
    name = Path(profile).name
    return Path(name.removesuffix(".gguf").removesuffix(".profile") + ".experts.json")


def find(args: argparse.Namespace, profile: Any) -> ExpertSet:
    """Run ``safex.identify`` as the options say."""
    import safex

    with make_steps(args.quiet) as steps:
        return safex.identify(
            profile,
            top=args.top,
            bootstrap=args.bootstrap,
            stability=args.stability,
            method=args.method,
            seed=args.seed,
            phase=args.phase,
            rank=args.rank,
            subset=args.subset,
            fdr=args.fdr,
            permutations=args.permutations,
            splits=args.splits,
            cluster=args.cluster,
            n_threads=args.threads,
            progress=steps.running,
        )


def _tables(experts: ExpertSet) -> Any:
    from safex.tables import expert_set_tables

    return expert_set_tables(experts)


def print_set(out: Output, experts: ExpertSet) -> None:
    """A table for each group, the controls, the clusters, the conclusion."""
    for group, rows in experts.entries.items():
        out.text(heading(experts, group), *group_tables(rows))
    out.text("Controls", controls_table(experts), baseline_line(experts.controls["baseline"]))
    if experts.clusters is not None:
        out.text("Clusters of experts by what drives them", *cluster_tables(experts.clusters))
    out.text(experts.conclusion or "")


def heading(experts: ExpertSet, group: str) -> str:
    """What a group is."""
    p = experts.parameters
    n = len(experts.entries[group])
    phrases = {
        ("ses", "id"): "stable on regular and on jailbreak prompts",
        ("ses", "ctrl"): "stable on regular but not on jailbreak prompts",
        ("contrast", "id"): "more active on regular and on jailbreak than on benign prompts",
        ("contrast", "ctrl"): "more active on regular than on jailbreak and on benign prompts",
    }
    what = phrases[p["method"], group]
    return f"Group {group}: {n} expert{'' if n == 1 else 's'} {what} (phase {p['phase']}, top {p['top']})"


def group_tables(rows: list[Entry]) -> list[Table | str]:
    """One line an expert."""
    if not rows:
        return ["  none\n"]
    sets = list(rows[0]["activation"])
    columns = ["expert", *(cell for name in sets for cell in (name, "95 %")), "frequency", "score"]
    last = [(title, key) for title, key in (("p", "p_value"), ("specific", "specific")) if key in rows[0]]
    body = [
        [
            f"{row['layer']}:{row['expert']}",
            *_set_cells(row, sets),
            f"{row['frequency']:.3f}",
            f"{row['score']:.4f}",
        ]
        + [_last_cell(row[key]) for _, key in last]
        for row in rows[:SHOWN]
    ]
    made = table(columns + [title for title, _ in last], body, right=range(1, len(columns) + len(last)))
    left = len(rows) - SHOWN
    return [made, f"  and {left} more in the file\n"] if left > 0 else [made]


def _last_cell(value: float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.2g}"


def _set_cells(row: Entry, sets: list[str]) -> list[str]:
    cells = []
    for name in sets:
        low, high = row["interval"][name]
        cells += [f"{row['activation'][name]:.1%}", f"{100 * low:.1f}-{100 * high:.1f}"]
    return cells


def controls_table(experts: ExpertSet) -> Table:
    """What chance gives, and how far halves of the prompts agree."""
    controls = experts.controls
    names = {"id_specific": "id, above benign", "ctrl_specific": "ctrl, above jailbreak"}
    body = []
    for group, null in controls["null"]["groups"].items():
        half = controls["split_half"]["groups"].get(group)
        hot = controls.get("hot_everywhere", {}).get("share", {}).get(group)
        body.append(
            [
                names.get(group, group),
                str(null["observed"]),
                ""
                if null["p_value"] is None
                else f"{null['median']} ({null['interval'][0]}-{null['interval'][1]})",
                "" if null["p_value"] is None else f"{null['p_value']:.3f}",
                "" if half is None else _jaccard(half),
                "" if hot is None else f"{hot:.0%}",
            ]
        )
    columns = ["group", "experts", "shuffled labels", "p", "Jaccard of halves", "also hot in benign"]
    return table(columns, body, right=range(1, len(columns)))


def baseline_line(baseline: list[float]) -> str:
    """What an even choice would give."""
    low, high = min(baseline), max(baseline)
    span = f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}, by layer"
    return f"Activation of every expert if the router chose evenly (k / E): {span}\n"


def _jaccard(half: dict[str, Any]) -> str:
    if half["median"] is None:
        return "both empty" if half["undefined"] else ""
    low, high = half["interval"]
    return f"{half['median']:.2f} ({low:.2f}-{high:.2f})"


def cluster_tables(clusters: dict[str, Any]) -> list[Table | str]:
    """One line a cluster, or the sentence that there are none."""
    body = [
        [
            str(cluster["cluster"]),
            str(cluster["size"]),
            ", ".join(f"{row['set']} {row['z']:+.2f}" for row in cluster["sets"]),
            ", ".join(f"{row['set']}/{row['category']} {row['z']:+.2f}" for row in cluster["categories"][:3]),
        ]
        for cluster in clusters["clusters"]
    ]
    made = [table(["cluster", "experts", "mean z by set", "categories that drive it"], body, right=[0, 1])]
    return [*(made if body else []), clusters["note"] + "\n"]
