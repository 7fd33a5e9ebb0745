"""Optional columns of rows: what a position holds, and where its patch is."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from torch import Tensor

from thresher.data.store import Batch, StoreWriter, TokenKind, open_store, read_head, verify_store
from thresher.errors import StoreError
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, make_batch, tree

N_BATCHES = 5


def describe(space: str, n: int) -> dict[str, Tensor]:
    """Columns of the token spaces; others have none."""
    if not space.endswith("tokens"):
        return {}
    number = torch.arange(n)
    if space == "text.tokens":
        return {"kind": (1 + number % 2).to(torch.int8)}
    return {
        "kind": torch.full((n,), TokenKind.PATCH, dtype=torch.int8),
        "patch_row": (number % 3 - 1).to(torch.int16),
        "patch_column": (number % 500 * 60).to(torch.int16),
    }


def make_described(index: int) -> Batch:
    batch = make_batch(index)
    rows = {space: found._replace(columns=describe(space, len(found.item))) for space, found in batch.rows.items()}
    return dataclasses.replace(batch, rows=rows)


def write(path: Path, start: int = 0, stop: int = N_BATCHES) -> None:
    with StoreWriter(path, IDENTITY, HOOK_POINTS, CONCEPTS, items_per_shard=4) as writer:
        for index in range(writer.next_batch, stop):
            writer.write(make_described(index))
        if stop == N_BATCHES:
            writer.finish()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("columns") / "store"
    write(path)
    return path


def expected(space: str) -> Mapping[str, np.ndarray]:
    parts = [describe(space, len(make_batch(index).rows[space].item)) for index in range(N_BATCHES)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


@pytest.mark.parametrize("spec", HOOK_POINTS, ids=lambda spec: spec.name)
def test_columns_are_read_as_they_were_written(path: Path, spec) -> None:
    store = open_store(path)
    columns = expected(spec.space)
    assert store.columns_of(spec.name) == tuple(sorted(columns))
    for name, values in columns.items():
        np.testing.assert_array_equal(store.column_of(spec.name, name), values, strict=True)
    kinds = [row["kind"] for row in read_head(store, spec.name, 0, 9) if "kind" in row]
    assert kinds == [TokenKind(kind).name.lower() for kind in columns.get("kind", [])[:9]]
    assert verify_store(path, level="checksums") == []


def test_other_zarr_readers_read_them(path: Path) -> None:
    for name, values in expected("image.tokens").items():
        folder = path / "acts.zarr" / "rows" / "image.tokens" / name
        np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[:], values)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), values)


def test_a_resumed_writer_makes_the_same_bytes(path: Path, tmp_path: Path) -> None:
    for stop in (2, N_BATCHES):
        write(tmp_path / "again", stop=stop)
    assert tree(tmp_path / "again") == tree(path)


def test_a_column_that_is_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"text\.3: its rows have no column 'patch_row'; columns: kind"):
        open_store(path).column_of("text.3", "patch_row")
    with pytest.raises(StoreError, match=r"vision\.embed: its rows have no column 'kind'; columns: none"):
        open_store(path).column_of("vision.embed", "kind")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": torch.zeros(0)}, "column 'colour': expected kind, patch_row, patch_column"),
        ({"kind": torch.zeros(3)}, r"kind: torch.float32 \[3\] on cpu, expected torch.int8"),
    ],
)
def test_columns_of_another_form_are_refused(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    batch = make_batch(0)
    batch = dataclasses.replace(batch, rows={**batch.rows, "text.tokens": batch.rows["text.tokens"]._replace(columns=change)})
    with (
        StoreWriter(tmp_path / "store", IDENTITY, HOOK_POINTS, CONCEPTS) as writer,
        pytest.raises(StoreError, match=message),
    ):
        writer.write(batch)


def test_every_batch_has_the_columns_of_the_first(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", IDENTITY, HOOK_POINTS, CONCEPTS) as writer:
        writer.write(make_described(0))
        with pytest.raises(StoreError, match=r"batch 1: row space image\.tokens has columns \[\], expected \['kind'"):
            writer.write(make_batch(1))
