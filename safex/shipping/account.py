"""What a model file says of the edit that made it: in its metadata, in a side-car, or in the undo file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from . import header, provenance, undo
from .model_files import NAME, ModelFiles

Origin = Literal["metadata", "sidecar", "undo"]


@dataclass(frozen=True)
class Account:
    """The name and the ``safex.*`` values (without the prefix), and where they were found; empty where nowhere."""

    origin: Origin | None
    name: str
    values: Mapping[str, header.Value]


def account_of(files: ModelFiles) -> Account:
    """The latest account. Beside the file lies what an in-place edit left, which the header may not know of.

    Raises InputError for one that can't be read.
    """
    sidecar = provenance.sidecar_path(files.path)
    if sidecar.exists():
        return Account("sidecar", *provenance.read_sidecar(sidecar))
    if undo.undo_path(files.path).exists():
        return Account("undo", *provenance.from_json(undo.read_undo(files.path).provenance))
    values = provenance.read_metadata(files)
    return Account("metadata" if values else None, files.files[0].text(NAME) or "", values)


def history_of(files: ModelFiles) -> list[str]:
    """What an edit of this model has to keep of the account that is there."""
    own = dict(account_of(files).values)
    if not own:
        return []
    earlier = own.pop("history", [])
    return [*(earlier if isinstance(earlier, list) else []), json.dumps(own)]
