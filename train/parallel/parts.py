"""The state of a training by several processes: whole on disk, in parts in memory, and equal where it must be."""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from thresher.errors import ThresherError
from thresher.train.arch import Architecture, build
from thresher.train.learner import Learner
from thresher.train.parallel.coders import SPLIT, ShardedCoder
from thresher.train.parallel.layout import Layout
from thresher.train.protocol import SAE


class Parts:
    """What this process has of the tensors of a learner."""

    def __init__(self, layout: Layout, learner: Learner) -> None:
        self._layout, self._learner = layout, learner
        self._shard = learner.sae.shard if isinstance(learner.sae, ShardedCoder) else None

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Tensors of `Learner.state_dict()`, whole, on the host of the first process; None in the others.

        One tensor after the other, so that nobody else holds more than its own. Raises ThresherError when processes with the
        same atoms do not have the same bits any more.
        """
        self._refuse_unequal(tensors)
        whole: dict[str, Tensor] = {}
        for name, value in tensors.items():
            value = value.detach().cpu().contiguous()
            if self._is_split(name, value) and self._shard is not None and self._layout.rows.place == 0:
                found = self._shard.collect(value, self._layout.atoms_on_host)
                value = value if found is None else found
            if self._layout.is_first:
                whole[name] = value
        return whole if self._layout.is_first else None

    def read(self, file: Any, name: str) -> Tensor:
        """This process's part of a tensor in an open safetensors file, by its name there: `learner.` and a learner's name."""
        where = file.get_slice(name)
        if self._shard is None or not where.get_shape() or not self._is_split(name.partition(".")[2], None):
            return cast(Tensor, file.get_tensor(name))
        return cast(Tensor, where[self._shard.first : self._shard.stop])

    def join(self, sae: SAE, architecture: Architecture, seed: int) -> SAE | None:
        """The module with all atoms, to be saved by the first process; None in the others."""
        if self._shard is None:
            return sae if self._layout.is_first else None
        tensors = self.collect({f"sae.{name}": value for name, value in cast(nn.Module, sae).state_dict().items()})
        if tensors is None:
            return None
        made = build(architecture, sae.d_in, seed)
        cast(nn.Module, made).load_state_dict({name.removeprefix("sae."): value for name, value in tensors.items()})
        return made

    def _is_split(self, name: str, value: Tensor | None) -> bool:
        """Whether a tensor has a row per atom; a scalar has not."""
        if self._shard is None or (value is not None and not value.dim()):
            return False
        area, _, rest = name.partition(".")
        if area == "optimizer":
            module = cast(nn.Module, self._learner.sae)
            trained = [known for known, parameter in module.named_parameters() if parameter.requires_grad]
            rest = trained[int(rest.partition(".")[0])]
        return rest in SPLIT

    def _refuse_unequal(self, tensors: Mapping[str, Tensor]) -> None:
        rows = self._layout.rows
        if rows.size == 1:
            return
        digests = [_digest(each) for each in tensors.values()]
        device = self._learner.sae.dictionary.device
        found = torch.stack(rows.gather(torch.tensor(digests, device=device)))
        for name, is_equal in zip(tensors, (found == found[0]).all(0).tolist(), strict=True):
            if not is_equal:
                raise ThresherError(
                    f"{name} is not the same in all processes any more: they compute differently; train on machines of one "
                    "kind, and report this if they are"
                )


def _digest(tensor: Tensor) -> int:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.blake2b(values.data, digest_size=7).digest(), "little")
