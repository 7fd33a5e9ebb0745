"""What the loop, the evaluation and the checkpoints ask of a sparse autoencoder."""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from thresher.data.stream import Drawn, StreamBatch
from thresher.train.kernels.codes import Codes


class Stats(NamedTuple):
    """What a batch was like. Every tensor is detached and stays on its device until somebody reads it."""

    parts: Mapping[str, Tensor]
    """Scalars by name: at least `reconstruction` (mean squared error per dimension), `fvu` and `l0`; else the parts of
    the loss and what the architecture wants to remember in `observe`."""
    fired: Bool[Tensor, "d_sae"]
    """Atoms with a non-zero coefficient somewhere in the batch."""
    n_rows: int
    """Rows in the batch."""
    kept: Tensor | None = None
    """What the architecture wants to see again in `observe` and is no scalar."""
    points: Tensor | None = None
    """Rows that an archetypal dictionary collects to mix its atoms from."""


@runtime_checkable
class SAE(Protocol):
    """A sparse autoencoder: a `torch.nn.Module` with these methods, whose state dict holds all that it remembers."""

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of atoms."""
        ...

    @property
    def dictionary(self) -> Tensor:
        """[d_sae, d_in], unit-norm rows after `constrain`."""
        ...

    def encode(self, x: Float[Tensor, "row d_in"], k: int | None = None) -> Codes:
        """The code of each row, independent of the other rows; at most `k` atoms per row when `k` is given."""
        ...

    def decode(self, codes: Codes) -> Float[Tensor, "row d_in"]:
        """The reconstruction that the codes stand for."""
        ...

    def loss(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, ""], Stats]:
        """What training minimises on this batch, and what the batch was like. Changes no state."""
        ...

    def constrain(self) -> None:
        """Put the parameters back where they must be; called after each optimizer step."""
        ...

    def observe(self, stats: Stats) -> None:
        """Remember what a training batch was like (idle atoms, thresholds, penalties); called after `constrain`."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Endless batches to train on, which go on bit for bit from a saved position."""

    @property
    def d_in(self) -> int:
        """Width of a row."""
        ...

    @property
    def n_rows(self) -> int:
        """Training rows of an epoch; 0 where nobody knows."""
        ...

    def __iter__(self) -> Generator[StreamBatch, None, None]:
        """Batches from the current position on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the stream is, after the last batch that was handed out."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch at which `state` was taken."""
        ...

    def trace(self, state: Mapping[str, Any]) -> tuple[StreamBatch, list[Drawn]]:
        """The batch after the one at which `state` was taken, and where its rows stand, if they stand anywhere."""
        ...

    def close(self) -> None:
        """End its threads."""
        ...
