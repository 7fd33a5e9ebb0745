"""The claims about matching pursuit on one more world: sweep, analysis of every member, tables.

Usage: python benchmarks/claims_worlds.py SWEEP.yaml OUT (--store STORE | --pairs PAIRS.npy) [--records N]
[--change KEY=VALUE ...]. PAIRS.npy is [2, pair, width], images first. Run again to resume.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import claims
import numpy as np

from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.run import run as analyze
from thresher.config import validate
from thresher.data.store import import_pairs
from thresher.train.sweep.run import load
from thresher.train.sweep.run import run as sweep

RESAMPLES = 100


def main() -> None:
    """Make what is missing of the world and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", type=Path)
    source.add_argument("--pairs", type=Path)
    parser.add_argument("--records", type=int, help="held-out records analyzed at most")
    parser.add_argument("--change", nargs="*", default=[], metavar="KEY=VALUE", help="of the configuration of the sweep")
    asked = parser.parse_args()
    store = asked.store if asked.pairs is None else import_world(asked.pairs, asked.out)
    folder = sweep(load(asked.sweep, [f"base.store={store}", f"out={asked.out / 'sweep'}", *asked.change]))
    analyze(configure(folder, store, asked.out / "analysis", asked.records))
    claims.print_claims(asked.out / "analysis")


def import_world(pairs: Path, out: Path) -> Path:
    """A store of both halves of an array [2, pair, width]."""
    out.mkdir(parents=True, exist_ok=True)
    halves = [out / f"{name}.npy" for name in ("images", "texts")]
    for half, rows in zip(halves, np.load(pairs), strict=True):
        np.save(half, rows)
    return Path(import_pairs(halves[0], halves[1], str(out / "store")))


def configure(folder: Path, store: Path, out: Path, records: int | None) -> AnalyzeConfig:
    """The analysis of all members of a sweep, named <method>-<seed>, without what the tables do not need."""
    with (folder / "members.csv").open(encoding="utf-8", newline="") as file:
        members = {f"{row['architecture']}-{row['seed']}": row["folder"] for row in csv.DictReader(file)}
    settings: dict[str, Any] = {
        "store": str(store),
        "out": str(out),
        "image": "vision.embed",
        "text": "text.embed",
        "saes": members,
    }
    settings |= {"n_bootstrap": RESAMPLES, "limit": records}
    settings |= {"figures": "none", "site": {"build": False}}
    settings |= {"functional": {"images": 0}, "battery": {"calibration_pairs": 0}}
    return validate(AnalyzeConfig, settings, "analysis")


if __name__ == "__main__":
    main()
