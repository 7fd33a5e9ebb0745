"""What a survey finds."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Surveyed(NamedTuple):
    """Measures of one dictionary beside the verdicts on its features."""

    dictionary: dict[str, Any]
    """dictionary.json, plain values."""
    tables: Mapping[str, Mapping[str, list[Any]]]
    """Columns by file name."""
    features: Mapping[str, Any]
    """Further columns of features.parquet; none where the battery has judged nothing."""
    edges: Mapping[str, Any]
    """Further columns of edges.parquet."""
