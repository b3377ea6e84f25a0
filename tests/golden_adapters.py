"""Adapters of the golden files as directories, and the deltas that PEFT (or Unsloth's forward) made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from safex.experts import Expert
from safex.merging import Deltas, ExpertTensors, Shape

GOLDEN = sorted((Path(__file__).parent / "golden").glob("adapters_*.npz"))
LAYOUTS = sorted((Path(__file__).parent / "golden").glob("layouts_*.npz"))


def cases_of(files: list[Path]) -> list[tuple[Path, str]]:
    """Every adapter of some golden files."""
    names = [(path, name) for path in files for name in np.load(path).files]
    return [(path, name.split("/")[0]) for path, name in names if name.endswith("/config")]


def tensors(
    architecture: str, layers: int, experts: int, hidden: int, width: int, fused: bool = False
) -> ExpertTensors:
    """The expert tensors of a model of these sizes."""
    wide, tall = Shape(experts, width, hidden), Shape(experts, hidden, width)
    kinds = {"gate_up": wide._replace(rows=2 * width)} if fused else {"gate": wide, "up": wide}
    if architecture == "nemotron_h_moe":  # no gates
        kinds = {"up": wide}
    shapes = {
        (layer, kind): shape for layer in range(layers) for kind, shape in {**kinds, "down": tall}.items()
    }
    return ExpertTensors(Path("model.gguf"), architecture, shapes)


class Golden:
    """One adapter of a golden file, as a directory and as the deltas that PEFT merged."""

    def __init__(self, file: Path, case: str) -> None:
        with np.load(file) as arrays:
            self.arrays = {
                key.removeprefix(f"{case}/"): arrays[key] for key in arrays if key.startswith(f"{case}/")
            }
        self.config: dict[str, Any] = json.loads(self.arrays["config"].tobytes())
        self.sizes: list[int] = self.arrays["sizes"].tolist()

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(self.config))
        (folder / "adapter_model.safetensors").write_bytes(self.arrays["weights"].tobytes())
        return folder

    def model(self, fused: bool = False) -> ExpertTensors:
        return tensors(str(self.arrays["architecture"]), *self.sizes, fused=fused)

    def delta(self, layer: int, kind: str) -> np.ndarray:
        """What PEFT added: [experts, rows, columns]."""
        if kind == "gate_up":
            return np.concatenate([self.delta(layer, half) for half in ("gate", "up")], axis=1)
        return self.arrays[f"delta/{layer}/{kind}"]


def check(
    deltas: Deltas, model: ExpertTensors, expected: Callable[[int, str], np.ndarray], tolerance: float
) -> None:
    """All deltas of a model equal the expected ones, and `experts` lists those that are not zero."""
    changed = set()
    for (layer, kind), shape in model.shapes.items():
        wanted = expected(layer, kind)
        for expert in range(shape.experts):
            delta = deltas.delta(layer, expert, kind)
            if wanted[expert].any():
                assert delta is not None and delta.dtype == np.float32 and delta.flags.c_contiguous
                np.testing.assert_allclose(delta, wanted[expert], rtol=tolerance, atol=tolerance)
                changed.add(Expert(layer, expert))
            else:
                assert delta is None or not delta.any()
    assert deltas.experts() == changed
