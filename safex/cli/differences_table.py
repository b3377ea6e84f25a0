"""What differs between two model files, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .output import Output, number, size, table

if TYPE_CHECKING:
    from safex.shipping import Difference

SHOWN = 40  # slices; --json has all
HEX = 12


def show_difference(out: Output, found: Difference, metadata: Mapping[str, str]) -> None:
    """Slices as a table, the rest in lines; ``metadata`` are the keys to show."""
    if found.slices:
        out.text(
            f"Slices that differ: {number(len(found.slices))}",
            table(
                ["layer", "expert", "tensor", "size", "SHA-256 before", "after"],
                [
                    [str(c.layer), str(c.expert), c.tensor, size(c.size), c.a_sha256[:HEX], c.b_sha256[:HEX]]
                    for c in found.slices[:SHOWN]
                ],
                right=(0, 1, 3),
            ),
        )
    if len(found.slices) > SHOWN:
        out.text(f"... and {number(len(found.slices) - SHOWN)} more (--json lists all)")
    for name, how in found.tensors.items():
        out.text(f"tensor {name}: {how}")
    for how in dict.fromkeys(metadata.values()):
        out.text(f"metadata, {how}: {', '.join(key for key in metadata if metadata[key] == how)}")
    for line in found.layout:
        out.text(line)
    out.text(
        f"{'All else' if not found.equal else 'All'} is the same: {size(found.rest_bytes)} of tensor data, "
        f"SHA-256 {found.rest_sha256}"
    )
