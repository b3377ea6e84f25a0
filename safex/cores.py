"""How many CPUs this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Those that the process is bound to (taskset, a container's set), where the system can tell; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
