"""What the tests of stores in buckets write: small chunks and parts, so that a shard has many of both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from thresher.data.store import StoreWriter
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, make_batch

CHUNK_BYTES, PART_BYTES = 256, 1024


@contextmanager
def small_parts() -> Iterator[None]:
    """Chunks of stores and parts of uploads are small in the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thresher.data.store.layout.CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr("thresher.data.store.objects.PART_BYTES", PART_BYTES)
        yield


def open_writer(place: str | Path) -> StoreWriter:
    """A writer of shards of 16 items."""
    return StoreWriter(place, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=16)


def write(place: str | Path, n_batches: int) -> None:
    """Write the store from where it stands to its end."""
    with open_writer(place) as writer:
        for index in writer.missing(n_batches):
            writer.write(make_batch(index))
        writer.finish()
