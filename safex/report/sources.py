"""Input files of a report: recognised by content, read, checked against each other.

A new kind of result file is one row in ``KINDS`` here and one in ``sections.BUILDERS``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safex.errors import InputError
from safex.expert_set import SCHEMA_VERSION, ExpertSet, from_json, is_expert_set
from safex.profile import Profile
from safex.profile_file import is_profile

from .values import items, listing, part, rows, whole_number, whole_numbers

NO_TEMPLATE_HASH = hashlib.sha256(b"").hexdigest()


class Source(NamedTuple):
    """One input file; ``content`` is a Profile, an ExpertSet or the object of a JSON file.

    ``experts`` are those that it speaks of, with their model; None where it speaks of all (a profile, a comparison).
    """

    path: Path
    kind: str
    sha256: str
    content: Any
    experts: ExpertSet | None = None

    @property
    def label(self) -> str:
        """The file's name without its endings."""
        return self.path.name.split(".")[0] or self.path.name


class Kind(NamedTuple):
    """A kind of result file; ``fits`` looks at the parsed JSON, ``read`` gives content and experts of a Source.

    ``foreign`` is what a reader must know where they are of another model than a profile beside them.
    """

    name: str
    title: str
    fits: Callable[[Any], bool]
    read: Callable[[Path], tuple[Any, ExpertSet | None]]
    foreign: str = ""


def _has(key: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and key in value


def _read_expert_set(path: Path) -> tuple[ExpertSet, ExpertSet]:
    experts = ExpertSet.load(path)
    return experts, experts


def _read_comparison(path: Path) -> tuple[dict[str, Any], None]:
    from safex.comparison import Comparison

    return Comparison.load(path).to_json(), None


def _read_verdict(path: Path) -> tuple[dict[str, Any], None]:
    from safex.auditing.result import load_verdict

    return load_verdict(path), None


def _read_manifest(path: Path) -> tuple[dict[str, Any], None]:
    from safex.auditing.manifest import Manifest

    return Manifest.load(path).to_json(), None


def _read_evaluation(path: Path) -> tuple[dict[str, Any], ExpertSet]:
    from safex.evaluation import Evaluation

    evaluation = Evaluation.load(path).to_json()
    masked = part(evaluation, "mask").get("experts", [])
    return evaluation, _experts(path, model_facts(evaluation["model"]), {"mask": masked})


def _read_probing(path: Path) -> tuple[dict[str, Any], ExpertSet]:
    from safex.probing import Probing

    probing = Probing.load(path).to_json()
    groups: dict[str, list[Any]] = {}
    for group in (group for task in probing["tasks"] for group in rows(task["groups"])):
        known = groups.setdefault(str(group.get("group", "")), [])
        known += [expert for expert in items(group.get("experts")) if expert not in known]
    return probing, _experts(path, probing["model"], groups)


def _read_sweep(path: Path) -> tuple[dict[str, Any], ExpertSet]:
    from safex.attribution import Sweep

    sweep = Sweep.load(path).to_json()
    experts = _experts(path, sweep["model"], {"sweep": sweep["rows"]})
    return {**sweep, "rows": experts.entries["sweep"]}, experts


def _read_redundancy(path: Path) -> tuple[dict[str, Any], ExpertSet]:
    from safex.redundancy_curve import Redundancy

    found = Redundancy.load(path).to_json()
    return found, _experts(path, model_facts(found["model"]), {"order": found["experts"]})


def _experts(path: Path, model: dict[str, Any], groups: dict[str, Any]) -> ExpertSet:
    """Checked experts of a file that is no expert set; a shape that is none is as good as unknown."""
    shape = {"layers": whole_numbers(model.get("layers")), "n_experts": whole_number(model.get("n_experts"))}
    if not all(shape.values()):
        shape = dict.fromkeys(shape)
    try:
        return from_json({"safex_expert_set": SCHEMA_VERSION, "model": {**model, **shape}, "groups": groups})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def model_facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its model, without the prefix that such keys have beside others.

    >>> model_facts({"model.name": "Qwen", "tool_version": "0.1.0"})
    {'name': 'Qwen'}
    """
    return {key.removeprefix("model."): value for key, value in meta.items() if key.startswith("model.")}


PROFILE = "profile"  # the one kind that is no JSON
KINDS = (
    Kind(
        "expert_set",
        "expert set",
        is_expert_set,
        _read_expert_set,
        "its groups are marked on the map, but they were not found in the numbers shown there",
    ),
    Kind(
        "probing",
        "probing",
        _has("safex_probing"),
        _read_probing,
        "they stand on one page, but what was probed is not of the experts shown on the map",
    ),
    Kind(
        "evaluation",
        "evaluation",
        _has("safex_evaluation"),
        _read_evaluation,
        "they stand on one page, but what it measured is not of the experts shown on the map",
    ),
    Kind(
        "sweep",
        "sweep",
        _has("safex_sweep"),
        _read_sweep,
        "they stand on one page, but what it measured is not of the experts shown on the map",
    ),
    Kind(
        "redundancy",
        "redundancy curve",
        _has("safex_redundancy"),
        _read_redundancy,
        "they stand on one page, but what it measured is not of the experts shown on the map",
    ),
    Kind("comparison", "comparison", _has("safex_comparison"), _read_comparison),
    Kind("verdict", "verdict of an audit", _has("safex_audit_verdict"), _read_verdict),
    Kind("manifest", "manifest of an audit", _has("safex_audit"), _read_manifest),
)
FOREIGN = {kind.name: kind.foreign for kind in KINDS}
TITLES = {PROFILE: "router profile", **{kind.name: kind.title for kind in KINDS}}


@dataclass(frozen=True)
class Sources:
    """All input files of a report, in the order given; ``warnings`` say what a reader must know of them."""

    files: list[Source]
    warnings: list[str]
    matches: dict[
        Path, list[Path]
    ]  # a file that speaks of experts: the profiles of their model, or of its shape

    def of(self, kind: str) -> list[Source]:
        """The files of a kind."""
        return [source for source in self.files if source.kind == kind]

    def sets_on(self, profile: Source) -> list[Source]:
        """The expert sets whose groups belong to a profile."""
        return [s for s in self.of("expert_set") if profile.path in self.matches[s.path]]


def read_sources(paths: Sequence[str | os.PathLike[str]]) -> Sources:
    """Read all files and match those that speak of experts with profiles.

    Raises InputError for no file, a missing, unreadable or unknown one, one that is given twice, and one whose experts
    fit no profile.
    """
    if not paths:
        raise InputError(f"no file given: expected result files ({listing(TITLES.values())})")
    files: list[Source] = []
    for path in map(Path, paths):
        source = _read(path)
        twin = next((other for other in files if other.sha256 == source.sha256), None)
        if twin:
            raise InputError(f"{path}: has the same content as {twin.path}; give each file once")
        files.append(source)
    profiles = [source for source in files if source.kind == PROFILE]
    matches, warnings = {}, [w for profile in profiles for w in _profile_warnings(profile)]
    for source in files if profiles else ():
        if source.experts is not None:
            matches[source.path], found = match(source, source.experts, profiles)
            warnings += found
    return Sources(files, warnings + ([] if profiles else _model_warnings(files)), matches)


def _read(path: Path) -> Source:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a result file ({listing(TITLES.values())})")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if is_profile(path):
        return Source(path, PROFILE, sha256(path), Profile.load(path))
    value = _parse(path)
    kind = next((kind for kind in KINDS if kind.fits(value)), None)
    if kind is None:
        raise _unknown(path)
    return Source(path, kind.name, sha256(path), *kind.read(path))


def _parse(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(4)
            data = b"" if start == b"GGUF" else start + file.read()  # a model may be larger than memory
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    if start == b"GGUF":
        raise _unknown(path, "is a GGUF file but no profile")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):  # no UTF-8, no JSON
        raise _unknown(path) from None


def _unknown(path: Path, what: str = "is no result file") -> InputError:
    return InputError(
        f"{path}: {what}; expected a {' or '.join(TITLES.values())} made by safex-native "
        "(profile, identify, probe, eval, sweep, redundancy, compare, audit)"
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def match(source: Source, experts: ExpertSet, profiles: Sequence[Source]) -> tuple[list[Path], list[str]]:
    """The profiles that the experts of a file belong to, and warnings.

    Those with the fingerprint of its model; where it has none, or none of them has it, those of its shape. Raises
    InputError where an expert doesn't exist in any of them.
    """
    wanted = experts.model.get("fingerprint")
    same = [p for p in profiles if wanted and fingerprint(p) == wanted]
    chosen = same or [p for p in profiles if _shape_fits(experts, p)]
    if not chosen:
        _refuse(source, experts, profiles)
    for profile in chosen:
        _check(source, experts, profile)
    warnings = _match_warnings(source, experts, chosen, bool(same))
    return [profile.path for profile in chosen], warnings


def fingerprint(profile: Source) -> str | None:
    """That of the profile's model, where it is known."""
    found = profile.content.meta.get("model.fingerprint")
    return str(found) if found else None


def _shape_fits(experts: ExpertSet, profile: Source) -> bool:
    try:
        experts.check_model(profile.content.layers, profile.content.n_experts, "")
    except InputError:
        return False
    layers, n = experts.model.get("layers"), experts.model.get("n_experts")
    return layers in (None, profile.content.layers) and n in (None, profile.content.n_experts)


def _check(source: Source, experts: ExpertSet, profile: Source) -> None:
    try:
        experts.check_model(profile.content.layers, profile.content.n_experts, str(profile.path))
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None


def _refuse(source: Source, experts: ExpertSet, profiles: Sequence[Source]) -> None:
    for profile in profiles:
        _check(source, experts, profile)
    model, content = experts.model, profiles[0].content
    raise InputError(
        f"{source.path}: was made from a model of {len(items(model.get('layers')))} layers x "
        f"{model.get('n_experts')} experts, but {profiles[0].path} holds {len(content.layers)} x "
        f"{content.n_experts}; give the profile that it was made from"
    )


def _match_warnings(source: Source, experts: ExpertSet, chosen: Sequence[Source], same: bool) -> list[str]:
    wanted = experts.model.get("fingerprint")
    known = [p for p in chosen if fingerprint(p)]
    if wanted and known and not same:
        return [
            f"{source.path.name} was made from another model than {listing(p.path.name for p in known)} "
            f"(fingerprint {str(wanted)[:12]}, not {str(fingerprint(known[0]))[:12]}). Their shapes agree, so "
            f"{FOREIGN[source.kind]}."
        ]
    prompts = experts.profile.get("part_of") or experts.profile.get("prompts_hash")
    others = [p.path.name for p in chosen if p.content.meta.get("prompts_hash", prompts) != prompts]
    if prompts and len(others) == len(chosen):
        return [f"{source.path.name} was made from other prompts than {listing(others)}."]
    return []


def _model_warnings(files: Sequence[Source]) -> list[str]:
    """Without a profile to hold them against: whether files that speak of experts are of several models."""
    named = [(s.path.name, str(s.experts.model.get("fingerprint") or "")) for s in files if s.experts]
    known = [f"{name} (fingerprint {of[:12]})" for name, of in named if of]
    if len({of for _, of in named if of}) < 2:
        return []
    return [
        f"These files were made from different models: {listing(known)}. What one says of an expert does not hold for "
        "another."
    ]


def _profile_warnings(profile: Source) -> list[str]:
    meta, name = profile.content.meta, profile.path.name
    if meta.get("session.templated") is False or meta.get("template_hash") == NO_TEMPLATE_HASH:
        return [
            f"{name}: the prompts were run without a chat template. How a model routes and refuses plain text says "
            "little about how it does in a chat."
        ]
    if not meta.get("template_hash"):
        return [
            f"{name}: no chat template is recorded, so it is not known whether the prompts were run as a chat."
        ]
    return []
