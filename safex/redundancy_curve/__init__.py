"""How many experts must be masked until refusal falls by half: the paper's future work, as a curve with controls.

``redundancy`` is the whole of it, ``Redundancy`` what it returns. ``orders`` fixes beforehand in which order experts
are masked, how many at a time, and the control orders; ``plan`` says which prompts are answered under which masks;
``statistics`` has the half-point and the area under the curve, ``counting`` makes the curves of verdicts,
``conclusion`` says them in words, ``tables`` gives them as rows.

No mask depends on what another one did: this measures an order, and searches for none.
"""

from .result import Redundancy
from .running import redundancy

__all__ = ["Redundancy", "redundancy"]
