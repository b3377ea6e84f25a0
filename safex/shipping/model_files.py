"""The files of one model, opened for reading slice by slice: the native parser and where each expert's bytes lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safex import _native as _compiled
from safex import model_file
from safex.errors import InputError, UnsupportedError

NAME = "general.name"
native: Any = _compiled  # its stub lies where it is installed, out of mypy's sight


class Slice(NamedTuple):
    """The bytes of one expert in one tensor: ``size`` bytes at ``offset`` of the model's file number ``file``."""

    layer: int
    expert: int
    tensor: str
    file: int
    offset: int
    size: int
    type: int
    columns: int

    @property
    def key(self) -> tuple[str, int]:
        """What names it whatever the file's layout."""
        return self.tensor, self.expert


@dataclass(frozen=True)
class ModelFiles:
    """A model's files in order (one, or the parts of a split model) and what the native parser knows of them."""

    paths: list[Path]
    native: Any
    stamps: list[tuple[int, ...]]

    @classmethod
    def open(cls, model: str | os.PathLike[str]) -> ModelFiles:
        """Read and check all headers. ``model`` is a path or a bundled model's name. Raises InputError."""
        paths = model_file.shards(model_file.resolve(model))
        stamps = [_stamp(path) for path in paths]
        files = cls(paths, native.GgufModel([str(path) for path in paths]), stamps)
        files.files[0].text(NAME)  # it is text, if it is there
        return files

    @property
    def path(self) -> Path:
        """The first file, by which the model is called."""
        return self.paths[0]

    @property
    def files(self) -> list[Any]:
        """The native files, in order."""
        files: list[Any] = self.native.files
        return files

    @property
    def name(self) -> str:
        """What the model calls itself, or its file's name."""
        return self.files[0].text(NAME) or model_file.name_of(self.path)

    def require_experts(self) -> None:
        """Raise UnsupportedError where the model has no routed experts."""
        if not self.native.layers:
            architecture = self.native.architecture or "unknown"
            raise UnsupportedError(
                f"{self.path}: a dense model (architecture {architecture}): it has no routed experts to edit"
            )

    def find(self, layer: int, role: str) -> Any:
        """The tensor ``blk.LAYER.ROLE`` if it has a slice for each expert, else None."""
        return self.native.find(layer, role)

    def slice(self, tensor: Any, expert: int) -> Slice:
        """Where an expert's part of a tensor lies."""
        offset = tensor.offset + expert * tensor.slice
        place = (tensor.file, offset, tensor.slice, tensor.type, tensor.columns)
        return Slice(tensor.layer, expert, tensor.name, *place)

    def read(self, part: Slice) -> bytes:
        """The bytes of a slice. Raises InputError where the file was cut short."""
        data: bytes = self.files[part.file].read(part.offset, part.size)
        return data

    def check_unchanged(self) -> None:
        """Raise InputError where a file is no longer the one that was opened."""
        for path, stamp in zip(self.paths, self.stamps, strict=True):
            if _stamp(path) != stamp:
                raise InputError(
                    f"{path}: was changed while it was read: start again when nothing else writes it"
                )


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
