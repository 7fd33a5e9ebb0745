"""Laws of equal runs: neither how many rows are encoded at once nor how a process hashes strings changes a bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from thresher.analyze import measure as measuring
from thresher.analyze.battery.sources import count_words
from thresher.analyze.metrics.permutation import chance_beyond, find_levels
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import open_panels
from thresher.data.store import open_store
from thresher.data.store.ingest_pairs import IMAGE, TEXT, import_pairs
from thresher.train.arch import build
from thresher.train.arch.topk import TopK
from thresher.train.checkpoint import TrainedSAE
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer

ROWS, D_IN = 50, 6


def test_chunks_change_no_bit_of_the_sums_or_the_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images", "texts"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(len(name)).normal(size=(ROWS, D_IN)).astype(np.float32))
    store = open_store(import_pairs(tmp_path / "images.npy", tmp_path / "texts.npy", tmp_path / "store"))
    sae = TopK(d_sae=D_IN, k=3)
    module = build(sae, D_IN, 0)
    # With atoms along the axes a product of matrices rounds nothing, whatever its shape.
    module.load_state_dict(module.state_dict() | {"dictionary": torch.eye(D_IN), "encoder": torch.eye(D_IN)})
    config = TrainConfig(store=tmp_path / "store", hook_points=(IMAGE, TEXT), sae=sae, out=tmp_path)
    normalizer = Normalizer(False, torch.zeros(2, D_IN), torch.ones(2))
    trained = TrainedSAE(module, normalizer, config, store.fingerprint, store.identity, {}, 1, True)
    panel = open_panels(store, [IMAGE, TEXT], 1.0, 0, None)["image"]
    monkeypatch.setattr(measuring, "BLOCK", 16)
    one, other = (measuring.measure(trained, store, panel, Resample(4, 0), n, lambda _: None) for n in (3, 8192))
    for sums, others in ((one.reconstruction, other.reconstruction), (one.activity, other.activity)):
        for value, expected in zip(sums, others, strict=True):
            np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(one.items.toarray(), other.items.toarray())
    np.testing.assert_array_equal(one.codes.toarray(), other.codes.toarray())
    assert one.codes.nnz > ROWS


class Salted(str):
    """A string that hashes as in a process of another seed."""

    salt = 1

    def __hash__(self) -> int:
        return self.salt * int.from_bytes(self.encode(), "big")


def test_words_are_counted_in_an_order_that_no_hash_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        [Salted(word) for word in text.split()]
        for text in ("a red cube on sand", "one red ball", "the blue cube stands on a ball")
    ]
    sets: list[list[str]] = []
    orders: list[list[str]] = []
    for salt in (1, 5):
        monkeypatch.setattr(Salted, "salt", salt)
        sets.append(list({word: None for text in texts for word in set(text)}))
        orders.append(list(count_words(texts)))
    assert sets[0] != sets[1]
    assert orders[0] == orders[1]
    assert orders[0][:3] == ["a", "cube", "on"]


def test_the_tail_leaves_as_many_threads_as_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    levels = find_levels(csr_array(np.eye(2, 9)), 9)
    chance_beyond(np.ones(2), levels, levels)
    assert asked == [1, before]
