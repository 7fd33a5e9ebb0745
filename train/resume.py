"""The state of a training run in one file, so that it is whole or not there."""

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from thresher.errors import CheckpointError
from thresher.files import write_atomic
from thresher.train.learner import Learner
from thresher.train.parallel.parts import Parts
from thresher.train.protocol import Stream

STATE = "training.safetensors"
VERSION = "4"


@dataclass
class Progress:
    """What evaluations on the way have shown."""

    evaluation: dict[str, Any] = field(default_factory=dict[str, Any])
    """The last one."""
    best_r2: float | None = None
    n_stale: int = 0
    """Evaluations since the best one."""

    def note(self, r2: float, min_gain: float) -> bool:
        """Take an evaluation into account; whether it is better, that is, adds more than `min_gain` to the best."""
        is_better = self.best_r2 is None or r2 > self.best_r2 + min_gain
        self.best_r2, self.n_stale = (r2, 0) if is_better else (self.best_r2, self.n_stale + 1)
        return is_better


class Running(NamedTuple):
    """All that changes while a run goes on."""

    learner: Learner
    stream: Stream
    progress: Progress | None = None
    parts: Parts | None = None
    """What this one of several processes has of the learner's tensors."""


def save_state(folder: Path, running: Running, run: str) -> None:
    """Write parameters, buffers, Adam's averages, the random state and the stream's position.

    `run` is the fingerprint of configuration and store; a state goes on only with the same. Of several processes the first
    one writes.
    """
    own = running.learner.state_dict()
    collected = own if running.parts is None else running.parts.collect(own)
    if collected is None:
        return
    tensors = {f"learner.{name}": value for name, value in collected.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if _on_cuda(running.learner):
        tensors["random.cuda"] = torch.cuda.get_rng_state(running.learner.sae.dictionary.device)
    plain = {"run": run, "version": VERSION, "stream": json.dumps(running.stream.state_dict())}
    if running.progress is not None:
        plain["progress"] = json.dumps(asdict(running.progress))
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(folder / STATE, [save(stored, plain)])


def load_state(folder: Path, running: Running, run: str) -> int:
    """Bring `running` to the saved state; returns the iterations done, 0 when nothing was saved.

    Raises CheckpointError: damaged, of another version, or of another run.
    """
    path = folder / STATE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            plain = cast(dict[str, str], file.metadata())
            read = file.get_tensor if running.parts is None else functools.partial(running.parts.read, file)
            tensors = {name: cast(Tensor, read(name)) for name in cast(list[str], file.keys())}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it to train from the start") from error
    if plain.get("version") != VERSION or plain.get("run") != run:
        raise CheckpointError(
            f"{path}: saved by another version of thresher or on a store that has changed since; choose another `out`, or "
            "delete it to train from the start"
        )
    prefix = "learner."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    running.learner.load_state_dict(own)
    torch.set_rng_state(tensors["random.cpu"])
    if _on_cuda(running.learner) and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], running.learner.sae.dictionary.device)
    running.stream.load_state_dict(json.loads(plain["stream"]))
    for name, value in json.loads(plain.get("progress", "{}")).items() if running.progress is not None else ():
        setattr(running.progress, name, value)
    return running.learner.done


def _on_cuda(learner: Learner) -> bool:
    return learner.sae.dictionary.device.type == "cuda"
