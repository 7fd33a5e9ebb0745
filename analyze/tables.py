"""Tables as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thresher.files import write_atomic


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write dicts of equal keys (an empty file for no rows); None becomes an empty cell."""
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_atomic(path, [text.getvalue().encode()])
