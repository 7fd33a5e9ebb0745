"""The format does not drift: a store of the first release is read, and written again byte for byte.

`python tests/data/test_store_golden.py` writes the golden store anew, for a new version of the format only.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from thresher.data.records import Concept
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter, open_store, verify_store
from thresher.data.store.schema import TORCH_DTYPE
from thresher.testing.store import tree

GOLDEN = Path(__file__).with_name("golden-store")
HOOK_POINTS = (
    HookPointSpec("vision.0", "image", "image.tokens", 3, "bfloat16"),
    HookPointSpec("vision.embed", "image", "image.items", 2, "float32"),
    HookPointSpec("text.0", "text", "text.tokens", 3, "float16"),
)
CONCEPTS = (Concept("shape", None, "shared"), Concept("shape/circle", "shape", "shared"))
N_BATCHES, RECORDS, TOKENS = 2, 4, 3


def make_batch(index: int) -> Batch:
    """Values are multiples of 1/4, so that sums are exact and the same on every machine."""
    records = range(index * RECORDS, (index + 1) * RECORDS)
    items = {
        "image": [Item(f"r{r}", r, "ok", None, b"thumb" if r % 2 else None, (0, 1)[: r % 3]) for r in records],
        "text": [Item(f"r{r}#0", r, "ok", f"caption {r}", None, ()) for r in records],
    }
    pairs = [(i, i) for i in range(RECORDS)]
    rows = {spec.space: make_rows(spec, index) for spec in HOOK_POINTS}
    return Batch(index, items, pairs, rows)


def make_rows(spec: HookPointSpec, index: int) -> Rows:
    per_item = TOKENS if spec.space.endswith("tokens") else 1
    n = RECORDS * per_item
    item = torch.arange(RECORDS).repeat_interleave(per_item)
    position = torch.arange(per_item).repeat(RECORDS) if per_item > 1 else torch.full((n,), -1)
    token_id = (torch.arange(n) * 7 % 11).int() if spec.space == "text.tokens" else None
    return Rows(item, position.int(), token_id, {spec.name: values(spec, index * n, n)})


def values(spec: HookPointSpec, start: int, n: int) -> torch.Tensor:
    flat = torch.arange(start * spec.width, (start + n) * spec.width)
    return ((flat * 5 % 17 - 8) / 4).reshape(n, spec.width).to(TORCH_DTYPE[spec.dtype])


def write(path: Path) -> None:
    with StoreWriter(path, {"model": "golden"}, HOOK_POINTS, CONCEPTS, items_per_shard=6) as writer:
        for index in range(N_BATCHES):
            writer.write(make_batch(index))
        writer.finish()
    (path / ".lock").unlink()


def test_the_golden_store_is_sound():
    assert verify_store(GOLDEN, level="checksums") == []


def test_the_golden_store_is_read():
    store = open_store(GOLDEN)
    assert store.identity == {"model": "golden"}
    assert store.concepts == CONCEPTS
    for spec in HOOK_POINTS:
        n = store.rows(spec.name)
        assert torch.equal(store.read(spec.name, 0, n), values(spec, 0, n))
        norms = values(spec, 0, n).double().norm(dim=1)
        np.testing.assert_allclose(store.moments(spec.name).mean_norm, norms.mean(), rtol=1e-6)
        np.testing.assert_array_equal(store.moments(spec.name).mean, values(spec, 0, n).double().mean(dim=0))
    assert store.token_id_of("text.0").tolist() == 2 * [i * 7 % 11 for i in range(RECORDS * TOKENS)]
    assert store.position_of("vision.embed").tolist() == [-1] * 8
    assert store.pairs().tolist() == [[i, i] for i in range(8)]
    assert store.items("text")["text"].to_pylist() == [f"caption {r}" for r in range(8)]
    assert store.items("image", columns=["thumbnail"])["thumbnail"].to_pylist() == [None, b"thumb"] * 4


def test_the_golden_store_is_written_again_byte_for_byte(tmp_path):
    """Another pyarrow signs its Parquet files with its own version: then they and what holds their checksums differ."""
    write(tmp_path / "store")
    part = "items/text/00000000.parquet"
    is_same_pyarrow = pq.read_metadata(tmp_path / "store" / part).created_by == pq.read_metadata(GOLDEN / part).created_by
    signed = () if is_same_pyarrow else ("items/", "pairs/", "commits/items/", "manifest.json")
    expected, found = (
        {k: v for k, v in tree(path).items() if not k.startswith(signed)} for path in (GOLDEN, tmp_path / "store")
    )
    assert list(found) == list(expected)
    assert [name for name in found if found[name] != expected[name]] == []


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    write(GOLDEN)
