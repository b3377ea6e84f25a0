"""Linear probes: what can be read from experts' outputs, and whether other experts, or the words, tell as much.

``probe`` is the whole of it, ``Probing`` what it returns. ``tasks`` says what is told apart, ``folds`` which prompts
train and test, ``inputs`` what a probe reads, ``logistic`` fits it, ``crossval`` scores every prompt out of fold,
``scores`` makes measures with intervals, ``measuring`` runs all probes, ``assembling`` and ``conclusion`` say what came
out, ``tables`` gives it as rows. Which experts to dump for it: ``safex.roster``.
"""

from safex.probing.probing import probe
from safex.probing.result import Probing

__all__ = ["Probing", "probe"]
