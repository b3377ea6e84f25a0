"""The parts of ``reproduce.py``: the paper's tables on models that are trained here, with what the paper lacks.

``subjects`` says which models there are and has them trained, ``study`` measures each, ``adapters`` trains and merges
LoRA, ``results`` turns what was kept into rows, ``page`` and ``figures`` show them, ``paper`` has the paper's numbers.
"""
