"""What a model thinks and what it answers: one table of formats, and the split by it."""

from .formats import FORMATS as FORMATS
from .formats import Format as Format
from .formats import formats_of as formats_of
from .formats import mark_names as mark_names
from .splitting import opened_by as opened_by
from .splitting import split_reasoning as split_reasoning
