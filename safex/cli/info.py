"""``safex-native info``: what a model file or a profile file holds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from safex.errors import InputError

from .experts_table import (
    add_table_options,
    experts_heading,
    experts_table,
    most_selected,
    sets_table,
    tokens_by_set,
)
from .export import add_export_options, check_export, export, wants_export
from .options import MODEL_HELP, add_model_options, open_model
from .output import Output, number, ranges, size, table
from .progress import make_progress

if TYPE_CHECKING:
    from safex.chat import ChatTemplate
    from safex.model import Model
    from safex.profile import Profile

USAGE = "FILE [options]"
DESCRIPTION = "What a model file holds: its experts, its routers, its template; or what a profile file holds."
EXAMPLE = """\
  safex-native info demo
  safex-native info model.gguf --json
  safex-native info demo.profile.gguf --phase suffix
  safex-native info demo.profile.gguf --csv tables"""
NO_TEMPLATE = (
    "this model has no chat template: prompts are shown to it as plain text, "
    "and how it refuses then says little about how it refuses in a chat"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("file", metavar="FILE", help=f"{MODEL_HELP}; or a FILE.profile.gguf")
    add_table_options(parser)
    add_export_options(parser)
    parser.add_argument("--force", action="store_true", help="replace exported tables if they exist")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Tell a model from a profile and describe it."""
    from safex.profile_file import is_profile

    out = Output(args)
    if args.file.endswith(".profile.gguf") or is_profile(args.file):
        describe_profile(args, out)
    else:
        describe_model(args, out)
    return 0


# --- models


def describe_model(args: argparse.Namespace, out: Output) -> None:
    """Load the model and print its facts."""
    if wants_export(args):
        raise InputError(f"{args.file}: only a profile has tables for --csv and --parquet, this is a model")
    args.model = args.file
    progress = make_progress(args.file, out.quiet)
    with progress, open_model(args, progress.loading, needs_experts=False, is_shown_prompts=False) as model:
        facts = model_facts(model)
    out.text(table(["", ""], _model_rows(facts)))
    if not facts["chat_template"]:
        out.note(f"note: {NO_TEMPLATE}")
    for note in (facts["chat"] or {}).get("notes", ()):
        out.note(f"note: {note}")
    out.result(facts)


def model_facts(model: Model) -> dict[str, Any]:
    """All that is known of a model, as plain values."""
    from safex import __version__, library
    from safex.model_file import shards

    metadata = dict(sorted(model.facts.metadata))
    files = shards(model.path)
    return {
        "kind": "model",
        "path": str(model.path),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "name": model.facts.name,
        "description": metadata.get("general.description"),
        "architecture": model.facts.architecture,
        "quant_type": model.quant_type,
        "parameters": model.facts.n_params,
        "blocks": model.facts.n_blocks,
        "width": model.facts.n_embd,
        "vocabulary": model.facts.n_vocab,
        **_router_facts(model, metadata),
        "context_trained": model.facts.n_ctx_train,
        "chat_template": model.facts.chat_template or None,
        "reasoning_formats": model.reasoning_formats,
        "chat": chat_facts(model.chat),
        "devices": model.session.devices,
        "fingerprint": model.fingerprint,
        "tool_version": __version__,
        "upstream_id": library.UPSTREAM_ID,
        "llama_library": library.native().llama_library_path(),
        "metadata": metadata,
    }


def chat_facts(chat: ChatTemplate) -> dict[str, Any] | None:
    """What the chat template does with the settings; with "problem" where it can't show a prompt. None without one."""
    if not chat:
        return None
    from safex.chat_settings import CHAT_KEYS

    facts: dict[str, Any] = {
        "problem": None,
        "variables": [],
        "switches": {},
        "shows_date": False,
        "notes": [],
    }
    try:
        facts["variables"] = chat.readable_variables
        chat.check()
        facts["switches"] = chat.thinking_switches()
        facts["shows_date"] = chat.uses_date
        facts["notes"] = chat.notes()
    except InputError as error:
        facts["problem"] = str(error)
    described = chat.describe()
    shown = {key.removeprefix("chat."): described.get(key) for key in CHAT_KEYS}
    return {**facts, **shown, "template_hash": described["template_hash"]}


GATING = {"1": "softmax", "2": "sigmoid", "3": "softmax over the selected"}


def _router_facts(model: Model, metadata: dict[str, str]) -> dict[str, Any]:
    def of_architecture(key: str) -> str | None:
        return metadata.get(f"{model.facts.architecture}.{key}")

    router = next((router for router in model.facts.routers if router.n_groups > 1), None)
    # One that is as wide as several, as in Qwen2-MoE, has no count.
    shared = int(of_architecture("expert_shared_count") or 0)
    shared = shared or int(int(of_architecture("expert_shared_feed_forward_length") or 0) > 0)
    gating = of_architecture("expert_gating_func")
    return {
        "dense": not model.layers,
        "layers": model.layers,
        "experts": model.n_experts,
        "top_k": model.top_k,
        "top_k_of_layers": model.top_k_of_layers,
        "groups": router.n_groups if router else None,
        "groups_used": router.n_groups_used if router else None,
        "shared_experts": shared or None,
        "gating": GATING.get(gating, gating) if gating else None,
    }


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    parts = f" in {facts['files']} files" if facts["files"] > 1 else ""
    rows = [
        ("file", facts["path"]),
        ("name", facts["name"]),
        ("description", facts["description"]),
        ("architecture", facts["architecture"]),
        ("quantization", facts["quant_type"]),
        ("parameters", number(facts["parameters"])),
        ("size", size(facts["bytes"]) + parts),
        *_expert_rows(facts),
        ("context trained", f"{number(facts['context_trained'])} tokens"),
        ("reasoning formats", ", ".join(facts["reasoning_formats"])),
        *_chat_rows(facts["chat"]),
        ("devices", facts["devices"]),
        ("fingerprint", facts["fingerprint"]),
        ("safex-native", facts["tool_version"]),
        ("llama.cpp", facts["upstream_id"]),
        ("llama library", facts["llama_library"]),
    ]
    shown = {"general.name", "general.description", "general.architecture", "general.file_type"}
    general = [
        (key, value)
        for key, value in facts["metadata"].items()
        if key.startswith("general.") and key not in shown
    ]
    return [(name, value) for name, value in rows + general if value]


def _chat_rows(chat: dict[str, Any] | None) -> list[tuple[str, str]]:
    if chat is None:
        return [("chat template", "NONE: refusals are not representative")]
    switches = chat["switches"].items()
    thinking = "; ".join(f"{name}: {what or 'nothing'}" for name, what in switches)
    if not any(what for _, what in switches):
        thinking = "" if chat["problem"] else "no effect: the template has no switch for it"
    return [
        ("chat template", f"FAILS: {chat['problem']}" if chat["problem"] else "yes"),
        ("template variables", ", ".join(chat["variables"])),
        ("--thinking", thinking),
        ("date in prompts", "yes, --date fixes it" if chat["shows_date"] else ""),
    ]


def _expert_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if facts["dense"]:
        return [("blocks", str(facts["blocks"])), ("experts", "no routed experts (dense)")]
    layers, top_k = facts["layers"], facts["top_k_of_layers"]
    same = len(set(top_k)) == 1
    groups = (
        f"{facts['groups']}, of which {facts['groups_used']} are open to a token" if facts["groups"] else ""
    )
    return [
        ("blocks", str(facts["blocks"])),
        ("layers with experts", f"{ranges(layers)} ({len(layers)} of {facts['blocks']} blocks)"),
        ("experts per layer", str(facts["experts"])),
        ("selected per token", str(top_k[0]) if same else ", ".join(map(str, top_k)) + " by layer"),
        (
            "shared experts",
            f"{facts['shared_experts']}, always on and never counted" if facts["shared_experts"] else "",
        ),
        ("gating", facts["gating"] or ""),
        ("expert groups", groups),
    ]


# --- profiles


def describe_profile(args: argparse.Namespace, out: Output) -> None:
    """Read the profile and print what it holds."""
    from safex.profile import Profile
    from safex.tables import PROFILE_TABLES, profile_tables

    check_export(args, PROFILE_TABLES)
    profile = Profile.load(args.file)
    profile.phase(args.phase)
    facts = profile_facts(profile, args)
    if wants_export(args):
        facts["tables"] = export(args, profile_tables(profile), out)
    out.text(table(["", ""], _profile_rows(facts)))
    out.text(sets_table(facts["sets"]))
    out.text(experts_heading(args.phase), experts_table(facts["most_selected"]))
    out.result(facts)


def profile_facts(profile: Profile, args: argparse.Namespace) -> dict[str, Any]:
    """All that a profile says of itself, as plain values."""
    return {
        "kind": "profile",
        "path": args.file,
        "prompts": len(profile.sets),
        "sets": tokens_by_set(profile),
        "phases": list(profile.phases),
        "layers": profile.layers,
        "experts": profile.n_experts,
        "top_k_of_layers": profile.top_k,
        "metadata": profile.meta,
        "phase": args.phase,
        "most_selected": most_selected(profile, args.phase, args.top),
    }


def _profile_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    meta = facts["metadata"]
    top_k = sorted(set(facts["top_k_of_layers"]))
    return [
        ("file", facts["path"]),
        ("prompts", number(facts["prompts"])),
        ("phases", ", ".join(facts["phases"])),
        ("layers with experts", ranges(facts["layers"])),
        ("experts per layer", str(facts["experts"])),
        ("selected per token", " or ".join(map(str, top_k))),
        *((key, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for key, v in meta.items()),
    ]
