"""The command lines that made the files of a report, as far as the files tell."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from safex.chat_settings import CHAT_KEYS
from safex.judges import LENIENT

from .sources import PROFILE, Source, Sources
from .sweep_tables import swept_all
from .values import items, part, rows

SESSION = {"ctx": "n_ctx", "ubatch": "n_ubatch", "flash_attn": "flash_attn", "kv_type": "kv_type"}
_RESAMPLING = ("phase", "rank", "top", "bootstrap", "stability", "seed")
CHAT = tuple(key.removeprefix("chat.") for key in CHAT_KEYS)
OPTIONS = {  # of the commands, that a parameter of the same name sets
    "profile": (*SESSION, *CHAT, "max_new"),
    "identify": ("method", *_RESAMPLING, "subset", "fdr", "permutations", "splits"),
    "probe": ("limit", "folds", "repeats", "control_repeats", "shuffles", "hold_out", "missing", "seed"),
    "compare": _RESAMPLING,
    "eval": ("mode", "gain", "phase", "max_new", "samples", "temperature", "top_p", "seed", *SESSION, *CHAT),
    "redundancy": ("mode", "gain", "phase", "judge", "max_new", "bootstrap", "seed", *SESSION, *CHAT),
    "audit": (
        "mode",
        "max_new",
        "top",
        "limit",
        "sweep",
        "controls",
        "practical",
        "most",
        "budget",
        "skip",
        "seed",
        *CHAT,
    ),
    "sweep": (
        *("mode", "gain", "neighbours", "pairs", "step", "max_new", "bootstrap", "correction", "seed"),
        *SESSION,
        *CHAT,
    ),
}


def commands(sources: Sources) -> list[str]:
    """The command lines that made the files, as far as the files tell, and the page."""
    lines = [line for source in sources.files if (line := _command(source, sources))]
    names = [source.path.name for source in sources.files]
    return [*lines, shlex.join(["safex-native", "report", *names])]


def _command(source: Source, sources: Sources) -> str:
    if source.kind == "expert_set":
        return _identify_command(source, sources) if source.content.parameters.get("method") else ""
    return COMMANDS[source.kind](source)


def _profile_command(source: Source) -> str:
    has_response = "response" in source.content.phases
    values = _session(source.content.meta)
    if has_response:
        values["max_new"] = source.content.meta.get("session.max_new")
    return _line("profile", ["MODEL", *(["--response"] if has_response else [])], values, source)


def _session(meta: dict[str, Any]) -> dict[str, Any]:
    """How the model was loaded, and what it was shown."""
    loaded = {name: meta.get(f"session.{key}") for name, key in SESSION.items()}
    return loaded | {key.removeprefix("chat."): meta.get(key) for key in CHAT_KEYS} | {"system": _text(meta)}


def _text(meta: dict[str, Any]) -> str | None:
    """The system message as an option takes it: one that begins with @ stands in a file."""
    system = meta.get("chat.system")
    return "@system.txt" if str(system).startswith("@") else system


def _identify_command(source: Source, sources: Sources) -> str:
    profiles = [p.path.name for p in sources.of(PROFILE) if p.path in sources.matches.get(source.path, [])]
    words = [*(profiles[:1] or ["PROFILE"]), *(["--cluster"] if source.content.clusters else [])]
    return _line("identify", words, source.content.parameters, source)


def _probing_command(source: Source) -> str:
    parameters = part(source.content, "parameters")
    words = [word for task in items(parameters.get("tasks")) for word in ("--task", str(task))]
    return _line("probe", ["FEATURES", *words], parameters, source)


def _compare_command(source: Source) -> str:
    comparison = source.content
    sides = [str(part(comparison, side).get("path") or side.upper()) for side in ("a", "b")]
    values = part(comparison, "parameters") if comparison.get("kind") == "profiles" else {}
    return _line("compare", sides, values, source)


def _evaluation_command(source: Source) -> str:
    evaluation = source.content
    mask = list(map(str, items(part(evaluation, "mask").get("experts"))))
    words = ["MODEL", *(["--mask", ",".join(mask), *_control_words(evaluation)] if mask else [])]
    for judge in items(evaluation.get("judges")):
        words += ["--judge", _judge_spec(str(judge))]
    words += _reading_words(list(map(str, items(evaluation.get("judges")))))
    parameters = part(evaluation, "parameters")
    values = {**_session(part(evaluation, "model")), **parameters, "samples": parameters.get("n_samples")}
    return _line("eval", words, values, source)


def _control_words(evaluation: dict[str, Any]) -> list[str]:
    """The control masks, and whether the cost on harmless text was measured."""
    kinds = Counter(str(row.get("kind", "")) for row in rows(evaluation.get("controls")))
    cost = [] if evaluation.get("utility") else ["--no-utility"]
    if not kinds:
        return ["--controls", "0", *cost]
    sets = ",".join(map(str, items(part(evaluation, "parameters").get("control_sets")))) or "regular"
    words = ["--controls", str(max(kinds.values())), "--control-kinds", ",".join(kinds)]
    return [*words, "--control-sets", sets, *cost]


def _judge_spec(name: str) -> str:
    """A judge as the command line names it; the file of a guard model is known by its name only.

    >>> _judge_spec("gguf:wildguard-Q4_K_M:wildguard")
    'gguf:wildguard-Q4_K_M.gguf:wildguard'
    """
    kind, _, rest = name.partition(":")
    stem, _, template = rest.rpartition(":")
    if kind == "gguf":
        return f"gguf:{stem or 'JUDGE'}.gguf:{template.partition('+')[0]}"
    return kind if kind == "keyword" else name


def _reading_words(names: Sequence[str]) -> list[str]:
    """How answers are read, as the names of judges tell.

    >>> _reading_words(["keyword:lenient:0a1b2c3d"])
    ['--policy', 'lenient', '--refusal-phrases', 'FILE']
    """
    parts = [part for name in names for part in re.split("[:+]", name)[1:]]
    policy = ["--policy", LENIENT] if LENIENT in parts else []
    own = any(re.fullmatch("[0-9a-f]{8}", part) for part in parts)
    return [*policy, *(["--refusal-phrases", "FILE"] if own else [])]


def _sweep_command(source: Source) -> str:
    sweep = source.content
    parameters, found = part(sweep, "parameters"), rows(sweep.get("rows"))
    words = ["MODEL", *_swept(sweep), *(["--gradient"] if any("gradient" in row for row in found) else [])]
    values = {**_session(part(sweep, "model")), **parameters, "pairs": parameters.get("pairs") or None}
    if "--all" in words:
        values["neighbours"] = None
    return _line("sweep", [*words, *_start_words(part(sweep, "starts"))], values, source)


def _redundancy_command(source: Source) -> str:
    found = source.content
    parameters = part(found, "parameters")
    sizes = ",".join(map(str, items(found.get("sizes"))[1:]))
    words = ["MODEL", "--experts", ",".join(map(str, items(found.get("experts")))), "--sizes", sizes]
    kinds = [str(row.get("kind", "")) for row in rows(found.get("controls"))]
    words += ["--controls", str(parameters.get("draws", 0))]
    words += ["--control-kinds", ",".join(kinds)] if kinds else []
    words += [] if found.get("utility") else ["--no-utility"]
    values = {
        **_session(part(found, "model")),
        **parameters,
        "judge": _judge_spec(str(parameters.get("judge", ""))),
    }
    words = [*words, *_reading_words([str(parameters.get("judge", ""))])]
    return _line("redundancy", words, values, source)


def _audit_command(source: Source) -> str:
    """The audit that made all the others, each on its part of the prompts."""
    values = dict(part(source.content, "parameters"))
    words = ["MODEL", *(["--quick"] if values.get("quick") else [])]
    values["skip"] = ",".join(map(str, items(values.get("skip")))) or None
    for judge in items(values.get("judges")):
        words += ["--judge", _judge_spec(str(judge))]
    words += _reading_words(list(map(str, items(values.get("judges")))))
    line = _line("audit", words, {**_session(values), **values}, source)
    return line.removesuffix(shlex.join([source.path.name])) + shlex.quote(source.path.parent.name or ".")


def _swept(sweep: dict[str, Any]) -> list[str]:
    if swept_all(sweep):
        return ["--all"]
    listed = [row for row in rows(sweep.get("rows")) if row.get("role") != "neighbour"]
    return ["--experts", ",".join(f"{row['layer']}:{row['expert']}" for row in listed)]


def _start_words(starts: dict[str, Any]) -> list[str]:
    """The starts, where they were named by hand."""
    if part(starts, "coverage"):
        return []
    words = []
    for option, side in (("--refusal-start", "refuse"), ("--compliance-start", "comply")):
        for text in dict.fromkeys(str(row.get("text", "")).strip() for row in rows(starts.get(side))):
            words += [option, text]
    return words


def _line(command: str, words: list[str], values: dict[str, Any], source: Source) -> str:
    given = [
        word
        for name in OPTIONS[command]
        if values.get(name) is not None
        for word in (f"--{name.replace('_', '-')}", str(values[name]))
    ]
    return shlex.join(["safex-native", command, *words, *given, "-o", source.path.name])


COMMANDS: dict[str, Callable[[Source], str]] = {
    PROFILE: _profile_command,
    "probing": _probing_command,
    "evaluation": _evaluation_command,
    "sweep": _sweep_command,
    "redundancy": _redundancy_command,
    "comparison": _compare_command,
    "verdict": lambda source: "",
    "manifest": _audit_command,
}
