"""Laws of pursuits step by step, of hierarchies of features, and of trees learned by toys."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from thresher.analyze.metrics.absorption import score_tree
from thresher.analyze.metrics.code_structure import measure_code_rank
from thresher.analyze.metrics.hierarchy import Nesting, count_precedence, find_nesting, precede, score_nesting
from thresher.analyze.metrics.pursuit import trace_code_rank, trace_pursuit
from thresher.errors import AnalysisError
from thresher.train.kernels import pursue

laws = settings(deadline=None, max_examples=8, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, rows: int = 14, k: int = 6, d_sae: int = 12, d_in: int = 5):
    generator = torch.Generator().manual_seed(seed % 2**31)
    dictionary = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64), dim=1)
    x = torch.randn(rows, d_in, generator=generator, dtype=torch.float64)
    codes, _ = pursue(x, dictionary, k)
    return x.numpy(), codes.indices.numpy(), codes.values.numpy(), dictionary.numpy()


@laws
@given(seeds)
def test_a_pursuit_never_grows_its_residual_and_leaves_each_pick_behind(seed: int) -> None:
    x, indices, values, dictionary = draw(seed)
    found = trace_pursuit(x, indices, values, dictionary)
    assert found.rise <= 1e-12
    assert (np.diff(found.residual) <= 1e-12).all()
    np.testing.assert_allclose(np.diag(found.alignment), 0, atol=1e-9)
    assert np.isnan(found.alignment[np.triu_indices(6, 1)]).all()
    assert np.nanmax(found.alignment[np.tril_indices(6, -1)]) > 1e-3
    rest = x - np.einsum("rk,rkd->rd", values, dictionary[indices])
    assert found.residual[-1] == pytest.approx(np.linalg.norm(rest, axis=1).mean())
    repeated = [len(set(row)) < 6 for row in indices]
    assert (found.again.sum() > 0) == any(repeated)
    np.testing.assert_allclose(found.negative, (values < 0).mean(axis=0))


def test_wrong_coefficients_are_seen_as_a_growing_residual() -> None:
    x, indices, values, dictionary = draw(0)
    assert trace_pursuit(x, indices, 3 * values, dictionary).rise > 0.1


def test_orthogonal_atoms_leave_a_residual_orthogonal_to_all_picks_and_padding_is_no_pick() -> None:
    x = np.array([[3.0, 2, 1], [5, 0, 0]])
    found = trace_pursuit(x, np.array([[0, 1, 2], [0, 0, 0]]), np.array([[3.0, 2, 1], [5, 0, 0]]), np.eye(3))
    np.testing.assert_allclose(found.alignment[np.tril_indices(3)], 0, atol=1e-12)
    np.testing.assert_allclose(found.again, 0)
    assert found.residual[-1] == 0


def test_the_rank_by_step_is_that_of_each_prefix_with_repeats_merged() -> None:
    x, indices, values, dictionary = draw(1, k=4)
    dense = np.zeros((len(x), len(dictionary)))
    np.add.at(dense, (np.arange(len(x))[:, None], indices[:, :3]), values[:, :3])
    found = trace_code_rank(indices, values, len(dictionary), [1, 3])
    assert found[1] == pytest.approx(measure_code_rank(csr_array(dense)))
    with pytest.raises(AnalysisError, match="4 coefficients per row, expected at least 5"):
        trace_code_rank(indices, values, len(dictionary), [5])


def fire_as_tree(rows: int = 400) -> np.ndarray:
    """Features 0 (parent), 1 and 2 (its children, never together), 3 (unrelated), 4 (everywhere)."""
    generator = np.random.default_rng(0)
    parent, left, unrelated = generator.random((3, rows)) < 0.5
    return np.stack([parent, parent & left, parent & ~left, unrelated, np.ones(rows)], axis=1).astype(float)


def test_children_imply_their_parent_and_a_feature_that_is_always_there_is_nobodys_parent() -> None:
    found = find_nesting(csr_array(fire_as_tree()), least_up=0.95, most_down=0.8, min_fires=20, min_lift=1.5)
    assert sorted(zip(found.child.tolist(), found.parent.tolist(), strict=True)) == [(1, 0), (2, 0)]
    np.testing.assert_allclose(found.up, 1)
    np.testing.assert_allclose(found.down.sum(), 1)
    without = find_nesting(csr_array(fire_as_tree()), 0.95, 0.8, 20, 0.0)
    assert set(without.parent.tolist()) == {0, 4}


@laws
@given(seeds, st.floats(0.01, 100))
def test_nesting_depends_neither_on_size_nor_on_copies_of_rows(seed: int, scale: float) -> None:
    z = np.random.default_rng(seed).random((60, 6)) < 0.4
    one = find_nesting(csr_array(z.astype(float)), 0.4, 0.9, 1, 1.0)
    other = find_nesting(csr_array(-scale * np.repeat(z, 5, axis=0)), 0.4, 0.9, 5, 1.0)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@laws
@given(seeds)
def test_precedence_counts_first_picks(seed: int) -> None:
    _, indices, values, _ = draw(seed, d_sae=7)
    values = values * (np.random.default_rng(seed).random(values.shape) < 0.8)
    expected = np.zeros((7, 7))
    for row in range(len(indices)):
        seen: list[int] = []
        for atom, value in zip(indices[row], values[row], strict=True):
            if value != 0 and atom not in seen:
                expected[seen, atom] += 1
                seen.append(int(atom))
    order = count_precedence(indices, values, 7)
    np.testing.assert_array_equal(order.toarray(), expected)
    first, second = np.array([0, 3]), np.array([1, 5])
    np.testing.assert_allclose(precede(order, first, second), 1 - precede(order, second, first))


def test_edges_are_scored_against_the_tree_with_what_chance_would_give() -> None:
    edges = Nesting(np.array([1, 2, 3, 4]), np.array([0, 0, 0, 1]), *np.ones((3, 4)))
    concept, parent = np.array([0, 1, 2, 3, 1, -1]), [-1, 0, 0, -1, 2]
    found = score_nesting(edges, concept, parent)
    assert found.precision == pytest.approx(2 / 3)
    assert (found.recall, found.n_found, found.n_true) == (1, 3, 2)
    assert found.by_chance == pytest.approx(3 / 18)
    nothing = score_nesting(edges, np.full(6, -1), parent)
    assert np.isnan([nothing.precision, nothing.recall, nothing.by_chance]).all()
    with pytest.raises(AnalysisError, match="2 concepts in the tree, expected at least 4"):
        score_nesting(edges, concept, [-1, 0])


def test_the_true_dictionary_has_no_error_and_absorbed_children_are_seen() -> None:
    true, parent = np.eye(6), [-1, 0, 0, -1, 3, 3]
    exact = score_tree(np.random.default_rng(0).permutation(2 * true), true, parent)
    np.testing.assert_allclose(exact[:4], [0, 0, 0, 1], atol=1e-12)
    absorbed = true.copy()
    absorbed[[1, 2]] += true[0]
    found = score_tree(absorbed, true, parent)
    half = np.sqrt(0.5)
    assert found.absorption == pytest.approx(2 * half / 4)
    assert found.hierarchical == pytest.approx(2 * half**2 / 4)
    assert found.flat == pytest.approx(0.25 / 2)
    assert found.atom.tolist() == list(range(6))


def test_a_dictionary_without_the_children_has_no_absorption_score() -> None:
    found = score_tree(np.eye(4)[:1], np.eye(4), [-1, 0, 0, 0])
    assert np.isnan([found.flat, found.hierarchical, found.absorption]).all()
    assert found.recovered == 0.25
    with pytest.raises(AnalysisError, match="0 concepts with a parent"):
        score_tree(np.eye(2), np.eye(2), [-1, -1])
