"""A part of one large Parquet file. It stands apart because the keys of all stages read `tokenize_parts`."""

from pydantic import NonNegativeInt, PositiveInt

from schemas.base import Volatile
from schemas.tokenize_parts import CorpusPart


class RowGroups(CorpusPart):
    """Neighbouring row groups of the part's only file: those numbered `first` to `end - 1` of `total`."""

    first: NonNegativeInt
    end: PositiveInt
    total: PositiveInt
    num_bytes: Volatile[NonNegativeInt]
    """Their share of the file, by rows, for the display of progress."""
