"""What SAFEx (Lai et al., arXiv 2506.17368) reports, in percent: other models of another scale, one LLM judge."""

from __future__ import annotations

from typing import NamedTuple


class Reported(NamedTuple):
    """Refusal of plain harmful requests, with the experts masked, and under jailbreak."""

    model: str
    experts: int
    before: float
    after: float
    jailbreak: float


MASKING = {  # by our name of the architecture
    "qwen3moe": Reported("Qwen3-30B-A3B", 12, 93.6, 71.6, 45.2),
    "qwen2moe": Reported("Qwen1.5-MoE-A2.7B", 5, 87.4, 65.0, 52.0),
    "deepseek": Reported("deepseek-moe-16b", 5, 85.2, 64.4, 52.4),
    "mixtral": Reported("Mixtral-8x7B", 2, 70.8, 51.2, 47.0),
}
