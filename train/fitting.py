"""The stage of training for dictionaries that are fitted once: the same inputs, the same checkpoint, no iterations."""

import contextlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import to_dict
from thresher.data.mixture import Mixture
from thresher.data.store import Store
from thresher.data.stream import ActivationStream
from thresher.progress import progress
from thresher.runs import write_provenance
from thresher.train.checkpoint import TrainedSAE, save_sae
from thresher.train.classical import Classical, FittedSAE
from thresher.train.config import TrainConfig
from thresher.train.evaluate import evaluate, summarize
from thresher.train.inputs import build_sae, measure_normalizer, open_stream, read_all_held_out
from thresher.train.log import TrainLog
from thresher.train.normalize import Normalizer


def is_fitted_once(config: TrainConfig) -> bool:
    """Whether the architecture is a classical one, without gradients."""
    return isinstance(config.sae, Classical)


def fit_once(config: TrainConfig, store: Store | Mixture, device: torch.device) -> None:
    """Fit to the first rows of the stream, evaluate on all held-out rows, save the finished checkpoint.

    Nothing is saved on the way: a run that was killed starts again, and comes to the same. `iteration` is 1 in the checkpoint.
    """
    stream = open_stream(config, store, device)
    try:
        normalizer = measure_normalizer(config, store).to(device)
        sae = build_sae(config, stream.d_in)
        assert isinstance(sae, FittedSAE)
        cast(nn.Module, sae).to(device)
        budget = config.count_iterations(stream.n_rows) * config.stream.batch_size
        rows = take_rows(stream, normalizer, min(sae.fit_rows, stream.n_rows, budget))
    finally:
        stream.close()
    sae.fit(rows, config.dictionary_seed)
    evaluation = summarize(evaluate(sae, normalizer, read_all_held_out(config, store)))
    # Only now: a configuration that cannot be fitted must not stand in the way of the mended one.
    write_provenance(config.out, config, {"store": store.fingerprint})
    _log(config, evaluation)
    trained = TrainedSAE(
        sae=sae,
        normalizer=normalizer,
        config=config,
        store_fingerprint=store.fingerprint,
        store_identity=store.identity,
        evaluation=evaluation | {"fit_rows": len(rows)},
        iteration=1,
        is_finished=True,
        store_parts=tuple(part.fingerprint for part in store.stores) if isinstance(store, Mixture) else (),
    )
    save_sae(config.out, trained)


def _log(config: TrainConfig, evaluation: Mapping[str, Any]) -> None:
    by_hook_point = {f"{name}/{key}": value for name, each in evaluation["hook_points"].items() for key, value in each.items()}
    numbers = {name: value for name, value in evaluation.items() if name != "hook_points"} | by_hook_point
    settings = to_dict(config)
    with TrainLog(config.out, 0, tensorboard=config.tensorboard, wandb=config.wandb, described=settings) as train_log:
        train_log.write(1, "evaluation", numbers)


def take_rows(stream: ActivationStream, normalizer: Normalizer, n_rows: int) -> Float[Tensor, "row d_in"]:
    """The first rows of a stream, normalised, on its device."""
    parts: list[Tensor] = []
    left = n_rows
    with progress("read rows to fit to", n_rows, "rows") as advance, contextlib.closing(iter(stream)) as batches:
        while left > 0:
            batch = next(batches)
            parts.append(normalizer.normalize(batch.x, batch.group)[:left])
            left -= len(parts[-1])
            advance(len(parts[-1]))
    return torch.cat(parts)
