"""The state of a training run in one file, so that it is whole or not there."""

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from thresher.data.stream import ActivationStream
from thresher.errors import CheckpointError
from thresher.files import write_atomic
from thresher.train.protocol import SAE

STATE = "training.safetensors"
VERSION = "2"


class Running(NamedTuple):
    """All that changes while a run goes on."""

    sae: SAE
    optimizer: Optimizer
    stream: ActivationStream


def save_state(folder: Path, running: Running, iteration: int, run: str) -> None:
    """Write parameters, buffers, Adam's averages, the random state and the stream's position after `iteration`.

    `run` is the fingerprint of configuration and store; a state goes on only with the same.
    """
    module = cast(nn.Module, running.sae)
    tensors = {f"sae.{name}": value for name, value in module.state_dict().items()}
    for index, averages in running.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in averages.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if _on_cuda(running.sae):
        tensors["random.cuda"] = torch.cuda.get_rng_state(running.sae.dictionary.device)
    plain = {"run": run, "iteration": str(iteration), "version": VERSION, "stream": json.dumps(running.stream.state_dict())}
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
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in cast(list[str], file.keys())}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it to train from the start") from error
    if plain.get("version") != VERSION or plain.get("run") != run:
        raise CheckpointError(
            f"{path}: saved by another version of thresher or on a store that has changed since; choose another `out`, or "
            "delete it to train from the start"
        )
    cast(nn.Module, running.sae).load_state_dict(_under(tensors, "sae."))
    _load_optimizer(running.optimizer, _under(tensors, "optimizer."))
    torch.set_rng_state(tensors["random.cpu"])
    if _on_cuda(running.sae) and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], running.sae.dictionary.device)
    running.stream.load_state_dict(json.loads(plain["stream"]))
    return int(plain["iteration"])


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    averages: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        averages.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": averages})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _on_cuda(sae: SAE) -> bool:
    return sae.dictionary.device.type == "cuda"
