"""Where tensors lie: overrides of llama.cpp by tensor name, and ``n_cpu_moe``, the short form for experts."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import InputError

CPU = "CPU"  # what ggml calls its ordinary buffer in main memory
MAX_LAYERS = 512  # of llama.cpp

Override = tuple[str, str]  # regular expression, buffer type


def placement(tensor_overrides: Mapping[str, str] | None, n_cpu_moe: int) -> list[Override]:
    """All overrides in llama.cpp's order: of those that match a tensor the first one counts.

    ``n_cpu_moe`` keeps the routed experts of the blocks 0 to ``n_cpu_moe`` - 1 in main memory, as llama.cpp's
    ``--n-cpu-moe`` does; a number above that of the blocks keeps all of them there. Raises InputError.

    >>> placement({"blk.0.*_exps": "CUDA0"}, 2)
    [('blk.0.*_exps', 'CUDA0'), ('blk\\\\.(0|1)\\\\.ffn_(up|down|gate|gate_up)_(ch|)exps', 'CPU')]
    """
    if n_cpu_moe < 0:
        raise InputError(f"n_cpu_moe is {n_cpu_moe}, expected a number of layers, 0 or more")
    overrides = list((tensor_overrides or {}).items())
    if n_cpu_moe:
        blocks = "|".join(map(str, range(min(n_cpu_moe, MAX_LAYERS))))
        overrides.append((rf"blk\.({blocks})\.ffn_(up|down|gate|gate_up)_(ch|)exps", CPU))
    return overrides
