"""How the processes of a launch train together: which have the same atoms, and which the same rows."""

import datetime
import socket
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from thresher.config import config
from thresher.errors import ConfigError
from thresher.team import PATIENCE, Team
from thresher.train.arch import Architecture, build
from thresher.train.arch.batch import WholeBatch
from thresher.train.parallel.coders import SPLIT, build_shard
from thresher.train.parallel.group import Group
from thresher.train.parallel.rows import SharedBatch, Synchronize, nearest_multiples
from thresher.train.parallel.shard import Shard
from thresher.train.protocol import SAE

NCCL_PATIENCE = datetime.timedelta(hours=1)
"""How long one process waits in an exchange between GPUs, where nobody notices that another one has died; the longest wait is
for a checkpoint that is written."""


@config
class ParallelConfig:
    """How several processes that are launched together share a training; one alone has all of it."""

    dictionary_shards: int = 1
    """Processes that a dictionary of `mp` or `topk` is split over, for one too large for a device. The processes of a launch
    form groups of so many; each group has a share of the rows of a batch."""

    def __post_init__(self) -> None:
        if self.dictionary_shards < 1:
            raise ConfigError(f"dictionary_shards={self.dictionary_shards}: split over at least one process")


class Layout:
    """The groups that this process is in. Process r has shard r % n_shards and share r // n_shards of the rows."""

    def __init__(self, team: Team, n_shards: int, device: torch.device) -> None:
        """All processes of the team must do this. Raises ConfigError when they cannot form groups of `n_shards`."""
        if team.n_ranks % n_shards:
            raise ConfigError(
                f"parallel.dictionary_shards={n_shards}: {team.n_ranks} processes do not form groups of {n_shards}; launch a "
                f"multiple of {n_shards} processes (accelerate launch --num_processes {n_shards} ...)"
            )
        self.team = team
        n_shares, numbers = team.n_ranks // n_shards, range(team.n_ranks)
        refuse_shared_devices(team.gather((socket.gethostname(), str(device))))
        backend = "nccl" if device.type == "cuda" else "gloo"
        same_atoms = [list(numbers[shard::n_shards]) for shard in range(n_shards)]
        same_rows = [list(numbers[share * n_shards : (share + 1) * n_shards]) for share in range(n_shares)]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.rows = _join(team, same_atoms, backend)
        """Those with the same atoms, and each another share of the rows."""
        self.atoms = _join(team, same_rows, backend)
        """Those with the same rows, and each other atoms."""
        self.atoms_on_host = self.atoms if backend == "gloo" else _join(team, same_rows, "gloo")
        """The same, for tensors in the memory of the host."""
        self.everyone = _join(team, [list(numbers)], "gloo")
        """All processes, for tensors in the memory of the host."""
        self.batch = WholeBatch() if self.rows.size == 1 else SharedBatch(self.rows)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.team.is_first

    def check_batch(self, batch_size: int) -> None:
        """Raises ConfigError when the rows of a batch cannot be shared out equally."""
        if batch_size % self.rows.size:
            low, high = nearest_multiples(batch_size, self.rows.size)
            raise ConfigError(
                f"stream.batch_size={batch_size}: {self.rows.size} processes with equal shares of a batch need a multiple of "
                f"{self.rows.size}; give {low} or {high}"
            )

    def build(self, architecture: Architecture, d_in: int, seed: int) -> SAE:
        """The untrained module, or this process's part of it, which knows who has the rows of its batches."""
        if self.atoms.size == 1:
            sae = build(architecture, d_in, seed)
        else:
            sae = build_shard(architecture, d_in, seed, Shard(architecture.d_sae, self.atoms))
        setattr(sae, "batch", self.batch)  # noqa: B010 - not of the protocol: only what trains has it
        return sae

    def any(self, *, here: bool) -> bool:
        """Whether something holds in any process. Costs one small exchange between hosts."""
        return bool(self.everyone.maximum(torch.tensor(int(here)))) if self.team.n_ranks > 1 else here

    def synchronize(self, module: nn.Module) -> Synchronize | None:
        """What makes the gradients of a module equal in all processes with the same atoms; None for one process."""
        if self.team.n_ranks == 1:
            return None
        split = frozenset(id(value) for name, value in module.named_parameters() if name in SPLIT)
        return Synchronize(self.rows, self.atoms, split if self.atoms.size > 1 else frozenset())


def refuse_shared_devices(devices: Sequence[tuple[str, str]]) -> None:
    """Raises ConfigError unless all of several processes (machine, device) have a CPU, or each a GPU of its own."""
    on_gpu = [each for each in devices if each[1].startswith("cuda")]
    if on_gpu and len(on_gpu) < len(devices):
        without = next(host for host, device in devices if not device.startswith("cuda"))
        raise ConfigError(
            f"device: some of the processes have a GPU, one on {without} has none; give device=cpu, or launch none there"
        )
    twice = next((each for each in on_gpu if on_gpu.count(each) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"device: {on_gpu.count(twice)} processes on {twice[0]} have the same GPU, {twice[1]}; launch one process per GPU, "
            "with device=auto or cuda"
        )


def _join(team: Team, groups: Sequence[list[int]], backend: str) -> Group:
    """This process's of several groups, which all processes make in the same order."""
    found: Group | None = None
    for ranks in groups:
        patience = PATIENCE if backend == "gloo" else NCCL_PATIENCE
        handle: Any = dist.new_group(ranks, timeout=patience, backend=backend) if len(ranks) > 1 else None
        if team.rank in ranks:
            found = Group(ranks, team.rank, handle)
    assert found is not None
    return found
