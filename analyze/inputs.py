"""What an analysis reads: the store, the checkpoints, and whether they belong together."""

import difflib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from thresher.analyze.config import AnalyzeConfig
from thresher.data.records import Modality
from thresher.data.store import Store, open_store
from thresher.devices import find_device
from thresher.errors import AnalysisError, CheckpointError
from thresher.train.checkpoint import TrainedSAE, check_width, load_sae


class Inputs(NamedTuple):
    """A store and dictionaries that were trained on it, with one held-out split."""

    store: Store
    saes: Mapping[str, TrainedSAE]
    hook_points: Mapping[str, str]
    """The hook point of each modality."""
    holdout: float
    """Fraction of the records that is measured; 1 where every row is."""
    seed: int


def open_inputs(config: AnalyzeConfig) -> Inputs:
    """Open and check everything before any work is done.

    Raises StoreError, CheckpointError, and AnalysisError: another store, another split, a hook point that is not there.
    """
    store = open_store(config.store, cache=config.cache)
    device = find_device(config.device)
    saes = {name: load_sae(folder, device) for name, folder in config.saes.items()}
    for modality, asked in (("image", config.image), ("text", config.text)):
        if asked is not None:
            _check_name(store, modality, asked)
    if config.rows == "all":
        saes = {name: _place(config, name, trained) for name, trained in saes.items()}
    else:
        for name, trained in saes.items():
            _check_store(config, store, name, trained)
    splits = {name: (trained.config.stream.holdout, trained.config.seed) for name, trained in saes.items()}
    if len(set(splits.values())) > 1 and config.rows == "held_out":
        found = ", ".join(f"{name}: holdout={holdout:g} seed={seed}" for name, (holdout, seed) in splits.items())
        raise AnalysisError(f"the autoencoders held out different records ({found}); analyze them one at a time")
    chosen = {"image": _choose(store, saes, "image", config.image), "text": _choose(store, saes, "text", config.text)}
    hook_points = {modality: name for modality, name in chosen.items() if name is not None}
    if not hook_points:
        raise AnalysisError(
            f"{store.path}: the autoencoders were trained on no hook point of this store; to apply them to others of the same "
            "width, name those with image= and text=, and set rows=all"
        )
    for name, trained in saes.items():
        _check_widths(store, name, trained, hook_points.values())
    holdout, seed = (1.0, config.seed) if config.rows == "all" else next(iter(splits.values()))
    return Inputs(store, saes, hook_points, holdout, seed)


def _check_widths(store: Store, name: str, trained: TrainedSAE, hook_points: Iterable[str]) -> None:
    try:
        for hook_point in hook_points:
            check_width(trained, hook_point, store.hook_points[hook_point].width)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _check_store(config: AnalyzeConfig, store: Store, name: str, trained: TrainedSAE) -> None:
    if trained.is_imported and not trained.store_fingerprint:
        raise AnalysisError(
            f"{config.saes[name]}: {name} was imported, and what it was trained on is not known: measure every row of "
            f"{store.path} with rows=all, and say with image= and text= where it belongs"
        )
    if not trained.is_trained_on(store.fingerprint):
        raise AnalysisError(
            f"{config.saes[name]}: {name} was trained on the store {trained.store_fingerprint[:12]} ({trained.config.store}), "
            f"{store.path} is {store.fingerprint[:12]}; its held-out items are not known here. Train it on this store, or "
            "measure every row with rows=all"
        )


def _place(config: AnalyzeConfig, name: str, trained: TrainedSAE) -> TrainedSAE:
    """The dictionary at the hook points asked for, if it was fitted to others."""
    asked = [hook_point for hook_point in (config.image, config.text) if hook_point is not None]
    try:
        return trained.place_at(asked) if asked else trained
    except CheckpointError as error:
        raise AnalysisError(f"{config.saes[name]}: {name}: {error}") from error


def _choose(store: Store, saes: Mapping[str, TrainedSAE], modality: Modality, asked: str | None) -> str | None:
    """The hook point of a modality: the one asked for, or the only one that the dictionaries were trained on."""
    if asked is not None:
        return _check_fitted(saes, modality, asked)
    of_modality = {name for name, info in store.hook_points.items() if info.modality == modality}
    trained_on = [[name for name in trained.hook_points if name in of_modality] for trained in saes.values()]
    common = [name for name in trained_on[0] if all(name in names for names in trained_on)]
    if len(common) > 1:
        raise AnalysisError(f"{modality}: the autoencoders were trained on {', '.join(common)}; choose one with {modality}=")
    if not common and any(trained_on):
        found = "; ".join(f"{name}: {', '.join(names) or 'none'}" for name, names in zip(saes, trained_on, strict=True))
        raise AnalysisError(f"{modality}: the autoencoders have no hook point in common ({found}); analyze them one at a time")
    return common[0] if common else None


def _check_name(store: Store, modality: str, name: str) -> None:
    if name not in store.hook_points:
        near = difflib.get_close_matches(name, store.hook_points, n=3, cutoff=0.3) or list(store.hook_points)
        raise AnalysisError(f"{store.path}: no hook point {name!r}; nearest: {', '.join(near)}")
    if store.hook_points[name].modality != modality:
        raise AnalysisError(f"{modality}={name!r}: that hook point reads {store.hook_points[name].modality}s")


def _check_fitted(saes: Mapping[str, TrainedSAE], modality: Modality, name: str) -> str:
    for sae, trained in saes.items():
        if name not in trained.hook_points:
            raise AnalysisError(f"{modality}={name!r}: {sae} was trained on {', '.join(trained.hook_points)}")
    return name
