"""The laws of the streamed sums: equal to their definitions, to the bit the same for any pieces and blocks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from thresher.analyze.metrics.resample import Resample
from thresher.analyze.statistics import margins
from thresher.analyze.statistics import rows as rows_module
from thresher.analyze.statistics.features import bin_edges, sum_features
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.margins import sum_margins
from thresher.analyze.statistics.paired import GROUPS, find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import Pairing, derange, pair_codes
from thresher.analyze.statistics.rows import RowsWriter, transpose
from thresher.errors import AnalysisError

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
M = 7


def draw_codes(generator: np.random.Generator, n_rows: int, *, signed: bool = True, density: float = 0.4) -> csr_array:
    values = generator.normal(size=(n_rows, M)) if signed else generator.exponential(size=(n_rows, M))
    return csr_array(values * (generator.random((n_rows, M)) < density))


def draw_pairing(seed: int, n_images: int = 30, n_captions: int = 3, scratch: Path | None = None):
    """Codes, the table, and their pairing: captions per image vary, some images have none."""
    generator = np.random.default_rng(seed)
    n_texts = generator.integers(0, n_captions + 1, n_images)
    n_texts[0] = 1
    image, text = draw_codes(generator, n_images), draw_codes(generator, int(n_texts.sum()))
    pairs = np.column_stack([np.repeat(np.arange(n_images), n_texts), generator.permutation(int(n_texts.sum()))])
    pairing = pair_codes(image, text, pairs[generator.permutation(len(pairs))], np.arange(n_images), scratch)
    return image.toarray(), text.toarray(), pairs, pairing


def every(pairing: Pairing) -> np.ndarray:
    return np.arange(pairing.n_features)


@laws
@given(seeds)
def test_sums_per_feature_equal_their_definitions(seed: int) -> None:
    codes = draw_codes(np.random.default_rng(seed), 40)
    z, sums = codes.toarray(), sum_features(codes)
    np.testing.assert_array_equal(sums.fires, (z != 0).sum(0))
    np.testing.assert_array_equal(sums.n_negative, (z < 0).sum(0))
    for found, expected in ((sums.total, z), (sums.absolute, abs(z)), (sums.energy, z**2), (sums.fourth, z**4)):
        np.testing.assert_allclose(found, expected.sum(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(sums.largest, abs(z).max(0))
    firing = [np.flatnonzero(column) for column in z.T]
    assert sums.first.tolist() == [rows[0] if len(rows) else -1 for rows in firing]
    assert sums.last.tolist() == [rows[-1] if len(rows) else -1 for rows in firing]
    expected = [np.histogram(abs(column[column != 0]), bin_edges())[0] for column in z.T]
    np.testing.assert_array_equal(sums.histogram, expected)


def test_sizes_beyond_the_histogram_fall_into_its_end_bins() -> None:
    sums = sum_features(csr_array(np.array([[1e-9], [1e9], [1.0]])))
    assert sums.histogram.sum() == 3
    assert (sums.histogram[0, 0], sums.histogram[0, -1]) == (1, 1)


@laws
@given(seeds)
def test_sums_over_pairs_equal_their_definitions_on_the_table_of_pairs(seed: int) -> None:
    image, text, pairs, pairing = draw_pairing(seed)
    a, b = image[pairs[:, 0]], text[pairs[:, 1]]
    sums = sum_pairs(pairing)
    assert sums.n_pairs == len(pairs)
    np.testing.assert_array_equal(sums.image_fires, (a != 0).sum(0))
    np.testing.assert_array_equal(sums.text_fires, (b != 0).sum(0))
    np.testing.assert_array_equal(sums.cofires, ((a != 0) & (b != 0)).sum(0))
    groups = sums.groups
    for found, expected in (
        (groups.image, a),
        (groups.image_energy, a**2),
        (groups.text, b),
        (groups.text_energy, b**2),
        (groups.product, a * b),
    ):
        np.testing.assert_allclose(found.sum(0), expected.sum(0), rtol=1e-12, atol=1e-13)
    marginals = find_marginals(sums)
    np.testing.assert_allclose(marginals.image_deviation, a.std(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(marginals.text_deviation, b.std(0), rtol=1e-10, atol=1e-12)


@laws
@given(seeds, st.integers(1, 4))
def test_the_gram_matrix_is_that_of_the_table_and_the_same_bits_for_any_block(seed: int, rows_at_once: int) -> None:
    image, text, pairs, pairing = draw_pairing(seed)
    a, b = image[pairs[:, 0]], text[pairs[:, 1]]
    (whole,) = iterate_gram(pairing, every(pairing), every(pairing))
    np.testing.assert_allclose(whole.products, a.T @ b, rtol=1e-12, atol=1e-12)
    image_fires = image != 0
    text_fires = np.stack([(b[pairs[:, 0] == row] != 0).any(0) for row in range(len(image))])
    np.testing.assert_array_equal(whole.cofires, image_fires.T.astype(int) @ text_fires)
    sums = sum_pairs(pairing)
    np.testing.assert_array_equal(sums.both, np.diag(whole.cofires))
    np.testing.assert_array_equal(sums.texted, text_fires.sum(0))
    np.testing.assert_array_equal(sums.images, (a != 0)[np.unique(pairs[:, 0], return_index=True)[1]].sum(0))
    parts = list(iterate_gram(pairing, every(pairing), every(pairing), memory=64.0 * M * rows_at_once))
    assert len(parts) == -(-M // rows_at_once)
    np.testing.assert_array_equal(np.concatenate([part.products for part in parts]), whole.products)
    np.testing.assert_array_equal(np.concatenate([part.cofires for part in parts]), whole.cofires)


def test_a_gram_of_chosen_features_is_a_part_of_the_whole() -> None:
    *_, pairing = draw_pairing(3)
    (whole,) = iterate_gram(pairing, every(pairing), every(pairing))
    (part,) = iterate_gram(pairing, np.array([1, 4]), np.array([0, 2, 6]))
    np.testing.assert_array_equal(part.products, whole.products[np.ix_([1, 4], [0, 2, 6])])


@laws
@given(seeds, st.integers(1, 9))
def test_rows_written_in_pieces_to_files_give_the_same_bits_as_in_memory(tmp_path_factory, seed: int, n_pieces: int) -> None:
    codes = draw_codes(np.random.default_rng(seed), 50)
    writer = RowsWriter(M, tmp_path_factory.mktemp("rows"))
    for piece in np.array_split(np.arange(50), n_pieces):
        writer.append(csr_array(codes[piece]))
    written = writer.finish()
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(written, name), getattr(codes, name))
    for one, other in zip(sum_features(written), sum_features(codes), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pairing_in_files_has_the_same_bits_as_in_memory(tmp_path: Path) -> None:
    *_, kept = draw_pairing(5)
    *_, filed = draw_pairing(5, scratch=tmp_path)
    base = filed.image.data
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    for one, other in zip(sum_pairs(kept).groups, sum_pairs(filed).groups, strict=True):
        np.testing.assert_array_equal(one, other)
    (one,), (other,) = (
        iterate_gram(kept, every(kept), every(kept)),
        iterate_gram(filed, every(filed), every(filed)),
    )
    np.testing.assert_array_equal(one.products, other.products)


def test_compiled_margins_are_those_of_scipy_and_the_same_bits_for_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native = pytest.importorskip("thresher.analyze.statistics.native")
    *_, pairing = draw_pairing(6)
    dictionary = np.random.default_rng(6).normal(size=(M, native.WIDTH + 5))
    monkeypatch.setattr(margins, "GROUPS", 2)
    expected = sum_margins(pairing, dictionary)
    monkeypatch.setattr(margins, "COMPILED", 0)
    monkeypatch.setattr(native, "ROWS", 4)
    found: list[margins.MarginSums] = []
    for n_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        found.append(sum_margins(pairing, dictionary))
    for one, other, exact in zip(*found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, exact, rtol=1e-12, atol=1e-12)


def test_a_transpose_in_files_is_the_transpose(tmp_path: Path) -> None:
    codes = draw_codes(np.random.default_rng(1), 33)
    np.testing.assert_array_equal(transpose(codes, tmp_path).toarray(), codes.toarray().T)


def test_other_blocks_change_no_count_and_sums_only_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, pairing = draw_pairing(8)
    before, features = sum_pairs(pairing), sum_features(pairing.image)
    monkeypatch.setattr(rows_module.iterate_blocks, "__defaults__", (4,))
    after = sum_pairs(pairing)
    np.testing.assert_array_equal(before.cofires, after.cofires)
    np.testing.assert_array_equal(features.histogram, sum_features(pairing.image).histogram)
    for one, other in zip(before.groups, after.groups, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@laws
@given(seeds)
def test_a_derangement_keeps_every_text_and_leaves_no_image_with_its_own_record(seed: int) -> None:
    *_, pairing = draw_pairing(seed)
    deranged = derange(pairing, seed)
    assert sorted(deranged.partner) == list(range(len(pairing.record)))
    assert (pairing.record[deranged.partner] != pairing.record).all()
    np.testing.assert_allclose(sum_pairs(deranged).groups.text.sum(0), sum_pairs(pairing).groups.text.sum(0), rtol=1e-12)


def test_images_of_one_record_cannot_be_deranged() -> None:
    *_, pairing = draw_pairing(0)
    with pytest.raises(AnalysisError, match="of 1 records"):
        derange(pairing._replace(record=np.zeros_like(pairing.record)), 0)


def test_groups_are_whole_records_and_their_margins_are_sums_over_the_same_pairs() -> None:
    generator = np.random.default_rng(0)
    n = 3 * GROUPS
    pairing = pair_codes(draw_codes(generator, n), draw_codes(generator, n), np.tile(np.arange(n)[:, None], 2), np.arange(n))
    assert sum_pairs(pairing).groups.pairs.tolist() == [3.0] * GROUPS
    margins = sum_margins(pairing, np.eye(M))
    np.testing.assert_array_equal(margins.pairs, sum_pairs(pairing).groups.pairs)
    np.testing.assert_allclose(margins.image, sum_pairs(pairing).groups.image, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(margins.own, sum_pairs(pairing).groups.product, rtol=1e-12, atol=1e-13)
    assert Resample(4, 0).weights(0, GROUPS).shape == (5, GROUPS)


@pytest.mark.parametrize(
    ("pairs", "says"), [(np.zeros((0, 2), np.int64), "no pair"), (np.array([[0, 9]]), "codes of another run")]
)
def test_tables_that_do_not_fit_the_codes_are_refused(pairs: np.ndarray, says: str) -> None:
    codes = draw_codes(np.random.default_rng(0), 4)
    with pytest.raises(AnalysisError, match=says):
        pair_codes(codes, codes, pairs, np.arange(4))


def test_codes_of_two_dictionaries_cannot_be_paired() -> None:
    codes = draw_codes(np.random.default_rng(0), 4)
    with pytest.raises(AnalysisError, match="one dictionary"):
        pair_codes(codes, csr_array(codes[:, :3]), np.array([[0, 0]]), np.arange(4))
