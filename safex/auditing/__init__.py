"""The whole study of one model in one directory, ending in a verdict: does its refusal hang on a few experts?

``audit`` runs it, ``Audit`` is what it returns. ``stages`` is the table of what is done in which order, ``settings``
what can be asked for, ``split`` divides the prompts into those that find experts and those that test them, ``choice``
says by a fixed rule which experts are tested, ``work`` does each stage, ``manifest`` keeps what was done, ``estimate``
how long it takes, ``measured`` and ``verdict`` say what came out. docs/audit.md gives the reasons.
"""

from safex.auditing.auditing import audit
from safex.auditing.result import Audit

__all__ = ["Audit", "audit"]
