"""A checkpoint, ours or imported, measured on the held-out rows of a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from thresher.data.aligned import AlignedStore
from thresher.data.mixture import Mixture, open_stores
from thresher.data.store import Store
from thresher.devices import find_device
from thresher.errors import CheckpointError, StoreError
from thresher.files import write_atomic
from thresher.runs import canonical_json
from thresher.train.aligned import AlignedSAE, align
from thresher.train.checkpoint import TrainedSAE, check_width, load_sae
from thresher.train.config import NOT_WRITTEN
from thresher.train.evaluate import Evaluation, evaluate
from thresher.train.sides import describe_sides, summarize_sides, write_sides
from thresher.train.split import read_side

ASSESSMENT = "assessment.json"
"""Written beside the checkpoint when no other place is given."""


class Assessment(NamedTuple):
    """What was measured, and where it was written."""

    path: Path
    is_known_split: bool
    """Whether it was trained on this store, so that the rows are known to be ones it has not seen."""
    by_hook_point: Mapping[str, Evaluation]
    """And over all of them under `pooled`, where they are several."""
    sides: Mapping[str, Any] = {}
    """Of a crosscoder what `summarize_sides` says; `features.parquet` and `features.csv` beside `path` have it per feature."""


def assess(
    folder: Path,
    *,
    store: Path | str | None = None,
    hook_point: str | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> Assessment:
    """Measure a checkpoint on the held-out rows of `store`, by default that of its training, and write it down as JSON.

    For a crosscoder the table of its features by hook point is written beside it. `hook_point` is what the store calls the
    place of a dictionary of one hook point, where it is called otherwise in the checkpoint. The split is that of the checkpoint
    (an import's is the default one). Raises CheckpointError: a hook point or a width that does not fit, or a training without
    a store and none given; StoreError: a store without the hook points or without held-out rows.
    """
    trained = load_sae(folder, find_device(device))
    if store is None and str(trained.config.store) == NOT_WRITTEN:
        raise CheckpointError(f"{folder}: trained straight from a model, without a store; harvest one and name it with --store")
    if store is None and trained.is_imported and not trained.store_fingerprint:
        raise CheckpointError(
            f"{folder}: imported, what it was trained on is not known; name the store to measure with --store"
        )
    opened = open_stores(store if store is not None else trained.config.store)
    found = measure_held_out(trained, opened, hook_point)
    is_known = trained.is_trained_on(opened.fingerprint) and not trained.is_imported
    path = folder / ASSESSMENT if out is None else out
    sides = assess_sides(trained, opened, path.parent)
    described: dict[str, Any] = {
        "checkpoint": str(folder),
        "store": {"path": str(opened.path), "fingerprint": opened.fingerprint},
        "is_known_split": is_known,
        "holdout": trained.config.stream.holdout,
        "seed": trained.config.seed,
        "evaluation": {name: each._asdict() for name, each in found.items()},
    } | ({"sides": sides} if sides else {})
    try:
        write_atomic(path, [canonical_json(described)])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); say another file with --out") from error
    return Assessment(path, is_known, found, sides)


def assess_sides(trained: TrainedSAE, store: Store | Mixture, folder: Path) -> dict[str, Any]:
    """Write the features of a crosscoder by hook point, on held-out rows; what `summarize_sides` says. Nothing for others."""
    view, sae = align(store, trained.hook_points, trained.config.sae), trained.sae
    if not isinstance(view, AlignedStore) or not isinstance(sae, AlignedSAE) or len(sae.decoded) < 2:
        return {}
    config = trained.config
    chunks = read_side(view, view.joint, "held_out", holdout=config.stream.holdout, seed=config.seed)
    n_rows = 0

    def count(x: Tensor) -> Tensor:
        nonlocal n_rows
        n_rows += len(x)
        return x

    table = describe_sides(sae, trained.normalizer, trained.hook_points, map(count, chunks))
    folder.mkdir(parents=True, exist_ok=True)
    write_sides(table, folder)
    return summarize_sides(table, n_rows)


def measure_held_out(trained: TrainedSAE, store: Store | Mixture, hook_point: str | None = None) -> dict[str, Evaluation]:
    """R2, L0 and the rest per hook point on held-out rows. Raises as `assess` does."""
    names, config = trained.hook_points, trained.config
    if hook_point is not None:
        if len(names) > 1:
            raise CheckpointError(f"{hook_point}: the dictionary has the hook points {', '.join(names)}; it is measured on all")
        names = (hook_point,)
    view = align(store, names, config.sae)
    if isinstance(view, AlignedStore):
        names = (view.joint,)
        if isinstance(trained.sae, AlignedSAE) and view.widths != trained.sae.widths:
            raise CheckpointError(
                f"{view.joint}: the store has rows of widths {list(view.widths)}, the {config.sae.kind} was fitted to "
                f"{list(trained.sae.widths)}; name the store of its training, or train one for this store"
            )
    for name in names:
        if name not in view.hook_points:
            raise StoreError(
                f"{store.path}: no hook point {name!r}; the store has {', '.join(store.hook_points)}. Say with --hook-point "
                "which of them the dictionary is for"
            )
        if not isinstance(view, AlignedStore):
            check_width(trained, name, view.hook_points[name].width)
    holdout, seed = config.stream.holdout, config.seed
    rows = {name: read_side(view, name, "held_out", holdout=holdout, seed=seed) for name in names}
    found = evaluate(trained.sae, trained.normalizer, rows)
    return found if len(found) > 2 else {name: each for name, each in found.items() if name != "pooled"}
