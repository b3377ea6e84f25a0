"""safex: which experts of a Mixture-of-Experts GGUF carry its safety behaviour.

Names load on first use, so that ``safex-native --help`` and ``import safex.prompts`` stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attribution import Sweep, sweep
    from .auditing import Audit, audit
    from .comparison import Comparison, compare
    from .errors import DeviceError, DiskError, InputError, SafexError, UnsupportedError
    from .evaluation import Evaluation, evaluate
    from .expert_set import ExpertSet
    from .experts import Expert
    from .features import Features
    from .judges import make as make_judge
    from .merging.merging import merge
    from .model import Model, Response, Route
    from .probing import Probing, probe
    from .profile import Profile
    from .prompts import Prompt, PromptSet
    from .redundancy_curve import Redundancy, redundancy
    from .report import write_report
    from .ses import identify
    from .shipping import diff, restore, verify, write_mask
    from .token_rows import TokenRows

_HOME = {  # the module that holds a name, and what it is called there if not the same
    "Audit": "auditing",
    "Comparison": "comparison",
    "DeviceError": "errors",
    "DiskError": "errors",
    "Evaluation": "evaluation",
    "Expert": "experts",
    "ExpertSet": "expert_set",
    "Features": "features",
    "InputError": "errors",
    "Model": "model",
    "Probing": "probing",
    "Profile": "profile",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "Redundancy": "redundancy_curve",
    "Response": "model",
    "Route": "model",
    "SafexError": "errors",
    "Sweep": "attribution",
    "TokenRows": "token_rows",
    "UnsupportedError": "errors",
    "audit": "auditing",
    "compare": "comparison",
    "diff": "shipping",
    "evaluate": "evaluation",
    "identify": "ses",
    "make_judge": "judges:make",
    "merge": "merging.merging",
    "probe": "probing",
    "redundancy": "redundancy_curve",
    "restore": "shipping",
    "sweep": "attribution",
    "verify": "shipping",
    "write_mask": "shipping",
    "write_report": "report",
}

__all__ = [
    "Audit",
    "Comparison",
    "DeviceError",
    "DiskError",
    "Evaluation",
    "Expert",
    "ExpertSet",
    "Features",
    "InputError",
    "Model",
    "Probing",
    "Profile",
    "Prompt",
    "PromptSet",
    "Redundancy",
    "Response",
    "Route",
    "SafexError",
    "Sweep",
    "TokenRows",
    "UnsupportedError",
    "__version__",
    "audit",
    "compare",
    "diff",
    "evaluate",
    "identify",
    "make_judge",
    "merge",
    "probe",
    "redundancy",
    "restore",
    "sweep",
    "verify",
    "write_mask",
    "write_report",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the module that holds ``name`` when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'safex' has no attribute {name!r}")
    module, _, there = _HOME[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), there or name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
