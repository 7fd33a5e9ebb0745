"""Tables of captions: CSV, TSV, JSONL, Parquet, each row with the place where it stands."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow.parquet as pq
from pyarrow import ArrowException

from thresher.data.sources.captions import ESCAPES
from thresher.errors import SourceError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Of tables that can be read."""


class TableRow(NamedTuple):
    """One row of a table."""

    place: str
    """File name and line (of Parquet: row), for messages."""
    cells: Mapping[str, Any]
    """Strings hold bytes that are no UTF-8 as surrogate escapes."""


def read_table(path: Path) -> list[TableRow]:
    """The rows of a CSV, TSV, JSONL or Parquet file.

    Raises SourceError naming the file and, where it can be known, the line.
    """
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv" as suffix:
                return list(_read_csv(path, "," if suffix == ".csv" else "\t"))
            case ".jsonl":
                lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
                return [_parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
            case ".parquet":
                rows = cast(list[dict[str, Any]], pq.read_table(path).to_pylist())
                return [TableRow(f"{path.name} row {number}", row) for number, row in enumerate(rows)]
            case _:
                raise SourceError(f"{path}: expected a table ending in {', '.join(SUFFIXES)}")
    except FileNotFoundError as error:
        there = sorted(found.name for found in path.parent.glob("*") if found.suffix.lower() in SUFFIXES)
        raise SourceError(f"{path}: cannot read the table: no such file; tables there: {', '.join(there) or 'none'}") from error
    except (OSError, UnicodeDecodeError, ArrowException) as error:
        raise SourceError(f"{path}: cannot read the table: {error}") from error


def _read_csv(path: Path, delimiter: str) -> Iterator[TableRow]:
    with path.open(encoding="utf-8-sig", errors=ESCAPES, newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if any(row.pop(None, ())):
                    raise csv.Error(f"more cells than the {len(row)} columns; put a text that holds {delimiter!r} into quotes")
                yield TableRow(f"{path.name}:{reader.line_num}", row)
        except csv.Error as error:
            raise SourceError(f"{path}:{reader.line_num}: cannot read the table: {error}") from error


def _parse_line(path: Path, number: int, line: bytes) -> TableRow:
    try:
        row = json.loads(line.decode("utf-8", ESCAPES))
    except ValueError as error:
        raise SourceError(f"{path}:{number}: not a line of JSON: {error}") from error
    if not isinstance(row, dict):
        raise SourceError(f"{path}:{number}: expected an object, found {type(row).__name__}")
    return TableRow(f"{path.name}:{number}", cast(dict[str, Any], row))
