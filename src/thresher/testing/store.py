"""Conformance of an activation store: subclass `StoreSuite` and say how yours is written and opened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from thresher.data.records import Concept, Modality
from thresher.data.store import Batch, HookPointSpec, Item, Rows, Store, StoreWriter, open_store, verify_store
from thresher.data.store.places import open_storage
from thresher.data.store.schema import TORCH_DTYPE
from thresher.errors import StoreError

HOOK_POINTS = (
    HookPointSpec("vision.3", "image", "image.tokens", 7, "bfloat16"),
    HookPointSpec("vision.4", "image", "image.tokens", 3, "float32"),
    HookPointSpec("vision.embed", "image", "image.items", 5, "float32"),
    HookPointSpec("text.3", "text", "text.tokens", 4, "float16"),
    HookPointSpec("module:text.ln_final", "text", "text.tokens", 130, "bfloat16"),
    HookPointSpec("text.embed", "text", "text.items", 5, "float32"),
)
"""Two towers, four row spaces, three dtypes, odd widths, a name that no folder can have."""
CONCEPTS = (Concept("shape", None, "shared"), Concept("shape/circle", "shape", "shared"), Concept("mood", None, "text"))
IDENTITY = {"model": {"kind": "made", "name": "up"}, "seed": 0}


def make_batch(index: int, *, records: int = 6, hook_points: Sequence[HookPointSpec] = HOOK_POINTS) -> Batch:
    """A batch of made-up records: ragged rows, an unreadable image, records without captions. The same for the same index."""
    first = index * records
    n_texts = [(first + i) % 3 for i in range(records)]
    items: dict[Modality, list[Item]] = {"image": [], "text": []}
    pairs: list[tuple[int, int]] = []
    for i, n in enumerate(n_texts):
        pairs += [(i, len(items["text"]) + j) for j in range(n)]
        items["image"].append(_make_image(first + i))
        items["text"] += [_make_text(first + i, j) for j in range(n)]
    lengths = {
        "image.tokens": [0 if item.status != "ok" else 5 for item in items["image"]],
        "image.items": [int(item.status == "ok") for item in items["image"]],
        "text.tokens": [1 + (7 * item.record + j) % 9 for j, item in enumerate(items["text"])],
        "text.items": [1] * len(items["text"]),
    }
    spaces = {spec.space for spec in hook_points}
    rows = {space: _make_rows(space, lengths[space], index, hook_points) for space in lengths if space in spaces}
    return Batch(index, items, pairs, rows)


def write_store(writer: StoreWriter, n_batches: int, *, start: int = 0, **made: Any) -> None:
    """Write made-up batches and finish."""
    for index in range(start, n_batches):
        writer.write(make_batch(index, **made))
    writer.finish()


def expected_rows(hook_point: str, n_batches: int, **made: Any) -> Tensor:
    """All rows that a store of `n_batches` made-up batches has of a hook point."""
    batches = [make_batch(index, **made) for index in range(n_batches)]
    return torch.cat(
        [rows.activations[hook_point] for batch in batches for rows in batch.rows.values() if hook_point in rows.activations]
    )


def expected_items(space: str, modality: Modality, n_batches: int, **made: Any) -> Tensor:
    """For each row of a space its item, counted from the start of the store."""
    before, found = 0, []
    for index in range(n_batches):
        batch = make_batch(index, **made)
        found.append(batch.rows[space].item + before)
        before += len(batch.items[modality])
    return torch.cat(found)


class StoreSuite:
    """What every writer and reader of the format must hold to."""

    n_batches = 7

    def open_writer(self, path: str | Path, identity: Mapping[str, Any] = IDENTITY) -> StoreWriter:
        """The writer under test, for the hook points and concepts of this module, with small shards."""
        return StoreWriter(path, identity, HOOK_POINTS, CONCEPTS, items_per_shard=4)

    def place(self, path: Path) -> str | Path:
        """Where the store under test lies whose folder would be `path`."""
        return path

    def open_store(self, path: str | Path) -> Store:
        """The reader under test."""
        return open_store(path)

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> Store:
        """A complete store of made-up batches."""
        suite = cls()
        path = suite.place(tmp_path_factory.mktemp("suite") / "store")
        with suite.open_writer(path) as writer:
            write_store(writer, suite.n_batches)
        return suite.open_store(path)

    @pytest.mark.parametrize("spec", HOOK_POINTS, ids=lambda spec: spec.name)
    def test_what_is_written_is_read(self, store: Store, spec: HookPointSpec) -> None:
        expected = expected_rows(spec.name, self.n_batches)
        found = store.read(spec.name, 0, store.rows(spec.name))
        assert found.dtype == TORCH_DTYPE[spec.dtype]
        assert torch.equal(found, expected)
        assert torch.equal(
            torch.from_numpy(store.item_of(spec.name)), expected_items(spec.space, spec.modality, self.n_batches)
        )
        assert len(store.position_of(spec.name)) == len(expected)

    @pytest.mark.parametrize("spec", HOOK_POINTS, ids=lambda spec: spec.name)
    def test_any_rows_in_any_order_are_read(self, store: Store, spec: HookPointSpec) -> None:
        rows = np.random.default_rng(0).integers(0, store.rows(spec.name), 50)
        everything = store.read(spec.name, 0, store.rows(spec.name))
        assert torch.equal(store.read_rows(spec.name, rows), everything[torch.from_numpy(rows)])
        for start, stop in [(0, 0), (0, 1), (3, 17), (len(everything) - 1, len(everything))]:
            assert torch.equal(store.read(spec.name, start, stop), everything[start:stop])

    def test_items_and_pairs_are_those_of_the_batches(self, store: Store) -> None:
        before = {"image": 0, "text": 0}
        items: dict[str, list[Item]] = {"image": [], "text": []}
        pairs: list[tuple[int, int]] = []
        for index in range(self.n_batches):
            batch = make_batch(index)
            pairs += [(image + before["image"], text + before["text"]) for image, text in batch.pairs]
            for modality in before:
                items[modality] += batch.items[modality]  # type: ignore[index]
                before[modality] = len(items[modality])
        assert store.pairs().tolist() == [list(pair) for pair in pairs]
        for modality in ("image", "text"):
            table = store.items(modality)
            for name in table.column_names:
                expected = [getattr(item, name) for item in items[modality]]
                assert [tuple(cell) if name == "concepts" else cell for cell in table[name].to_pylist()] == expected

    @pytest.mark.parametrize("spec", HOOK_POINTS, ids=lambda spec: spec.name)
    def test_moments_are_those_of_the_rows(self, store: Store, spec: HookPointSpec) -> None:
        x = expected_rows(spec.name, self.n_batches).double()
        moments = store.moments(spec.name)
        norms = x.norm(dim=1)
        assert moments.count == len(x)
        np.testing.assert_allclose(moments.mean, x.mean(dim=0), rtol=0, atol=1e-6 * float(x.abs().max()))
        np.testing.assert_allclose(moments.second_moment, x.square().mean(dim=0), rtol=1e-6)
        np.testing.assert_allclose([moments.mean_norm, moments.max_abs], [norms.mean(), x.abs().max()], rtol=1e-6)
        for quantile, norm in moments.norm_quantiles.items():
            exact = np.quantile(norms.numpy(), quantile, method="inverted_cdf")
            np.testing.assert_allclose(norm, exact, rtol=0.008)

    def test_a_finished_store_is_sound(self, store: Store) -> None:
        assert store.is_complete
        assert store.identity == IDENTITY
        assert store.concepts == CONCEPTS
        assert verify_store(store.path, level="sizes") == []
        assert verify_store(store.path, level="checksums") == []

    def test_an_abandoned_writer_resumes_to_the_same_bytes(self, store: Store, tmp_path: Path) -> None:
        path = self.place(tmp_path / "store")
        starts = []
        for end in (2, 5, self.n_batches):
            with self.open_writer(path) as writer:
                starts.append(writer.next_batch)
                for index in range(writer.next_batch, end):
                    writer.write(make_batch(index))
                if end == self.n_batches:
                    writer.finish()
        assert starts == sorted(starts)
        assert starts[-1] > 0
        assert tree(path) == tree(store.path)

    def test_an_unfinished_store_is_refused_but_its_prefix_is_readable(self, store: Store, tmp_path: Path) -> None:
        path = self.place(tmp_path / "store")
        with self.open_writer(path) as writer:
            for index in range(4):
                writer.write(make_batch(index))
        with pytest.raises(StoreError, match="rerun the same harvest command to resume"):
            self.open_store(path)
        prefix = open_store(path, incomplete="prefix")
        assert not prefix.is_complete
        for name in prefix.hook_points:
            rows = prefix.rows(name)
            assert torch.equal(prefix.read(name, 0, rows), store.read(name, 0, rows))
            assert rows == 0 or prefix.item_of(name).max() < len(prefix.items(prefix.hook_points[name].modality))

    def test_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        path = self.place(tmp_path / "store")
        with self.open_writer(path), pytest.raises(StoreError, match="another harvest is writing"):
            self.open_writer(path)

    def test_another_identity_is_refused_and_named(self, tmp_path: Path) -> None:
        path = self.place(tmp_path / "store")
        with self.open_writer(path) as writer:
            writer.write(make_batch(0))
        other = {"model": {"kind": "made", "name": "down"}, "seed": 0}
        with pytest.raises(StoreError, match=r'model.name: stored "up", asked for "down"'):
            self.open_writer(path, other)


def tree(path: str | Path) -> dict[str, bytes]:
    """The files of a store and their bytes."""
    storage = open_storage(path)
    return {name: storage.read(name) for name in sorted(storage.list_files(""))}


def _make_image(record: int) -> Item:
    status = "unreadable: truncated file" if record % 11 == 4 else "ok"
    return Item(f"r{record}", record, status, None, bytes([record % 256]) * (record % 4), (0, 1)[: record % 3])


def _make_text(record: int, number: int) -> Item:
    return Item(f"r{record}#{number}", record, "ok", f"caption {number} of \u00e9 {record}", None, (2,)[: record % 2])


def _make_rows(space: str, lengths: Sequence[int], index: int, hook_points: Sequence[HookPointSpec]) -> Rows:
    n_rows, generator = sum(lengths), torch.Generator().manual_seed(index)
    item = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    position = [torch.arange(n) if space.endswith("tokens") else torch.full((n,), -1) for n in lengths]
    activations = {
        spec.name: torch.randn(n_rows, spec.width, generator=generator).to(TORCH_DTYPE[spec.dtype])
        for spec in hook_points
        if spec.space == space
    }
    token_id = torch.randint(0, 1000, (n_rows,), generator=generator).int() if space == "text.tokens" else None
    return Rows(item, torch.cat([torch.empty(0, dtype=torch.int64), *position]).int(), token_id, activations)
