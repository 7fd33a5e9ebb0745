"""How flat a histogram of modality scores looks when every feature fires on both modalities alike, only few times."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.stats import binom

from thresher.analyze.metrics.grouping import count_columns
from thresher.analyze.metrics.modality import ratio
from thresher.analyze.statistics.rows import iterate_rows, read_entries

N_BINS = 20
DRAWS = 5
"""Random deals of the firings to the modalities; averaged over features, so few are enough."""


class Control(NamedTuple):
    """Shares of features per bin of the score, and beyond the thresholds."""

    edges: Float[np.ndarray, " edge"]
    n: int
    observed_energy: Float[np.ndarray, " bin"]
    observed_count: Float[np.ndarray, " bin"]
    expected_energy: Float[np.ndarray, " bin"]
    """What these features would give if each firing fell on either modality alike."""
    expected_count: Float[np.ndarray, " bin"]
    one_sided: float
    """Share of features with a score by energy beyond the thresholds."""
    one_sided_expected: float
    one_sided_energy: float
    """The share of the energy E_image[z^2] + E_text[z^2] that such features have."""
    one_sided_energy_expected: float


def control_histogram(
    image: csr_array, text: csr_array, least_fires: int, thresholds: tuple[float, float], seed: int
) -> Control:
    """Features with at least `least_fires` firings in codes [item, feature] of both modalities.

    By counts the expectation is exact: of n firings Binomial(n, N_image / (N_image + N_text)) fall on images. By energy each
    firing keeps its z^2 and falls on images with that chance. A truly shared feature with 2 firings has |mu - 0.5| > 0.45
    half of the time by counts: rare features make any histogram look bimodal.
    """
    edges = np.linspace(0, 1, N_BINS + 1)
    size = (float(image.shape[0]), float(text.shape[0]))  # type: ignore[index]
    generator = np.random.default_rng(seed)
    sums = [_sum_energies(codes, size[0] / sum(size), generator) for codes in (image, text)]
    fires = [one.fires for one in sums]
    kept = (fires[0] + fires[1] >= least_fires) & (fires[0] + fires[1] > 0)
    n = int(kept.sum())
    energy = np.stack([one.energy[kept] / n_items for one, n_items in zip(sums, size, strict=True)])
    by_energy = ratio(energy[0], energy[1])
    by_count = ratio(fires[0][kept] / size[0], fires[1][kept] / size[1])
    on_image = (sums[0].on_image + sums[1].on_image)[:, kept]
    on_text = np.maximum((sums[0].energy + sums[1].energy)[kept] - on_image, 0)
    dealt = np.stack([on_image / size[0], on_text / size[1]])
    drawn = ratio(dealt[0], dealt[1])
    return Control(
        edges=edges,
        n=n,
        observed_energy=_share(by_energy, edges),
        observed_count=_share(by_count, edges),
        expected_energy=_share(drawn.ravel(), edges),
        expected_count=_deal_counts((fires[0] + fires[1])[kept], size, edges),
        one_sided=_beyond(by_energy, np.ones_like(by_energy), thresholds),
        one_sided_expected=_beyond(drawn, np.ones_like(drawn), thresholds),
        one_sided_energy=_beyond(by_energy, energy.sum(axis=0), thresholds),
        one_sided_energy_expected=_beyond(drawn, dealt.sum(axis=0), thresholds),
    )


def _deal_counts(n: Int[np.ndarray, " feature"], size: tuple[float, float], edges: np.ndarray) -> Float[np.ndarray, " bin"]:
    if len(n) == 0:
        return np.zeros(len(edges) - 1)
    # mu < e exactly when k < n e N_image / (e N_image + (1 - e) N_text); rounding must not push an equal count across.
    share = edges * size[0] / (edges * size[0] + (1 - edges) * size[1])
    below = binom.cdf(np.ceil(n[:, None] * share[None, 1:-1] - 1e-9) - 1, n[:, None], size[0] / sum(size))
    below = np.concatenate([np.zeros((len(n), 1)), below, np.ones((len(n), 1))], axis=1)
    return np.diff(below, axis=1).mean(axis=0)


class _Energies(NamedTuple):
    fires: Int[np.ndarray, " feature"]
    energy: Float[np.ndarray, " feature"]
    """Sum of z^2."""
    on_image: Float[np.ndarray, "draw feature"]
    """The part that random deals give to images."""


def _sum_energies(codes: csr_array, share: float, generator: np.random.Generator) -> _Energies:
    """Sums in blocks; each firing falls on images with the chance `share`."""
    n_features = count_columns(codes)
    fires, energy, on_image = np.zeros(n_features, np.int64), np.zeros(n_features), np.zeros((DRAWS, n_features))
    for rows in iterate_rows(codes):
        entries = read_entries(codes, rows)
        square = np.square(entries.value)
        fires += np.bincount(entries.feature, minlength=n_features)
        energy += np.bincount(entries.feature, weights=square, minlength=n_features)
        falls = generator.random((DRAWS, len(square))) < share
        for line, fallen in zip(on_image, falls, strict=True):
            line += np.bincount(entries.feature[fallen], weights=square[fallen], minlength=n_features)
    return _Energies(fires, energy, on_image)


def _share(scores: np.ndarray, edges: np.ndarray) -> Float[np.ndarray, " bin"]:
    counts = np.histogram(scores[np.isfinite(scores)], bins=edges)[0].astype(np.float64)
    return counts / counts.sum() if counts.sum() else counts


def _beyond(scores: np.ndarray, weights: np.ndarray, thresholds: tuple[float, float]) -> float:
    """Weighted share of the defined scores beyond the thresholds."""
    kept = np.isfinite(scores)
    beyond = (scores[kept] < thresholds[0]) | (scores[kept] > thresholds[1])
    whole = weights[kept].sum()
    return float((weights[kept] * beyond).sum() / whole) if whole > 0 else float("nan")
