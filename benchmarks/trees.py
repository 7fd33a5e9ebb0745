"""Does a dictionary learn a tree of concepts as it is? Toy of known atoms; mean over seeds with the least and the most.

Usage: python benchmarks/trees.py [--rows N] [--seeds N] [--epochs N] [--methods mp topk ...]. A row has some of 6 parents, and
mostly one of the 3 children of each; all atoms are orthogonal. `absorption`: mean cosine of a learned child with its parent.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from claims import describe

from thresher import load_sae
from thresher.analyze.metrics.absorption import TreeRecovery, score_tree
from thresher.data.store import import_store
from thresher.train.sweep.config import complete
from thresher.train.sweep.run import run as sweep

PARENTS, CHILDREN, WIDTH = 6, 3, 32
CHANCE_OF_PARENT, CHANCE_OF_CHILD = 0.3, 0.8
METHODS: dict[str, dict[str, Any]] = {
    "mp": {"kind": "mp"},
    "topk": {"kind": "topk", "dead_after": 20_000},
    "batch_topk": {"kind": "batch_topk", "dead_after": 20_000},
    "matryoshka": {"kind": "matryoshka", "dead_after": 20_000},
    "relu": {"kind": "relu"},
}
MEASURES = ("recovered", "absorption", "flat", "hierarchical")


def main() -> None:
    """Read the arguments, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    asked = parser.parse_args()
    atoms, parent = make_tree()
    with tempfile.TemporaryDirectory() as folder:
        found = train(Path(folder), atoms, asked.rows, asked.epochs, range(asked.seeds), asked.methods)
    print(f"| | L0 | {' | '.join(MEASURES)} |\n|---{'|---' * (len(MEASURES) + 1)}|")
    for method, members in found.items():
        scores = [score_tree(dictionary, atoms, parent) for _, dictionary in members]
        cells = [describe([l0 for l0, _ in members]), *(describe(pick(scores, name)) for name in MEASURES)]
        print(f"| {method} | {' | '.join(cells)} |")


def pick(scores: Sequence[TreeRecovery], name: str) -> list[float | None]:
    """One measure of every seed."""
    return [getattr(one, name) for one in scores]


def make_tree() -> tuple[np.ndarray, list[int]]:
    """Orthonormal atoms [concept, width], parents first, and the parent of each."""
    n = PARENTS * (1 + CHILDREN)
    atoms = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, n)))[0].T
    return atoms, [-1] * PARENTS + [place // CHILDREN for place in range(PARENTS * CHILDREN)]


def draw_rows(atoms: np.ndarray, n: int) -> np.ndarray:
    """Rows of active parents, each mostly with one child; coefficients from 0.5 to 1.5."""
    generator = np.random.default_rng(1)
    shown = generator.random((n, PARENTS)) < CHANCE_OF_PARENT
    child = generator.integers(0, CHILDREN, (n, PARENTS))
    has = shown & (generator.random((n, PARENTS)) < CHANCE_OF_CHILD)
    children = (child[:, :, None] == np.arange(CHILDREN)) & has[:, :, None]
    codes = np.concatenate([shown, children.reshape(n, -1)], axis=1) * generator.uniform(0.5, 1.5, (n, len(atoms)))
    return (codes @ atoms).astype(np.float32)


def train(
    folder: Path, atoms: np.ndarray, n_rows: int, epochs: int, seeds: Sequence[int], methods: Sequence[str]
) -> dict[str, list[tuple[float, np.ndarray]]]:
    """Realised L0 and atoms of every member, at the number of active concepts that a row has on average."""
    np.save(folder / "rows.npy", draw_rows(atoms, n_rows))
    store = import_store(folder / "rows.npy", str(folder / "store"), modality="image", hook_point="toy")
    wanted = round(PARENTS * CHANCE_OF_PARENT * (1 + CHANCE_OF_CHILD))
    base = {"store": str(store), "hook_points": ["toy"], "stream": {"batch_size": 256, "holdout": 0.1}, "epochs": epochs}
    values = {
        "out": str(folder / "sweep"),
        "base": base | {"evaluate_every": 1_000_000, "evaluate_rows": 2000},
        "architectures": {name: METHODS[name] for name in methods},
        "grid": {"l0": [wanted], "d_sae": [len(atoms)], "lr": [0.003]},
        "seeds": list(seeds),
    }
    out = sweep(complete(values, "trees"))
    found: dict[str, list[tuple[float, np.ndarray]]] = {name: [] for name in methods}
    with (out / "members.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            dictionary = load_sae(Path(row["folder"])).sae.dictionary.detach().double().cpu().numpy()
            found[row["architecture"]].append((float(row["l0"]), dictionary))
    return found


if __name__ == "__main__":
    main()
