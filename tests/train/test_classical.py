"""The classical dictionaries keep the laws of codes, and agree with what they are known for."""

import itertools
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thresher.errors import ConfigError
from thresher.testing.coder import FittedSuite
from thresher.train.arch import ICA, KSVD, NMF, PCA, KMeans, OnlineDictionary, SemiNMF, build
from thresher.train.classical import FittedSAE
from thresher.train.classical.factors import factorize
from thresher.train.classical.least import descend, fit_values
from thresher.train.classical.pursuit import alternate, draw_atoms, forget, update_atoms
from thresher.train.codes import Codes, densify
from thresher.train.protocol import SAE

sklearn = pytest.importorskip("sklearn")
D_IN, D_SAE = 16, 40


class TestKMeans(FittedSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(KMeans(d_sae=D_SAE, k=1), d_in, seed)


class TestKMeansWithSeveralCentroids(FittedSuite):
    def build(self, d_in: int, seed: int) -> SAE:
        return build(KMeans(d_sae=D_SAE, k=3), d_in, seed)


class TestPCA(FittedSuite):
    fvu_at_most = 0.6

    def build(self, d_in: int, seed: int) -> SAE:
        return build(PCA(d_sae=12, k=4), d_in, seed)


class TestICA(FittedSuite):
    fvu_at_most = 0.15

    def build(self, d_in: int, seed: int) -> SAE:
        return build(ICA(d_sae=15, k=4), d_in, seed)


class TestSemiNMF(FittedSuite):
    fvu_at_most = 0.3

    def build(self, d_in: int, seed: int) -> SAE:
        return build(SemiNMF(d_sae=20, k=4), d_in, seed)


class TestNMF(FittedSuite):
    fvu_at_most = 0.3

    def build(self, d_in: int, seed: int) -> SAE:
        return build(NMF(d_sae=20, k=4), d_in, seed)

    def plant(self, seed: int, n_rows: int | None = None) -> Tensor:
        """Rows that are not negative: sums of two of 16 non-negative directions."""
        generator = torch.Generator().manual_seed(seed)
        n_rows = self.n_rows if n_rows is None else n_rows
        atoms = torch.rand(16, self.d_in, generator=torch.Generator().manual_seed(7)).pow(4)
        chosen = torch.rand(n_rows, 16, generator=generator).topk(2, dim=1).indices
        return (atoms[chosen] * (1 + torch.rand(n_rows, 2, generator=generator))[:, :, None]).sum(1)


class TestOnlineDictionary(FittedSuite):
    fvu_at_most = 0.1

    def build(self, d_in: int, seed: int) -> SAE:
        return build(OnlineDictionary(d_sae=D_SAE, k=3, batch_size=100, passes=2), d_in, seed)


class TestKSVD(FittedSuite):
    fvu_at_most = 0.1

    def build(self, d_in: int, seed: int) -> SAE:
        return build(KSVD(d_sae=D_SAE, k=3, iterations=5), d_in, seed)


def plant(n_rows: int = 600, *, n_atoms: int = 30, active: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Signed sums of `active` atoms, and the atoms."""
    generator = torch.Generator().manual_seed(seed)
    atoms = functional.normalize(torch.randn(n_atoms, D_IN, generator=torch.Generator().manual_seed(5)), dim=1)
    chosen = torch.rand(n_rows, n_atoms, generator=generator).topk(active, dim=1).indices
    values = torch.randn(n_rows, active, generator=generator).sign() * (1 + torch.rand(n_rows, active, generator=generator))
    return (atoms[chosen] * values[:, :, None]).sum(1), atoms


def fit(config, rows: Tensor, seed: int = 0) -> FittedSAE:
    sae = build(config, rows.shape[1], 0)
    assert isinstance(sae, FittedSAE)
    sae.fit(rows, seed)
    return sae


def test_principal_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA as Reference  # noqa: N811

    rows = plant()[0] * torch.linspace(1, 3, D_IN) + 2
    sae, reference = fit(PCA(d_sae=5, k=5), rows), Reference(5, svd_solver="full").fit(rows.double().numpy())
    cosines = (sae.dictionary.double() * torch.from_numpy(reference.components_)).sum(1)
    torch.testing.assert_close(cosines.abs(), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)
    expected = reference.inverse_transform(reference.transform(rows.double().numpy()))
    np.testing.assert_allclose(sae.decode(sae.encode(rows)).numpy(), expected, atol=1e-5)


def test_the_code_of_k_components_is_the_nearest_one() -> None:
    """No other choice of two of five components comes nearer."""
    rows = plant()[0]
    sae = fit(PCA(d_sae=5, k=2), rows)
    x = rows[:50]
    error = (x - sae.decode(sae.encode(x))).square().sum(1)
    for pair in torch.combinations(torch.arange(5)):
        indices = pair.expand(len(x), 2)
        other = Codes(indices, ((x - sae.bias) @ sae.dictionary.T).gather(1, indices))
        assert bool((error <= (x - sae.decode(other)).square().sum(1) + 1e-5).all())


def test_one_centroid_is_vector_quantisation_by_the_nearest() -> None:
    from sklearn.cluster import KMeans as Reference

    rows = plant()[0]
    sae = fit(KMeans(d_sae=20), rows, seed=4)
    reference = Reference(20, n_init=1, max_iter=100, random_state=4).fit(rows.numpy())
    expected = reference.cluster_centers_[reference.predict(rows.numpy())]
    np.testing.assert_allclose(sae.decode(sae.encode(rows)).numpy(), expected, atol=1e-5)


def test_weights_of_several_centroids_sum_to_one_and_come_nearer() -> None:
    rows = plant()[0]
    sae = fit(KMeans(d_sae=20), rows)
    codes = sae.encode(rows, 4)
    sizes = sae.size[codes.indices]
    torch.testing.assert_close((codes.values / sizes).sum(1), torch.ones(len(rows)), rtol=0, atol=1e-4)
    errors = [float((rows - sae.decode(sae.encode(rows, k))).square().sum()) for k in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)


def test_all_independent_components_give_the_row_back() -> None:
    rows = plant()[0]
    sae = fit(ICA(d_sae=D_IN, k=D_IN), rows)
    torch.testing.assert_close(sae.decode(sae.encode(rows)), rows, rtol=1e-4, atol=1e-4)


def test_independent_components_find_the_axes_of_independent_sources() -> None:
    """Cosine of each true axis with its best component, up to sign."""
    sources = torch.rand(4000, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    axes = functional.normalize(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    sae = fit(ICA(d_sae=6, k=6), sources @ axes)
    assert float((axes @ sae.dictionary.T).abs().amax(1).min()) > 0.99


def test_a_fit_that_does_not_converge_is_told_not_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    fit(ICA(d_sae=D_IN, k=2, iterations=1), plant()[0])
    assert "fit ica: not converged after iterations=1" in capsys.readouterr().err


def test_the_error_of_semi_nmf_never_grows() -> None:
    errors = factorize(plant()[0].double(), 12, 40, seed=0)[1]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


def test_codes_of_factorisations_are_not_negative() -> None:
    sae = fit(SemiNMF(d_sae=12, k=4), plant()[0])
    assert float(sae.encode(plant(seed=1)[0]).values.min()) >= 0


def test_nmf_refuses_rows_that_are_negative_somewhere() -> None:
    with pytest.raises(ConfigError, match=r"must not be negative.*normalize.center: none.*semi_nmf"):
        fit(NMF(d_sae=8, k=2), plant()[0])


def test_non_negative_least_squares_agree_with_scipy() -> None:
    from scipy.optimize import nnls

    x, atoms = plant(20)
    found = descend(x.double(), atoms[:10].double(), 2000)
    expected = np.stack([nnls(atoms[:10].T.double().numpy(), row)[0] for row in x.double().numpy()])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_values_on_a_support_are_its_least_squares_fit() -> None:
    x, atoms = plant(20)
    indices = torch.rand(20, 30, generator=torch.Generator().manual_seed(2)).topk(4).indices
    codes = fit_values(x, atoms, indices)
    for row, support, values in zip(x, indices, codes.values, strict=True):
        expected = torch.linalg.lstsq(atoms[support].T, row[:, None]).solution[:, 0]
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_the_error_of_ksvd_never_grows() -> None:
    rows = plant(n_atoms=24, active=2)[0].double()
    atoms = draw_atoms(rows, 24, torch.Generator().manual_seed(0))
    errors = alternate(rows, atoms, 2, 12)
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]


def test_ksvd_finds_planted_atoms() -> None:
    rows, planted = plant(1000, n_atoms=24, active=2)
    sae = fit(KSVD(d_sae=24, k=2, iterations=15), rows)
    assert float(((planted @ sae.dictionary.T).abs().amax(1) > 0.98).float().mean()) > 0.75


def test_online_learning_does_not_fall_behind_scikit_learn() -> None:
    """The same number of passes, both with three atoms per row chosen by orthogonal pursuit."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    rows, _ = plant(1000)
    held_out = plant(300, seed=1)[0]
    sae = fit(OnlineDictionary(d_sae=30, k=3, batch_size=100, passes=3), rows)
    ours = float((held_out - sae.decode(sae.encode(held_out))).square().sum())
    reference = MiniBatchDictionaryLearning(
        30, alpha=0.3, max_iter=3, batch_size=100, transform_algorithm="omp", transform_n_nonzero_coefs=3, random_state=0
    ).fit(rows.numpy())
    theirs = float(np.square(held_out.numpy() - reference.transform(held_out.numpy()) @ reference.components_).sum())
    assert ours < 1.1 * theirs


def test_no_atom_can_be_moved_to_where_the_accumulated_error_is_smaller() -> None:
    """After rounds of updates: tr(D^T A D) / 2 - tr(D^T B) does not fall when one atom turns a little."""
    rows, _ = plant()
    atoms = draw_atoms(rows, 8, torch.Generator().manual_seed(0)).double()
    dense = densify(build(KSVD(d_sae=8, k=3), D_IN, 0).encode(rows), 8).double()
    products, targets = dense.T @ dense, dense.T @ rows.double()

    def error(dictionary: Tensor) -> float:
        return float((dictionary * (products @ dictionary)).sum() / 2 - (dictionary * targets).sum())

    before = error(atoms)
    for _ in range(200):
        update_atoms(atoms, products, targets)
    assert error(atoms) < before
    for j in range(8):
        for direction in torch.randn(5, D_IN, generator=torch.Generator().manual_seed(j), dtype=torch.float64):
            turned = atoms.clone()
            turned[j] = functional.normalize(atoms[j] + 1e-3 * direction, dim=0)
            assert error(turned) >= error(atoms) - 1e-6


def test_first_batches_are_forgotten_and_later_ones_hardly() -> None:
    kept = [forget(t, 100) for t in (1, 50, 100, 1000, 100_000)]
    assert kept == sorted(kept)
    assert kept[0] < 0.02
    assert 0.98 < kept[2] < kept[-1] < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(PCA(d_sae=D_IN + 1, k=2), D_IN, 0), "at most as many as activations are wide, 16"),
        (lambda: build(ICA(d_sae=D_IN + 1, k=2), D_IN, 0), "at most as many as activations are wide, 16"),
        (lambda: KSVD(d_sae=8, k=9), "k=9: keep between 1 and d_sae=8"),
        (lambda: KMeans(d_sae=0), "d_sae=0"),
        (lambda: PCA(fit_rows=0), "fit_rows=0"),
        (lambda: SemiNMF(iterations=0), "iterations=0"),
        (lambda: NMF(encode_iterations=0), "encode_iterations=0"),
        (lambda: OnlineDictionary(passes=0), "passes=0"),
        (lambda: fit(KSVD(d_sae=40, k=2), plant(39)[0]), "ksvd needs at least as many rows as atoms, it was given 39"),
    ],
)
def test_nonsense_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_needs_scikit_learn_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"thresher\[classical\]"):
        fit(KMeans(d_sae=8), plant()[0])
    fit(PCA(d_sae=8, k=2), plant()[0])


def test_a_wanted_l0_sets_k() -> None:
    assert KSVD(d_sae=64).with_l0(3.6) == KSVD(d_sae=64, k=4)
