"""What a training is made of, from its configuration: store, stream, normaliser, held-out rows, module, identity."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from thresher.config import read_values, to_dict, validate
from thresher.data.aligned import AlignedStore
from thresher.data.memory import MemoryStore
from thresher.data.mixture import Mixture
from thresher.data.readable import Readable
from thresher.data.store import Store
from thresher.data.stream import ActivationStream, read_held_out
from thresher.errors import CheckpointError, ConfigError
from thresher.runs import fingerprint
from thresher.train.aligned import align, measure_aligned, with_widths
from thresher.train.arch import build
from thresher.train.checkpoint import CONFIG, read_description
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer, measure
from thresher.train.parallel.layout import Layout
from thresher.train.protocol import SAE
from thresher.train.split import read_side

Opened = Store | Mixture | AlignedStore | MemoryStore
"""What can be trained on."""
FREE_FIELDS = (
    "store",
    "cache",
    "out",
    "device",
    "log_every",
    "evaluate_every",
    "evaluate_rows",
    "checkpoint_every",
    "keep",
    "go_back_to",
    "tensorboard",
    "wandb",
    "profile",
    "parallel",
)
"""Fields that do not decide what is trained, and may differ when a run goes on."""
STOPPING_FIELDS = ("evaluate_every", "evaluate_rows")
"""Fields that do decide it when evaluations may end the training."""


def arrange(config: TrainConfig, store: Store | Mixture) -> tuple[TrainConfig, Store | Mixture | AlignedStore]:
    """What a training reads: the store, or hook points of it side by side where the architecture wants them so, with their
    widths in the configuration. Raises ConfigError and StoreError as `AlignedStore` does."""
    arranged = align(store, config.hook_points, config.sae)
    return dataclasses.replace(config, sae=with_widths(config.sae, arranged)), arranged


def name_hook_points(config: TrainConfig, store: Readable) -> tuple[str, ...]:
    """The hook points whose rows a training reads: one for all that stand side by side."""
    return (store.joint,) if isinstance(store, AlignedStore) else config.hook_points


def open_stream(
    config: TrainConfig, store: Readable, device: torch.device, share: tuple[int, int] = (0, 1)
) -> ActivationStream:
    """The batches that a training sees, raw, from the first on; with `share` = (i, n) the i-th of n stretches of each."""
    settings = config.stream
    return ActivationStream(
        store,
        name_hook_points(config, store),
        batch_size=settings.batch_size,
        holdout=settings.holdout,
        seed=config.seed,
        pool_rows=settings.pool_rows,
        balance=settings.balance,
        device=device,
        weights=settings.weights,
        store_weights=settings.store_weights,
        reads=settings.reads,
        share=share,
    )


def measure_normalizer(config: TrainConfig, store: Readable) -> Normalizer:
    """What is done to the batches of a training first; one pass over training rows."""
    if isinstance(store, AlignedStore):
        return measure_aligned(store, config.normalize, holdout=config.stream.holdout, seed=config.seed)
    return measure(
        store,
        config.hook_points,
        config.normalize,
        holdout=config.stream.holdout,
        seed=config.seed,
        balance=config.stream.balance,
        weights=config.stream.weights,
    )


def sample_held_out(config: TrainConfig, store: Readable) -> dict[str, list[Tensor]]:
    """Held-out rows by hook point for the evaluations on the way."""
    fraction, seed, limit = config.stream.holdout, config.seed, config.evaluate_rows
    names = name_hook_points(config, store)
    return {name: [read_held_out(store, name, fraction=fraction, seed=seed, limit=limit)[0]] for name in names}


def read_all_held_out(config: TrainConfig, store: Readable) -> dict[str, Iterator[Tensor]]:
    """All held-out rows by hook point, in chunks."""
    holdout, seed = config.stream.holdout, config.seed
    names = name_hook_points(config, store)
    return {name: read_side(store, name, "held_out", holdout=holdout, seed=seed) for name in names}


def build_sae(config: TrainConfig, d_in: int, layout: Layout | None = None) -> SAE:
    """The untrained module, or this process's part of it. Raises ConfigError when it does not fit into memory."""
    try:
        if layout is not None:
            return layout.build(config.sae, d_in, config.dictionary_seed)
        return build(config.sae, d_in, config.dictionary_seed)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"sae: d_sae={config.sae.d_sae} atoms of width {d_in} do not fit into memory ({error}); choose fewer"
        ) from error


def identify(config: TrainConfig, store: Readable) -> str:
    """Fingerprint of all that decides what is trained; a saved state goes on only with the same."""
    decisive = {name: value for name, value in to_dict(config).items() if not _is_free(name, config)}
    return fingerprint({"config": decisive, "store": store.fingerprint})


def refuse_other_run(config: TrainConfig, store: Readable) -> None:
    """Raises CheckpointError when the folder holds a training with other settings or on another store."""
    path = config.out / "config.yaml"
    if not path.exists():
        return
    before, now = _flatten(_read_settings(path)), _flatten(to_dict(config))
    names = sorted(name for name in before.keys() | now.keys() if not _is_free(name.partition(".")[0], config))
    differing = [name for name in names if before.get(name) != now.get(name)]
    if "sae.kind" in differing:
        # Other architectures have other fields: that is all one difference.
        differing = [name for name in differing if name == "sae.kind" or not name.startswith("sae.")]
    if differing:
        found = "; ".join(f"{name} is {before.get(name)!r} there, {now.get(name)!r} here" for name in differing)
        raise CheckpointError(f"{config.out}: holds another run: {found}; choose another `out`, or delete the folder")
    if not (config.out / CONFIG).exists():
        return
    trained_on = read_description(config.out)["store"]["fingerprint"]
    if trained_on != store.fingerprint:
        raise CheckpointError(
            f"{config.out}: was trained on a store with fingerprint {trained_on[:12]}, {store.path} now has "
            f"{store.fingerprint[:12]}; choose another `out`, or delete the folder"
        )


def _is_free(name: str, config: TrainConfig) -> bool:
    return name in FREE_FIELDS and not (config.patience is not None and name in STOPPING_FIELDS)


def _read_settings(path: Any) -> Mapping[str, Any]:
    """The settings of an earlier run, with the defaults of fields that came later; as they are where they are unknown."""
    values = read_values(path)
    try:
        return to_dict(validate(TrainConfig, values, str(path)))
    except ConfigError:
        return values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
