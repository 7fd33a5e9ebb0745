"""Measures equal plain formulas, written from the definitions alone: ties, dead and constant features, signs, few rows."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from thresher.analyze.metrics.activity import sum_activity
from thresher.analyze.metrics.bridge import bridge_norms, centred_bridge, uncentred_bridge
from thresher.analyze.metrics.code_structure import measure_code_rank, measure_connectivity, measure_negative_interference
from thresher.analyze.metrics.dictionary import (
    measure_babel,
    measure_coherence,
    measure_distance,
    measure_overlap,
    measure_ranks,
)
from thresher.analyze.metrics.fidelity import rank_partners
from thresher.analyze.metrics.labels import detect_labels, label_jaccard, measure_purity
from thresher.analyze.metrics.modality import score_modality, tell_modality
from thresher.analyze.metrics.overlap import cofire_proportion, firing_entropy
from thresher.analyze.metrics.overlap import measure_overlap as overlap_of_firing
from thresher.analyze.metrics.pairs import correlation, score_dominance, sum_dominance
from thresher.analyze.metrics.progressive import order_by_size, trace_recovery
from thresher.analyze.metrics.reconstruction import measure_reconstruction, sum_reconstruction
from thresher.analyze.metrics.search import BM25, score_bm25
from thresher.analyze.metrics.semantics import centre, measure_monosemanticity, measure_multimodal, sum_pairs, sum_semantics
from thresher.analyze.metrics.similarity import compare_neighbours, measure_cka, measure_cka_unbiased, measure_cknna, sum_cross
from thresher.analyze.metrics.space import measure_cone, measure_spectrum
from thresher.analyze.metrics.sparsity import measure_features, measure_rows
from thresher.analyze.metrics.stability import match_dictionaries, match_signed_dictionaries, measure_mmcs

M = 12
KINDS = ("plain", "ties", "signed", "always on", "few rows", "captions", "copies", "silent rows", "zero rows", "long atoms")


class World(NamedTuple):
    """Dense float64: activations, codes of both sides, pairs, atoms, a bias."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    w: np.ndarray
    owner: np.ndarray
    """The image of each text."""
    atoms: np.ndarray
    bias: np.ndarray

    @property
    def sides(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self.x, self.z), (self.y, self.w)]


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    kind, g = request.param, np.random.default_rng(3)
    n, d, captions = (9 if kind == "few rows" else 40), 14, (3 if kind == "captions" else 1)
    x, y = g.normal(size=(n, d)) + 1, g.normal(size=(n * captions, d)) - 0.5
    z, w = (g.exponential(size=(rows, M)) * (g.random((rows, M)) < 0.35) for rows in (n, n * captions))
    for codes in (z, w):
        codes[:, 0] = 0
        if kind == "ties":
            codes[:] = np.ceil(codes * 2) / 2
        if kind == "signed":
            codes *= np.where(g.random(codes.shape) < 0.4, -1, 1)
        if kind == "always on":
            codes[:, 1], codes[:, 2] = 0.7, codes[:, 2] + 0.2
        if kind == "silent rows":
            codes[3] = 0
    if kind == "copies":
        x[n // 2 :], z[n // 2 :] = x[: n // 2], z[: n // 2]
    if kind == "zero rows":
        x[4], y[2] = 0, 0
    atoms = unit(g.normal(size=(M, d))) * (g.uniform(0.5, 2, (M, 1)) if kind == "long atoms" else 1)
    return World(x, y, z, w, np.repeat(np.arange(n), captions), atoms, 0.2 * g.normal(size=d))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.where(np.linalg.norm(x, axis=1) > 0, np.linalg.norm(x, axis=1), 1)[:, None]


def same(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def quotient(a: Any, b: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(b) != 0, np.divide(a, b), np.nan)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (unit(a) * unit(b)).sum(1)


def explain(x: np.ndarray, given: np.ndarray) -> dict[str, float]:
    error, own = ((x - given) ** 2).sum(1), (x**2).sum(1)
    fvu, there = error.sum() / ((x - x.mean(0)) ** 2).sum(), own > 0
    return {
        "r2": 1 - fvu,
        "fvu": fvu,
        "nmse": (error[there] / own[there]).mean(),
        "cosine": cosine(x, given)[there].mean(),
        "cosine_of_mean": cosine(x, np.broadcast_to(x.mean(0), x.shape))[there].mean(),
        "fvu_over_dimensions": ((x - given)[there].var(1) / x[there].var(1)).mean(),
        "r2_scalar_mean": 1 - error.sum() / ((x - x.mean()) ** 2).sum(),
        "length_ratio": (np.linalg.norm(given, axis=1)[there] / np.sqrt(own[there])).mean(),
        "bias": (given**2).sum() / (x * given).sum(),
    }


def test_reconstruction_and_recovery_by_prefix(world: World) -> None:
    for x, z in world.sides:
        rows, every, ones = np.arange(len(x)), (z != 0).sum(1), np.ones((1, len(x)))
        given = z @ world.atoms + world.bias
        found = measure_reconstruction(sum_reconstruction(torch.from_numpy(x), torch.from_numpy(given), every, rows, ones))
        for name, value in (explain(x, given) | {"l0": every.mean()}).items():
            same(getattr(found, name)[0], value)
        indices = np.tile(np.random.default_rng(0).permutation(M), (len(x), 1))
        indices, values = order_by_size(indices, np.take_along_axis(z, indices, axis=1))
        traced = trace_recovery(x, indices, values, world.atoms, world.bias, [0, 1, 3, M])
        for place, k in enumerate((0, 1, 3, M)):
            kept = np.zeros_like(z)
            np.put_along_axis(kept, indices[:, :k], values[:, :k], axis=1)
            expected = explain(x, kept @ world.atoms + world.bias)
            for name in ("fvu", "nmse", "cosine"):
                same(getattr(traced, name)[place], expected[name])
            same(traced.dead[place], 1 - (kept != 0).any(0).mean())


def test_sparsity_of_rows_and_features(world: World) -> None:
    for _, z in world.sides:
        size, found, by_row = np.abs(z), measure_features(csr_array(z)), measure_rows(csr_array(z))
        length = np.sqrt((z**2).sum(1))
        same(by_row.hoyer, (np.sqrt(M) - quotient(size.sum(1), length)) / (np.sqrt(M) - 1))
        same(by_row.kurtosis, quotient((z**4).sum(1), length**4))
        for i, column in enumerate(size.T):
            if not column.any():
                assert np.isnan(found.entropy[i])
                assert np.isnan(found.gini[i])
                continue
            same(found.entropy[i], entropy(column) / np.log(len(z)))
            same(found.gini[i], np.abs(column[:, None] - column).mean() / (2 * column.mean()))


def test_scores_of_the_modality(world: World) -> None:
    z, w = world.z, world.w
    sums = [sum_activity(csr_array(c), r, np.ones((1, len(z)))) for c, r in ((z, np.arange(len(z))), (w, world.owner))]
    found = score_modality(sums[0], sums[1], np.zeros((1, 2, M)))
    same(found.energy, quotient((z**2).mean(0), (z**2).mean(0) + (w**2).mean(0)))
    same(found.firing, quotient((z != 0).mean(0), (z != 0).mean(0) + (w != 0).mean(0)))
    is_signed = bool((np.concatenate([z, w]) < 0).any())
    same(found.mean, np.full(M, np.nan) if is_signed else quotient(z.mean(0), z.mean(0) + w.mean(0)))
    one, other = np.abs(z[world.owner]), np.abs(w)
    ratios = [quotient(a, a + b)[a + b > 0] for a, b in zip(one.T, other.T, strict=True)]
    found = score_dominance(sum_dominance(csr_array(z[world.owner]), csr_array(w)))
    same(found, [part.mean() if len(part) else np.nan for part in ratios])
    levels = np.unique(np.abs(np.concatenate([z, w])))[1:]
    counts = [np.array([[(column == level).sum() for level in levels] for column in np.abs(c).T]) for c in (z, w)]
    is_image = np.concatenate([np.ones(len(z)), np.zeros(len(w))])
    auc = [roc_auc_score(is_image, np.abs(column)) for column in np.concatenate([z, w]).T]
    same(tell_modality(counts[0], len(z), counts[1], len(w)).auc, [np.nan, *auc[1:]])


def test_features_over_pairs(world: World) -> None:
    a, b = world.z[world.owner], world.w
    n, spread = len(a), [np.where(np.ptp(c, axis=0) > 0, c.std(0), 0) for c in (a, b)]
    covariance, inner = (a - a.mean(0)).T @ (b - b.mean(0)) / n, world.atoms @ world.atoms.T
    image, text = (a.mean(0)[:, None], spread[0][:, None]), (b.mean(0)[None], spread[1][None])
    same(correlation(a.T @ b, float(n), image, text), quotient(covariance, np.outer(*spread)))
    raw, centred = uncentred_bridge(a.T @ b, float(n), inner), centred_bridge(a.T @ b, float(n), image[0], text[0], inner)
    x, y = a @ world.atoms, b @ world.atoms
    same(raw.sum(), (x * y).sum(1).mean())
    same(centred.sum(), (x * y).sum(1).mean() - (x @ y.T).mean())
    norms = bridge_norms(np.abs(raw).sum(1), np.abs(raw).sum(0))
    same(norms.modality, quotient(np.abs(raw).sum(1), np.abs(raw).sum(1) + np.abs(raw).sum(0)))
    fired = [(c != 0).astype(int) for c in (a, b)]
    both, counts = fired[0].T @ fired[1], [one.sum(0) for one in fired]
    found = overlap_of_firing(both, counts[0][:, None], counts[1][None], n)
    either = np.array([[(p | q).sum() for q in fired[1].T] for p in fired[0].T])
    same(found.jaccard, quotient(both, either))
    same(found.lift, quotient(both * n, np.outer(*counts)))
    share = quotient(counts[0], counts[0] + counts[1])
    same(firing_entropy(np.stack(counts) / n), [np.nan if np.isnan(p) else entropy([p, 1 - p], base=2) for p in share])
    same(cofire_proportion(np.diag(both), np.stack(counts)), [quotient(np.diag(both), one) for one in counts])


def test_meaning_by_double_sums_with_the_least_activation_taken_off(world: World) -> None:
    g, a, b = np.random.default_rng(1), np.abs(world.z[world.owner]), np.abs(world.w)
    e, f = (centre(g.normal(size=(len(a), 5)) + 0.5) for _ in range(2))
    sums = sum_semantics(csr_array(a), e), sum_semantics(csr_array(b), f)
    others = ~np.eye(len(a), dtype=bool)
    for codes, vectors, found in ((a, e, sums[0]), (b, f, sums[1])):
        shifted = codes - codes.min(0)
        weights = [np.outer(column, column) * others for column in shifted.T]
        same(
            measure_monosemanticity(found).score,
            [quotient((one * (vectors @ vectors.T)).sum(), one.sum()).item() for one in weights],
        )
    weights = [np.outer(p, q) for p, q in zip(a.T, b.T, strict=True)]
    same(measure_multimodal(*sums).score, [quotient((one * (e @ f.T)).sum(), one.sum()).item() for one in weights])
    unmatched = [one * others for one in weights]
    found = measure_multimodal(*sums, sum_pairs(csr_array(a), csr_array(b), e, f))
    same(found.score, [quotient((one * (e @ f.T)).sum(), one.sum()).item() for one in unmatched])


def test_labels_at_every_threshold(world: World) -> None:
    g, z = np.random.default_rng(2), world.z
    labels = g.random((len(z), 3)) < 0.4
    labels[:2, :2], labels[2:4, :2], labels[:, 2] = True, False, False
    found = detect_labels(csr_array(z), labels)
    assert np.isnan(found.auroc[:, 2]).all()
    for i, column in enumerate(z.T):
        called = column > np.append(np.unique(column), -np.inf)[:, None]
        for label, y in enumerate(labels[:, :2].T):
            hit, recall = (called & y).sum(1), (called & y).sum(1) / y.sum()
            same(found.auroc[i, label], roc_auc_score(y, column))
            same(found.f1[i, label], (2 * hit / (called.sum(1) + y.sum())).max())
            same(found.accuracy[i, label], (called == y).mean(1).max())
            same(found.balanced[i, label], ((recall + (~called & ~y).sum(1) / (~y).sum()) / 2).max())
    classes = np.eye(4, dtype=bool)[g.integers(0, 4, len(z))]
    counts = (z != 0).T.astype(float) @ classes
    same(measure_purity(csr_array(z), classes).share, quotient(counts.max(1), (z != 0).sum(0)))
    rates, other = counts / 7, g.random((M, 4))
    expected = quotient(np.minimum(rates, other).sum(1), np.maximum(rates, other).sum(1))
    same(label_jaccard(counts, other, np.full(4, 7.0), np.ones(4)), expected)


def test_search_and_ranks_with_ties_against_the_query(world: World) -> None:
    queries, documents = np.abs(world.w[:9]), np.abs(world.z)
    length, fires = (documents > 0).sum(1), (documents > 0).sum(0)
    rarity = np.maximum(np.log((len(documents) - fires + 0.5) / (fires + 0.5)), 0)
    penalty = 0.6 * (1 - 0.75 + 0.75 * length / length.mean())
    asked, saturated = queries * 2.5 / (queries + 1.5), documents * 1.6 / (documents + penalty[:, None])
    same(score_bm25(csr_array(queries), csr_array(documents), BM25(b=0.75)).toarray(), (asked * rarity) @ saturated.T)
    likeness = unit(world.y) @ unit(world.x).T
    best = likeness[np.arange(len(world.y)), world.owner]
    beaten = (likeness >= best[:, None] - 1e-12) & (world.owner[:, None] != np.arange(len(world.x)))
    assert (rank_partners(world.y, world.x, world.owner, np.arange(len(world.x))) == 1 + beaten.sum(1)).all()


def test_geometry_of_two_spaces(world: World) -> None:
    x, y = world.x, world.y[:: len(world.y) // len(world.x)]
    kernels = [(c - c.mean(0)) @ (c - c.mean(0)).T for c in (x, y)]
    expected = (kernels[0] * kernels[1]).sum() / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    same(measure_cka(sum_cross(x, y)), expected)
    plain = [x @ x.T, y @ y.T]
    same(measure_cka_unbiased(x, y), alignment(*plain))
    covariance = np.linalg.eigvalsh(np.cov(x.T)).clip(0)
    found, n = measure_spectrum(x), len(covariance)
    same(found.effective_rank, np.exp(entropy(covariance)), 1e-7)
    shape = covariance * np.sqrt(n) / np.linalg.norm(covariance)
    defect = np.linalg.norm(shape - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    same(found.iso_score, ((n - defect**2 * (n - np.sqrt(n))) ** 2 - n) / (n * (n - 1)), 1e-7)
    there = unit(x[np.linalg.norm(x, axis=1) > 0])
    same(measure_cone(x), (there @ there.T)[~np.eye(len(there), dtype=bool)].mean())


def hsic(k: np.ndarray, other: np.ndarray) -> float:
    n, ones = len(k), np.ones(len(k))
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    cross = (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2)) - 2 * (ones @ k @ other @ ones) / (n - 2)
    return float((np.trace(k @ other) + cross) / (n * (n - 3)))


def alignment(k: np.ndarray, other: np.ndarray) -> float:
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def test_neighbours_of_two_spaces() -> None:
    g = np.random.default_rng(4)
    x = g.normal(size=(33, 7))
    y = np.concatenate([x[:, :4] + 0.5 * g.normal(size=(33, 4)), g.normal(size=(33, 3))], axis=1)
    kernels = [unit(c) @ unit(c).T for c in (x, y)]
    near = []
    for kernel in kernels:
        ranked = np.argsort(-(kernel - 9 * np.eye(33)), axis=1)[:, :6]
        near.append((ranked[:, :, None] == np.arange(33)).any(1))
    same(compare_neighbours(x, y, 6).overlap, (near[0] & near[1]).sum(1).mean() / 6)
    both = near[0] & near[1]
    alone = [hsic(mask * kernel, mask * kernel) for mask, kernel in zip(near, kernels, strict=True)]
    same(measure_cknna(x, y, 6), hsic(both * kernels[0], both * kernels[1]) / np.sqrt(alone[0] * alone[1]))


def test_structure_of_dictionaries_and_codes(world: World) -> None:
    atoms, z = world.atoms, world.z
    angle = unit(atoms) @ unit(atoms).T
    apart = np.where(np.eye(M, dtype=bool), 0, np.abs(angle))
    same(measure_coherence(atoms, 4).nearest, apart.max(1))
    same(measure_babel(atoms, [1, 4]), [np.sort(apart, axis=1)[:, -r:].sum(1).max() for r in (1, 4)])
    same(measure_overlap(atoms), (apart**2).sum() / (M * (M - 1)))
    singular = np.linalg.svd(atoms, compute_uv=False)
    same(measure_ranks(atoms), [(singular**2).sum() / singular.max() ** 2, np.exp(entropy(singular))])
    same(measure_distance(atoms, world.x), 1 - (unit(atoms) @ unit(world.x).T).max(1))
    fired = (z != 0).astype(float)
    same(measure_connectivity(csr_array(z)), 1 - (fired.T @ fired > 0).mean())
    same(measure_code_rank(csr_array(z)), np.exp(entropy(np.linalg.eigvalsh(z.T @ z).clip(0))), 1e-7)
    against = np.maximum(-(z.T @ z / len(z)) * (atoms @ atoms.T), 0)
    same(measure_negative_interference(csr_array(z), atoms), np.linalg.norm(against, 2), 1e-7)
    other = atoms[::-1] + 0.2 * np.random.default_rng(5).normal(size=atoms.shape)
    likeness = unit(atoms) @ unit(other).T
    for match, values in ((match_dictionaries, likeness), (match_signed_dictionaries, np.abs(likeness))):
        same(match(atoms, other).stability, values[linear_sum_assignment(-values)].mean())
    same(measure_mmcs(atoms, other), likeness.max(1).mean())
