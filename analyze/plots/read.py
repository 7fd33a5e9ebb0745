"""The files of an analysis as plain tables, for those who draw or compare."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from thresher.analyze.statistics.features import FeatureSums
from thresher.analyze.statistics.file import SUMS, load_sums
from thresher.errors import AnalysisError

Columns = Mapping[str, np.ndarray]
"""A table by columns; null is NaN in numbers and None in strings."""


Sums = Mapping[str, FeatureSums]
"""What each feature adds up to on images and on texts."""


class SaeTables(NamedTuple):
    """What the folder of one dictionary holds; None for a file that is not there."""

    features: Columns | None
    edges: Columns | None
    steps: Columns | None
    groups: Mapping[str, Any] | None
    dictionary: Mapping[str, Any] | None
    curves: Columns | None
    categories: Columns | None
    functional: Mapping[str, Any] | None
    sums: Sums | None = None
    """The sums over items, see `add_sums`."""


class RunTables(NamedTuple):
    """What an analysis holds."""

    metrics: Mapping[str, Any]
    space: Mapping[str, Any] | None
    saes: Mapping[str, SaeTables]


def read_run(folder: Path) -> RunTables:
    """Read a finished analysis. Raises AnalysisError: files that cannot be read."""
    metrics = read_json(folder / "metrics.json")
    if metrics is None:
        raise AnalysisError(f"{folder}: no analysis: metrics.json is missing; run `thresher analyze` into it first")
    saes = {name: _read_sae(folder / name) for name in metrics["order"]}
    return RunTables(metrics, read_json(folder / "space.json"), saes)


def add_sums(run: RunTables, folder: Path) -> RunTables:
    """The analysis with the sums of its dictionaries, where there are any and metrics.json says what they have to be made from.

    Raises AnalysisError: sums of another store, dictionary or split.
    """
    saes: dict[str, SaeTables] = {}
    for name, tables in run.saes.items():
        origin = _find_origin(run.metrics, name)
        saes[name] = tables
        if origin is not None and (folder / name / SUMS).is_file():
            saes[name] = tables._replace(sums=load_sums(folder / name, origin)[0])
    return run._replace(saes=saes)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None for a file that is not there. Raises AnalysisError."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); run the analysis again") from error
    if not isinstance(found, dict):
        raise AnalysisError(f"{path}: expected a JSON object; run the analysis again")
    return found


def read_columns(path: Path) -> Columns | None:
    """A Parquet table; None for a file that is not there. Raises AnalysisError."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); run the analysis again") from error
    return {name: np.asarray(table.column(name).to_numpy()) for name in table.column_names}


def _find_origin(metrics: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the sums of a dictionary have to be made from; None in an analysis that does not say which model it is."""
    digest = metrics["saes"][name].get("digest")
    return None if digest is None else {"store": metrics["store"]["fingerprint"], "sae": digest} | metrics["held_out"]


def _read_sae(folder: Path) -> SaeTables:
    return SaeTables(
        features=read_columns(folder / "features.parquet"),
        edges=read_columns(folder / "edges.parquet"),
        steps=read_columns(folder / "steps.parquet"),
        groups=read_json(folder / "groups.json"),
        dictionary=read_json(folder / "dictionary.json"),
        curves=read_columns(folder / "curves.parquet"),
        categories=read_columns(folder / "categories.parquet"),
        functional=read_json(folder / "functional.json"),
    )
