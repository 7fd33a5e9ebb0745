"""The laws of measures of pairs: equal to two-pass definitions, exact sums, nulls that hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import hypergeom, pearson3

from thresher.analyze.metrics.association import chance_of
from thresher.analyze.metrics.bridge import (
    alignment_ratio,
    bridge_norms,
    centred_bridge,
    summarize_bridges,
    uncentred_bridge,
)
from thresher.analyze.metrics.margin import divide_margin, divide_margin_by_class
from thresher.analyze.metrics.null import chance_of_products, upper_tail
from thresher.analyze.metrics.pairs import correlate_rows, correlate_self, is_mutual
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.statistics.gram import iterate_gram
from thresher.analyze.statistics.margins import sum_class_margins, sum_margins
from thresher.analyze.statistics.paired import Powers, find_marginals, sum_pairs
from thresher.analyze.statistics.pairing import derange, pair_codes
from thresher.analyze.statistics.partners import Bridging, walk_gram

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
M, D_IN = 6, 4
EVERY = np.arange(M)


def draw(seed: int, n: int = 40, captions: int = 2, *, signed: bool = True):
    """Dense codes per pair (image, text), a dictionary of atoms of any length, and the pairing."""
    generator = np.random.default_rng(seed)

    def codes(rows: int) -> np.ndarray:
        values = generator.normal(size=(rows, M)) if signed else generator.exponential(size=(rows, M))
        return values * (generator.random((rows, M)) < 0.5)

    image, text = codes(n), codes(n * captions)
    text[::captions] += 0.7 * image
    pairs = np.column_stack([np.repeat(np.arange(n), captions), np.arange(n * captions)])
    pairing = pair_codes(csr_array(image), csr_array(text), pairs, np.arange(n))
    return image[pairs[:, 0]], text[pairs[:, 1]], generator.normal(size=(M, D_IN)), pairing


def gram(pairing):
    (rows,) = iterate_gram(pairing, EVERY, EVERY)
    return rows, find_marginals(sum_pairs(pairing))


@laws
@given(seeds)
def test_correlation_from_sums_equals_that_of_the_pairs(seed: int) -> None:
    a, b, _, pairing = draw(seed)
    rows, marginals = gram(pairing)
    expected = np.corrcoef(a.T, b.T)[:M, M:]
    np.testing.assert_allclose(correlate_rows(rows, marginals), expected, atol=1e-12)
    sums = sum_pairs(pairing)
    own = correlate_self(sums.groups, np.ones((1, len(sums.groups.pairs))))
    np.testing.assert_allclose(own[0], np.diag(expected), atol=1e-12)


def test_a_feature_that_is_always_on_alike_has_no_correlation() -> None:
    codes = csr_array(np.full((5, M), 0.1))
    pairing = pair_codes(codes, codes, np.tile(np.arange(5)[:, None], 2), np.arange(5))
    rows, marginals = gram(pairing)
    np.testing.assert_array_equal(correlate_rows(rows, marginals), 0)


@laws
@given(seeds)
def test_bridges_sum_to_matched_similarity_and_centred_ones_to_the_margin(seed: int) -> None:
    a, b, dictionary, pairing = draw(seed)
    rows, marginals = gram(pairing)
    x, y = a @ dictionary, b @ dictionary
    matched, unmatched = (x * y).sum(1).mean(), x.mean(0) @ y.mean(0)
    inner = dictionary @ dictionary.T
    raw = uncentred_bridge(rows.products, marginals.n, inner)
    centred = centred_bridge(rows.products, marginals.n, marginals.image[:, None], marginals.text[None], inner)
    assert raw.sum() == pytest.approx(matched, rel=1e-12, abs=1e-12)
    assert centred.sum() == pytest.approx(matched - unmatched, rel=1e-12, abs=1e-12)


@laws
@given(seeds, st.integers(1, 5))
def test_a_walk_over_blocks_finds_what_the_whole_matrix_holds(seed: int, rows_at_once: int) -> None:
    _, _, dictionary, pairing = draw(seed)
    rows, marginals = gram(pairing)
    rho = np.where(rows.cofires > 0, correlate_rows(rows, marginals), -np.inf)
    rho[rho <= 0] = -np.inf
    labels = np.stack([EVERY % 3, EVERY // 3])
    blocks = iterate_gram(pairing, EVERY, EVERY, memory=64.0 * M * rows_at_once)
    walk = walk_gram(blocks, marginals, 2, Bridging(dictionary, labels, int(labels.max()) + 1))
    assert walk.best.text_of_image.tolist() == np.where(np.isfinite(rho.max(1)), rho.argmax(1), -1).tolist()
    assert walk.best.image_of_text.tolist() == np.where(np.isfinite(rho.max(0)), rho.argmax(0), -1).tolist()
    np.testing.assert_array_equal(walk.best.rho_of_image, np.where(np.isfinite(rho.max(1)), rho.max(1), np.nan))
    assert walk.n_tests == M * M
    wanted = {(i, j) for i in EVERY for j in np.argsort(-rho[i])[:2] if rho[i, j] > 0}
    wanted |= {(i, j) for j in EVERY for i in np.argsort(-rho[:, j])[:2] if rho[i, j] > 0}
    edges = walk.edges
    assert set(zip(edges.i.tolist(), edges.j.tolist(), strict=True)) == wanted
    np.testing.assert_array_equal(edges.product, rows.products[edges.i, edges.j])
    mutual = is_mutual(walk.best, edges.i, edges.j)
    np.testing.assert_array_equal(mutual, (rho.argmax(1)[edges.i] == edges.j) & (rho.argmax(0)[edges.j] == edges.i))
    inner = dictionary @ dictionary.T
    raw = uncentred_bridge(rows.products, marginals.n, inner)
    centred = centred_bridge(rows.products, marginals.n, marginals.image[:, None], marginals.text[None], inner)
    bridges = walk.bridges
    assert bridges is not None
    np.testing.assert_allclose(bridges.rows, [abs(raw).sum(1), abs(centred).sum(1)], rtol=1e-11)
    np.testing.assert_allclose(bridges.columns, [abs(raw).sum(0), abs(centred).sum(0)], rtol=1e-11)
    strongest = np.sort(abs(centred).ravel())[::-1]
    np.testing.assert_allclose(bridges.strongest, strongest[strongest > 0], rtol=1e-11)
    for which, part in enumerate((abs(raw), centred, abs(centred))):
        one = part[np.ix_(labels[1] == 0, labels[1] == 1)].sum()
        assert bridges.regions[which, 1, 0, 1] == pytest.approx(one, rel=1e-10, abs=1e-12)
        np.testing.assert_allclose(bridges.regions[which].sum((1, 2)), part.sum(), rtol=1e-10, atol=1e-12)
    summary = summarize_bridges(bridges)
    assert summary.margin == pytest.approx(centred.sum(), rel=1e-10)
    assert summary.participation == pytest.approx(abs(centred).sum() ** 2 / (centred**2).sum(), rel=1e-10)
    assert summary.self_share == pytest.approx(np.trace(centred) / abs(centred).sum(), rel=1e-10)


@laws
@given(seeds)
def test_the_margin_divides_among_features_as_the_rows_of_the_centred_bridge(seed: int) -> None:
    _, _, dictionary, pairing = draw(seed)
    rows, marginals = gram(pairing)
    centred = centred_bridge(
        rows.products, marginals.n, marginals.image[:, None], marginals.text[None], dictionary @ dictionary.T
    )
    sums = sum_margins(pairing, dictionary)
    found = divide_margin(sums, dictionary, np.ones((1, len(sums.pairs))))
    assert found.total[0] == pytest.approx(centred.sum(), rel=1e-11)
    np.testing.assert_allclose(found.as_image[0], centred.sum(1), atol=1e-12)
    np.testing.assert_allclose(found.as_text[0], centred.sum(0), atol=1e-12)
    np.testing.assert_allclose(found.own[0], np.diag(centred), atol=1e-12)


@laws
@given(seeds)
def test_leaving_a_feature_or_a_class_out_loses_what_the_closed_form_says(seed: int) -> None:
    a, b, dictionary, pairing = draw(seed)

    def margin(keep: np.ndarray) -> float:
        x, y = (a * keep) @ dictionary, (b * keep) @ dictionary
        return (x * y).sum(1).mean() - x.mean(0) @ y.mean(0)

    whole = margin(np.ones(M))
    sums = sum_margins(pairing, dictionary)
    once = np.ones((1, len(sums.pairs)))
    expected = [whole - margin(i != EVERY) for i in EVERY]
    np.testing.assert_allclose(divide_margin(sums, dictionary, once).left_out[0], expected, atol=1e-12)
    labels = EVERY % 2
    classes = divide_margin_by_class(sum_class_margins(pairing, dictionary, labels, 3), once)
    np.testing.assert_allclose(classes.left_out[0], [whole - margin(labels != label) for label in range(3)], atol=1e-12)
    assert classes.total[0] == pytest.approx(whole, rel=1e-11)
    assert classes.parts.shape == (1, 3, 3)


@laws
@given(seeds)
def test_resamples_of_the_margin_are_the_margins_of_the_resampled_pairs(seed: int) -> None:
    a, b, dictionary, pairing = draw(seed)
    sums = sum_margins(pairing, dictionary)
    weights = Resample(3, seed % 100).weights(0, len(sums.pairs))
    repeat = np.repeat(weights[2].astype(int), 2)
    x, y = np.repeat(a, repeat, axis=0) @ dictionary, np.repeat(b, repeat, axis=0) @ dictionary
    expected = (x * y).sum(1).mean() - x.mean(0) @ y.mean(0)
    assert divide_margin(sums, dictionary, weights).total[2] == pytest.approx(expected, rel=1e-10)
    labels = EVERY % 2
    by_class = divide_margin_by_class(sum_class_margins(pairing, dictionary, labels, 2), weights)
    assert by_class.total[2] == pytest.approx(expected, rel=1e-10)
    own = correlate_self(sum_pairs(pairing).groups, weights)[2]
    resampled = np.corrcoef(np.repeat(a, repeat, axis=0).T, np.repeat(b, repeat, axis=0).T)[:M, M:]
    np.testing.assert_allclose(own, np.diag(resampled), atol=1e-10)


@laws
@given(seeds, st.floats(0.05, 20))
def test_scaling_codes_against_atoms_changes_no_bridge(seed: int, scale: float) -> None:
    a, b, dictionary, _ = draw(seed, captions=1)
    pairs = np.tile(np.arange(len(a))[:, None], 2)
    found = []
    for c in (1.0, scale):
        pairing = pair_codes(csr_array(a * c), csr_array(b * c), pairs, np.arange(len(a)))
        sums = sum_margins(pairing, dictionary / c)
        found.append(divide_margin(sums, dictionary / c, np.ones((1, len(sums.pairs)))).left_out[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-10)


def test_swapping_the_modalities_transposes_the_matrix() -> None:
    a, b, _, pairing = draw(1, captions=1)
    pairs = np.tile(np.arange(len(a))[:, None], 2)
    swapped = pair_codes(csr_array(b), csr_array(a), pairs, np.arange(len(a)))
    np.testing.assert_allclose(gram(pairing)[0].products, gram(swapped)[0].products.T, atol=1e-12)


def powers_of(values: np.ndarray) -> Powers:
    return Powers(*(np.array([(values**power).sum()]) for power in (1, 2, 3)))


def test_the_moments_of_a_permutation_are_exact() -> None:
    """All 720 permutations of 6 texts: mean, variance and third moment as stated."""
    from itertools import permutations

    generator = np.random.default_rng(0)
    a, b = generator.exponential(size=6), generator.exponential(size=6) ** 2
    totals = np.array([a @ b[list(order)] for order in permutations(range(6))])
    skewness = ((totals - totals.mean()) ** 3).mean() / totals.std() ** 3
    threshold = totals.mean() + 1.3 * totals.std()
    expected = pearson3.sf(1.3, skewness)
    found = chance_of_products(np.array([threshold]), powers_of(a), powers_of(b), 6)
    assert found[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("skewness", [-3.0, -0.5, 0.0, 1e-4, 0.2, 5.0])
@pytest.mark.parametrize("t", [-1.0, 0.0, 2.0, 8.0])
def test_the_upper_tail_is_that_of_pearsons_third_type(skewness: float, t: float) -> None:
    found = upper_tail(np.array([t]), np.array([skewness]))[0]
    assert found == pytest.approx(pearson3.sf(t, skewness), rel=2e-3, abs=1e-18)


@pytest.mark.parametrize(("n", "n_a", "n_b"), [(5000, 40, 60), (1000, 200, 300), (500, 450, 400)])
def test_chance_is_close_to_the_exact_test_of_co_firing(n: int, n_a: int, n_b: int) -> None:
    """Of 0/1 codes a permutation is hypergeometric. The tail is never too light, and at most 200 times too heavy."""
    a, b = (np.arange(n) < n_a).astype(float), (np.arange(n) < n_b).astype(float)
    expected_mean = n_a * n_b / n
    counts = np.unique(np.ceil(expected_mean + np.array([1, 2, 4]) * max(1, expected_mean**0.5))).astype(int)
    for count in counts[counts <= min(n_a, n_b)]:
        exact = hypergeom.sf(count - 1, n, n_a, n_b)
        found = chance_of_products(np.array([count - 0.5]), powers_of(a), powers_of(b), n)[0]
        assert exact / 3 < found + 1e-12
        assert found < 200 * exact + 1e-12


def test_p_values_of_deranged_pairs_are_uniform_or_larger() -> None:
    generator = np.random.default_rng(2)
    n, width = 400, 30
    codes = csr_array(generator.exponential(size=(n, width)) * (generator.random((n, width)) < 0.08))
    pairing = pair_codes(codes, codes, np.tile(np.arange(n)[:, None], 2), np.arange(n))
    p = []
    for seed in range(20):
        sums = sum_pairs(derange(pairing, seed))
        p.append(chance_of_products(sums.groups.product.sum(0), sums.image_powers, sums.text_powers, n))
    found = np.concatenate(p)
    for level in (0.2, 0.05, 0.01):
        assert (found <= level).mean() < 1.5 * level + 3 * (level / len(found)) ** 0.5


def test_a_feature_paired_with_itself_is_found_by_its_firings_when_rare_and_by_its_codes_when_always_on() -> None:
    codes = csr_array((np.arange(500)[:, None] < np.array([5, 20, 100, 500])) * np.linspace(1, 2, 500)[:, None])
    own = sum_pairs(pair_codes(codes, codes, np.tile(np.arange(500)[:, None], 2), np.arange(500)))
    together = chance_of(own.both.astype(float), own.images.astype(float), own.texted.astype(float), 500.0)
    assert (together < [1e-10, 1e-30, 1e-90, 2]).all()
    vary = chance_of_products(own.groups.product.sum(0), own.image_powers, own.text_powers, 500)
    assert vary[3] < 1e-60


def test_bridge_norms_tell_on_which_side_a_feature_bridges() -> None:
    norms = bridge_norms(np.array([3.0, 0.0, 0.0]), np.array([1.0, 2.0, 0.0]))
    assert norms.energy.tolist() == [2, 1, 0]
    assert norms.modality[:2].tolist() == [0.75, 0]
    assert np.isnan(norms.modality[2])


def test_the_alignment_ratio_is_one_when_bridges_divide_as_energy_does() -> None:
    mass = np.array([[1.0, 0.0], [0.0, 3.0]])
    assert alignment_ratio(mass, 1, 0.75).value == pytest.approx(1)
    found = alignment_ratio(np.array([[0.0, 1.0], [1.0, 1.0]]), 1, 0.5)
    assert (found.value, found.alpha) == (np.inf, 1)
    assert np.isnan(alignment_ratio(np.zeros((2, 2)), 1, 0.5).value)
