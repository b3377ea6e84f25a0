"""The stages of an audit: what each does, which files it writes, whose files it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safex.errors import InputError

MANIFEST, VERDICT, REPORT = "manifest.json", "verdict.json", "report.html"
ON_THE_PAGE = (".profile.gguf", ".experts.json", ".sweep.json", ".probing.json", ".eval.json")


@dataclass(frozen=True)
class Stage:
    """One stage. ``files`` are names in which ``{}`` stands for the model's; ``needs`` are stages whose files it reads.

    What ``can_skip`` is work of its own; the others follow from it within a moment.
    """

    name: str
    what: str
    files: tuple[str, ...]
    needs: tuple[str, ...] = ()
    can_skip: bool = True

    def names(self, stem: str) -> list[str]:
        """Names of its files."""
        return [name.format(stem) for name in self.files]


STAGES = (
    Stage("profile", "which experts are selected, all prompts", ("{}.profile.gguf",)),
    Stage(
        "identify",
        "experts that differ between the sets, with nulls",
        ("{}.contrast.experts.json", "{}.ses.experts.json"),
        ("profile",),
    ),
    Stage("sweep", "experts masked one by one", ("{}.sweep.json",), ("profile", "identify")),
    Stage("choose", "the experts under test", ("{}.tested.experts.json",), ("identify", "sweep"), False),
    Stage(
        "probe",
        "what linear probes read from them, against random experts",
        ("{}.features.safetensors", "{}.probing.json"),
        ("profile", "choose"),
    ),
    Stage(
        "evaluate",
        "refusal without them, against control masks",
        ("{}.responses.jsonl", "{}.eval.json"),
        ("profile", "choose"),
    ),
    Stage("verdict", "the verdict", (VERDICT,), ("choose", "evaluate"), False),
    Stage(
        "report",
        "one page of all of it",
        (REPORT,),
        ("profile", "identify", "sweep", "choose", "probe", "evaluate", "verdict"),
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}
CAN_SKIP = tuple(stage.name for stage in STAGES if stage.can_skip)


def check_skipped(names: Iterable[str]) -> tuple[str, ...]:
    """The stages to skip, in their order. Raises InputError for a name that is none of those that can be.

    >>> check_skipped(["report", "probe"])
    ('probe', 'report')
    """
    asked = set(names)
    unknown = sorted(asked.difference(CAN_SKIP))
    if unknown:
        raise InputError(f"stage {unknown[0]!r} can't be skipped: expected some of {', '.join(CAN_SKIP)}")
    return tuple(name for name in CAN_SKIP if name in asked)


def page_files(directory: Path) -> list[str]:
    """What a report is made from, of an audit's folder: the verdict and the manifest first."""
    heads = [directory / name for name in (VERDICT, MANIFEST)]
    results = [path for ending in ON_THE_PAGE for path in sorted(directory.glob(f"*{ending}"))]
    return [str(path) for path in [*heads, *results] if path.is_file()]


def all_files(stem: str, stages: Sequence[Stage] = STAGES) -> list[str]:
    """Names of the files of stages, in their order."""
    return [name for stage in stages for name in stage.names(stem)]
