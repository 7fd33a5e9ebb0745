"""Laws of the p-values of pairing: they are what dealing the texts gives, for codes of any sign and tail."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.stats import hypergeom

from thresher.analyze.battery.pairing import Totals, derange_totals, measure_self, total
from thresher.analyze.metrics.null import Side, bound_by_reach, chance_of_pairing
from thresher.analyze.metrics.permutation import N_LEVELS, find_levels
from thresher.analyze.statistics import gram
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.pairing import derange, pair_codes

UNITS, DEALS = 300, 10_000


def pair(image: np.ndarray, text: np.ndarray) -> Totals:
    every = np.arange(len(image))
    return total(pair_codes(csr_array(image), csr_array(text), np.stack([every, every], axis=1), every))


def draw(kind: str, fires: int, generator: np.random.Generator) -> np.ndarray:
    codes = np.zeros(UNITS)
    codes[:fires] = {
        "exponential": generator.exponential(size=fires),
        "normal": generator.normal(size=fires),
        "Laplace": generator.laplace(size=fires),
        "log-normal of both signs": generator.lognormal(0, 1, fires) * generator.choice([-1, 1], fires),
    }[kind]
    return codes


@pytest.mark.parametrize("fires", [(20, 45), (60, 60), (300, 300)])
@pytest.mark.parametrize("kind", ["exponential", "normal", "Laplace", "log-normal of both signs"])
def test_one_in_a_hundred_and_one_in_a_thousand_deals_are_as_rare_as_the_p_value_says(
    kind: str, fires: tuple[int, int]
) -> None:
    generator = np.random.default_rng(3)
    image, text = (draw(kind, n, generator) for n in fires)
    sums = np.concatenate([generator.permuted(np.tile(text, (2000, 1)), axis=1) @ image for _ in range(DEALS // 2000)])
    found = pair(image[:, None], text[:, None])
    sides = [
        Side(powers, levels).take(np.zeros(2, np.int64))
        for powers, levels in ((found.sums.image_powers, found.image), (found.sums.text_powers, found.text))
    ]
    beyond = np.quantile(sums, [0.99, 0.999])
    p = chance_of_pairing(beyond, np.zeros(2, np.int64), sides[0], sides[1], UNITS)
    # 100 and 10 deals lie beyond: counting is that sure. Where one product makes the tail, p is too large.
    assert 0.75 < p[0] / 0.01 < 3.5
    assert 0.35 < p[1] / 0.001 < 2.5


def test_a_few_codes_of_one_sign_do_not_drown_among_many_of_the_other() -> None:
    generator = np.random.default_rng(5)
    image, text = np.zeros((2, UNITS))
    # As of a signed pursuit on CLIP embeddings: only the two positive codes of the images can make the sum large.
    image[:30] = np.append(-generator.uniform(2, 10, 28), [2.2, 3.7])
    text[:5] = generator.uniform(2, 6, 5)
    sums = generator.permuted(np.tile(text, (20_000, 1)), axis=1) @ image
    found = pair(image[:, None], text[:, None])
    sides = [
        Side(*one).take(np.zeros(1, np.int64))
        for one in ((found.sums.image_powers, found.image), (found.sums.text_powers, found.text))
    ]
    for least in np.quantile(sums[sums > 0], [0.1, 0.9]):
        p = chance_of_pairing(np.array([least]), np.zeros(1, np.int64), sides[0], sides[1], UNITS)
        assert 0.3 < p[0] / (sums >= least).mean() < 4
    assert found.image.value.max() == 3.7


def test_where_all_codes_are_equal_the_chance_is_that_of_firing_together() -> None:
    generator = np.random.default_rng(0)
    codes = 2.0 * (generator.random((UNITS, 12)) < np.linspace(0.05, 0.9, 12))
    codes[:150, 0] = 2.0
    found = measure_self(pair(codes, np.roll(codes, 7, axis=0)))
    fires = (codes != 0).sum(0)
    exact = hypergeom.sf(found.cofires - 1, UNITS, fires, fires)
    np.testing.assert_allclose(found.p, np.where(found.rho > 0, exact, 1.0))


def test_a_feature_that_follows_itself_is_as_sure_as_its_codes_allow() -> None:
    generator = np.random.default_rng(1)
    codes = generator.normal(size=(UNITS, 3)) * (np.arange(UNITS)[:, None] % [[20, 4, 1]] == 0)
    p = measure_self(pair(codes, codes)).p
    assert (p < [1e-6, 1e-25, 1e-60]).all()
    assert (p >= 0).all()
    assert (measure_self(derange_totals(pair(codes, codes), 0)).p > 1e-4).all()


def test_the_gram_matrix_in_segments_is_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    image, text = (csr_array(generator.normal(size=(50, 6)) * (generator.random((50, 6)) < 0.4)) for _ in range(2))
    pairs = np.stack([np.arange(50), generator.permutation(50)], axis=1)
    pairing = derange(pair_codes(image, text, pairs, np.arange(50), tmp_path / "pairs"), 0)
    every = np.arange(6)
    whole = next(iterate_gram(pairing, every, every))
    monkeypatch.setattr(gram, "SEGMENT", 7)
    parts = next(iterate_gram(pairing, every, every))
    np.testing.assert_allclose(parts.products, whole.products, atol=1e-12)
    np.testing.assert_array_equal(parts.cofires, whole.cofires)


def test_levels_hold_all_units_and_the_sum_of_the_codes() -> None:
    generator = np.random.default_rng(2)
    codes = csr_array(generator.laplace(size=(5, 200)) * (generator.random((5, 200)) < [[0], [0.05], [0.3], [1], [0.9]]))
    found = find_levels(codes, 200)
    np.testing.assert_array_equal(found.units.sum(1), 200)
    np.testing.assert_allclose((found.units * found.value).sum(1), codes.sum(axis=1), atol=1e-9)
    assert (found.units[1, 1:] <= 1).all()
    assert found.units.shape == (5, N_LEVELS)


def test_compiled_products_are_those_of_scipy_to_the_bit_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    generator = np.random.default_rng(5)
    image, text = (csr_array(generator.normal(size=(90, 9)) * (generator.random((90, 9)) < 0.6)) for _ in range(2))
    pairs = np.stack([np.arange(90), generator.permutation(90)], axis=1)
    pairing, rows, columns = derange(pair_codes(image, text, pairs, np.arange(90)), 0), np.arange(1, 9), np.arange(0, 9, 2)
    monkeypatch.setattr(gram, "SEGMENT", 40)
    (expected,) = iterate_gram(pairing, rows, columns)
    monkeypatch.setattr(gram, "COMPILED", 0)
    for n_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        (found,) = iterate_gram(pairing, rows, columns)
        np.testing.assert_array_equal(found.products, expected.products)
        np.testing.assert_array_equal(found.cofires, expected.cofires)


@pytest.mark.parametrize("kind", ["exponential", "log-normal of both signs", "one large"])
def test_features_that_are_equal_on_both_sides_are_never_chance(kind: str) -> None:
    generator = np.random.default_rng(8)
    codes = np.zeros((UNITS, 24))
    for feature, fires in enumerate([*range(2, 14), *range(20, 44, 2)]):
        drawn = draw("exponential" if kind == "one large" else kind, fires, generator)[:fires]
        drawn[0] *= 100 if kind == "one large" else 1
        codes[generator.choice(UNITS, fires, replace=False), feature] = drawn
    p = measure_self(pair(codes, 3 * codes)).p
    # Where one code makes the whole sum, only that it meets itself is evidence: one deal in 300.
    assert (p <= 1.01 / UNITS).all()
    assert np.median(p) < 1e-4


def test_near_the_largest_sum_the_p_value_is_no_less_than_the_share_of_deals() -> None:
    generator = np.random.default_rng(9)
    image, text = np.zeros((2, 30))
    image[:4], text[:5] = [9.0, 4.0, 2.0, 1.0], [8.0, 5.0, 2.5, 1.0, 0.5]
    sums = np.sort(np.concatenate([generator.permuted(np.tile(text, (5000, 1)), axis=1) @ image for _ in range(40)]))
    found = pair(image[:, None], text[:, None])
    reached = np.array([60.0, 72.0, 80.0, 92.0, 95.0])
    sides = [
        Side(powers, levels).take(np.zeros(len(reached), np.int64))
        for powers, levels in ((found.sums.image_powers, found.image), (found.sums.text_powers, found.text))
    ]
    share = 1 - np.searchsorted(sums, reached - 1e-9) / len(sums)
    bound = bound_by_reach(reached, sides[0], sides[1], len(image))
    noise = 4 * np.sqrt(share / len(sums)) + 4 / len(sums)
    assert (bound >= share - noise).all()
    assert (chance_of_pairing(reached, np.zeros(5, np.int64), sides[0], sides[1], 30) <= bound).all()
    assert bound[-1] < 0.01
