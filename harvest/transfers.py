"""Copies between the CPU and a GPU that run beside its computation, each direction on a stream of its own."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.harvest.adapters.base import Inputs, Level
from thresher.harvest.prepare import Chunk
from thresher.harvest.rows import RowIndex


class Sent(NamedTuple):
    """What one forward pass needs on the device."""

    inputs: Inputs
    rows: dict[Level, RowIndex]
    """Which of its activations are rows, by the level of the hook point."""
    lengths: Int[Tensor, " row"]
    """How many token rows make one mean."""

    def tensors(self) -> Iterator[Tensor]:
        """All tensors on the device."""
        yield from self.inputs.tensors.values()
        for rows in self.rows.values():
            yield from (rows.item, rows.position)
        yield self.lengths


class Transfers:
    """To a device and back. Nothing here waits; on the CPU nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._up = torch.cuda.Stream(device) if is_cuda else None
        self._down = torch.cuda.Stream(device) if is_cuda else None

    def send(self, chunk: Chunk) -> Sent:
        """A chunk on the device; what is computed from now on waits for it, what is computed already goes on beside it."""
        if self._up is None:
            return self._send(chunk)
        with torch.cuda.stream(self._up):
            sent = self._send(chunk)
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._up)
        for tensor in sent.tensors():
            # Its memory belongs to the stream of the copy, which must not have it back while it is computed with.
            tensor.record_stream(compute)
        return sent

    def fetch(self, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Rows on the CPU, in page-locked memory where they come from a GPU; they are there once `mark` is reached."""
        if self._down is None:
            return rows
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            # Asked not to wait, torch takes page-locked memory from its cache, and gives it back to it in the end.
            fetched = rows.to("cpu", non_blocking=True)
        rows.record_stream(self._down)
        return fetched

    def mark(self) -> torch.cuda.Event | None:
        """What is reached when all that was fetched until now is there; None where it is there already."""
        if self._down is None:
            return None
        reached = torch.cuda.Event()
        reached.record(self._down)
        return reached

    def _send(self, chunk: Chunk) -> Sent:
        rows: dict[Level, RowIndex] = {"tokens": chunk.places.send(self._device), "items": chunk.items.send(self._device)}
        return Sent(chunk.inputs.send(self._device), rows, chunk.means.lengths.to(self._device, non_blocking=True))
