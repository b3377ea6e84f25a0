"""Edits of experts written into GGUF files, taken back, and proven."""

from .differences import Difference, diff
from .masking import MaskReport, write_mask
from .undo import restore
from .verification import Verification, verify

__all__ = ["Difference", "MaskReport", "Verification", "diff", "restore", "verify", "write_mask"]
