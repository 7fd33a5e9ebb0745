"""What the stream asks of a store: a store, or something made of stores, can be trained on alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int64
from torch import Tensor

from thresher.data.records import Modality
from thresher.data.store.schema import HookPointInfo


@runtime_checkable
class Readable(Protocol):
    """Rows of hook points, and the item of each; safe to use from several threads."""

    @property
    def path(self) -> str | Path:
        """Where it is, for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) that changes whenever anything that can be read would."""
        ...

    @property
    def hook_points(self) -> Mapping[str, HookPointInfo]:
        """What can be read, by name."""
        ...

    def rows(self, hook_point: str) -> int:
        """Number of activations of a hook point."""
        ...

    def item_of(self, hook_point: str) -> Int64[np.ndarray, "row"]:
        """For each row the index of its item in `items(modality)`."""
        ...

    def read_items_of(self, hook_point: str, start: int, stop: int) -> Int64[np.ndarray, "row"]:
        """For rows `start` to `stop` (exclusive) the index of their item in `items(modality)`."""
        ...

    def read(self, hook_point: str, start: int, stop: int) -> Float[Tensor, "row width"]:
        """Rows `start` to `stop` (exclusive) in the hook point's dtype."""
        ...

    def read_into(self, hook_point: str, start: int, out: Float[Tensor, "row width"]) -> None:
        """Fill a contiguous CPU tensor of the hook point's dtype with the rows from `start` on."""
        ...

    def read_rows(self, hook_point: str, rows: npt.NDArray[np.int64]) -> Float[Tensor, "row width"]:
        """Any rows in any order, repeats allowed, in the hook point's dtype."""
        ...

    def items(self, modality: Modality, columns: Sequence[str] | None = None) -> Any:
        """The items of a modality as a table of pyarrow, or only some `columns` of them; `record` is one."""
        ...
