"""The paper's table for one model: refusal before and after a mask, under jailbreak, and on benign prompts.

``evaluate`` is the whole of it, ``Evaluation`` what it returns. ``plan`` says which prompts are answered under which
masks, ``marks`` what real compliance with a prompt must contain, ``answers`` generates and judges, ``counting`` makes
the rates, ``conclusion`` says them in words, ``tables`` gives them as rows.

Every rate is three-way (refuse, comply, other), over the answers that could be read; the others are counted apart
by why (``safex.judges.readable``).
Before and after are compared on the same prompts. A drop alone says little: each kind of control mask in
``safex.control_masks`` shows what masking as many other experts does, and where the mask falls among them.
"""

from safex.evaluation.evaluating import evaluate
from safex.evaluation.marks import Marks, marks_of_arguments
from safex.evaluation.result import Evaluation

__all__ = ["Evaluation", "Marks", "evaluate", "marks_of_arguments"]
