"""The modality score of a feature: 1 = fires on images only, 0 = on text only, 0.5 = on both alike."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit
from scipy.stats import norm, t

from thresher.analyze.metrics.activity import ActivitySums
from thresher.analyze.metrics.estimate import LEVEL, Estimate

IMAGE, SHARED, TEXT, UNDECIDED, DEAD = "image", "shared", "text", "undecided", "dead"
"""Classes of features."""
LEAST_RECORDS = 5
"""Firing records of both modalities that an interval needs."""


class Interval(NamedTuple):
    """Ends of the 95 % interval per feature; NaN for dead features and those that fire in fewer than LEAST_RECORDS records."""

    low: Float[np.ndarray, " feature"]
    high: Float[np.ndarray, " feature"]


class ModalityScores(NamedTuple):
    """Scores in [0, 1] per feature; NaN where the feature is dead."""

    energy: Float[np.ndarray, " feature"]
    energy_interval: Interval
    firing: Float[np.ndarray, " feature"]
    firing_interval: Interval
    mean: Float[np.ndarray, " feature"]
    """NaN everywhere when any code is negative: means of signed codes cancel."""


def score_modality(
    image: ActivitySums, text: ActivitySums, pseudo_counts: Float[np.ndarray, "replicate 2 feature"]
) -> ModalityScores:
    """mu = e_image / (e_image + e_text) with e = E[z^2] (energy; arXiv 2602.06218), P(z != 0) (firing) or E[z] (mean;
    arXiv 2504.11695). Each e is a mean over the modality's own rows, so five captions per image do not count five times.

    The interval resamples records. A bootstrap alone would be certain about a feature that fired three times, always on
    images; so each replicate adds a Gamma(1/2, 1) number of pseudo-firings to each modality, the Jeffreys prior of a rate,
    each with the energy of a typical firing record. With independent rows and constant z this is close to the posterior
    Beta(n_image + 1/2, n_text + 1/2), and wider below ten firings. The score itself has no prior in it. By energy the interval
    is widened, see `_widen`; without that those of heavy-tailed codes would hold the truth in 80 to 90 % of all cases. Features
    that fire in fewer than LEAST_RECORDS records have no interval.
    """
    counts = _replicate(image, text, image.fires, text.fires, pseudo_counts)
    energies = _replicate(image, text, image.energy, text.energy, pseudo_counts)
    is_signed = bool((image.n_negative + text.n_negative).any())
    means = (image.total / image.rows[0], text.total / text.rows[0])
    is_enough = image.firing_records + text.firing_records >= LEAST_RECORDS
    return ModalityScores(
        energy=energies[0],
        energy_interval=_interval(energies, _widen(image, text), is_enough),
        firing=counts[0],
        firing_interval=_interval(counts, np.ones(len(is_enough)), is_enough),
        mean=np.full_like(means[0], np.nan) if is_signed else ratio(*means),
    )


def ratio(image: Float[np.ndarray, "*any"], text: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """image / (image + text), NaN where both are 0."""
    total = image + text
    return np.divide(image, total, out=np.full_like(total, np.nan), where=total > 0)


def _replicate(
    image: ActivitySums,
    text: ActivitySums,
    image_sums: Float[np.ndarray, "replicate feature"],
    text_sums: Float[np.ndarray, "replicate feature"],
    pseudo_counts: Float[np.ndarray, "replicate 2 feature"],
) -> Float[np.ndarray, "replicate feature"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        e_image = image_sums / image.rows[:, None]
        e_text = text_sums / text.rows[:, None]
        share = image.firing_records / image.records + text.firing_records / text.records
        # What one firing record adds: the mean over all rows would be this if every record fired.
        typical = np.where(share > 0, (e_image[0] + e_text[0]) / share, 0)
    e_image = e_image + pseudo_counts[:, 0] * typical / image.records
    e_text = e_text + pseudo_counts[:, 1] * typical / text.records
    return ratio(e_image, e_text)


def _interval(
    replicates: Float[np.ndarray, "replicate feature"],
    factor: Float[np.ndarray, " feature"],
    is_enough: Bool[np.ndarray, " feature"],
) -> Interval:
    """Percentiles of replicates 1 and up, their distances from the median times `factor` in log odds; the score lies inside."""
    is_defined = np.isfinite(replicates[0]) & is_enough
    ends = np.full((2, replicates.shape[1]), np.nan)
    if len(replicates) < 2:
        ends[:, is_defined] = np.array([0.0, 1.0])[:, None]
        return Interval(*ends)
    found = logit(np.nan_to_num(replicates[1:, is_defined], nan=0.5))
    low, middle, high = np.quantile(found, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0)
    ends[0, is_defined] = expit(middle - (middle - low) * factor[is_defined])
    ends[1, is_defined] = expit(middle + (high - middle) * factor[is_defined])
    return Interval(np.minimum(ends[0], replicates[0]), np.maximum(ends[1], replicates[0]))


def _widen(image: ActivitySums, text: ActivitySums) -> Float[np.ndarray, " feature"]:
    """How much wider the interval has to be because the bootstrap knows the spread of the energies from few records.

    The log of a modality's energy has about the variance (1 + c) / (n + 1/2), n firing records whose energies have the squared
    coefficient of variation c. Three records tell hardly any c: each modality gets at least the one of both together. And what
    is told is uncertain by itself: Student's t in place of the normal quantile, with the degrees of freedom 2 / CV^2 of the
    estimated variance (Satterthwaite 1946), where energies all alike cost nothing.
    """
    drawn, target, doubt = np.zeros((3, len(image.total)))
    sides = [(one.firing_records, *_vary(one)) for one in (image, text)]
    together = sum(n * vary for n, vary, _ in sides) / np.maximum(sum(n for n, _, _ in sides), 1)
    for n, vary, relative in sides:
        at_least = np.where(n > 0, np.maximum(vary, together), 0)
        drawn += (1 + vary) / (n + 0.5)
        target += (1 + at_least) / (n + 0.5)
        doubt += (at_least / (n + 0.5)) ** 2 * relative
    freedom = 2 * target**2 / np.maximum(doubt, 1e-12 * target**2)
    return t.ppf((1 + LEVEL) / 2, np.maximum(freedom, 1)) / norm.ppf((1 + LEVEL) / 2) * np.sqrt(target / drawn)


def _vary(sums: ActivitySums) -> tuple[np.ndarray, np.ndarray]:
    """Squared coefficient of variation of the energies of firing records, and that of their estimated mean square."""
    has = sums.energy_square > 0
    energy, square = np.where(has, sums.energy[0], 1), np.where(has, sums.energy_square, 1)
    vary = np.maximum(sums.firing_records * square / energy**2 - 1, 0)
    return np.where(has, vary, 0), np.where(has, sums.energy_fourth / square**2, 0)


def classify(score: Float[np.ndarray, " feature"], interval: Interval, text_below: float, image_above: float) -> np.ndarray:
    """Class of each feature [feature], strings: `image` when the whole interval lies above `image_above`, `text` when
    below `text_below`, `shared` when between, `undecided` when it crosses a threshold, `dead` where the score is NaN.
    """
    classes = np.full(score.shape, UNDECIDED, dtype="<U9")
    classes[interval.low > image_above] = IMAGE
    classes[interval.high < text_below] = TEXT
    classes[(interval.low >= text_below) & (interval.high <= image_above)] = SHARED
    classes[np.isnan(score)] = DEAD
    return classes


def share_of_class(score: Float[np.ndarray, " feature"], interval: Interval, bounds: tuple[float, float]) -> Estimate:
    """Share of alive features with bounds[0] <= score <= bounds[1].

    The ends are what the features allow: low counts those whose whole interval lies inside, high those whose interval
    touches it (0 to 1 where there is none). The distance between the ends is therefore the share of undecided features.
    """
    alive = np.isfinite(score)
    n = int(alive.sum())
    if n == 0:
        return Estimate(None, None, None, 0, "alive features")
    low, high, value = np.nan_to_num(interval.low[alive]), np.nan_to_num(interval.high[alive], nan=1.0), score[alive]
    inside = (value >= bounds[0]) & (value <= bounds[1])
    surely = (low >= bounds[0]) & (high <= bounds[1])
    maybe = (high >= bounds[0]) & (low <= bounds[1])
    return Estimate(float(inside.mean()), float(surely.mean()), float(maybe.mean()), n, "alive features")


class Histogram(NamedTuple):
    """A histogram of scores on [0, 1]; shares sum to 1 (all 0 when there are no features)."""

    edges: Float[np.ndarray, " edge"]
    share: Float[np.ndarray, " bin"]
    n: int
    """Features in it."""


def histogram(
    score: Float[np.ndarray, " feature"],
    weight: Float[np.ndarray, " feature"],
    keep: Bool[np.ndarray, " feature"],
    n_bins: int,
) -> Histogram:
    """Share of the weight per bin of the score, over features that are kept and have a score."""
    kept = keep & np.isfinite(score)
    counts, edges = np.histogram(score[kept], bins=n_bins, range=(0.0, 1.0), weights=weight[kept])
    total = counts.sum()
    return Histogram(edges, counts / total if total > 0 else counts.astype(np.float64), int(kept.sum()))


class EnergyShares(NamedTuple):
    """How the energy of all features divides by their modality score (arXiv 2602.06218)."""

    image: float
    text: float
    shared: float
    spread: float
    """Energy-weighted root mean square distance of the score from 0.5: 0 when all is shared, 0.5 when nothing is."""


def share_energy(
    score: Float[np.ndarray, " feature"], energy: Float[np.ndarray, " feature"], text_below: float, image_above: float
) -> EnergyShares:
    """Energy shares of features above `image_above`, below `text_below` and between, and the spread around 0.5.

    `energy` is the mean of the two modalities' E[z^2].
    """
    alive = np.isfinite(score)
    mu, e = score[alive], energy[alive]
    total = e.sum()
    if total == 0:
        return EnergyShares(np.nan, np.nan, np.nan, np.nan)
    is_image, is_text = mu > image_above, mu < text_below
    shared = e[~is_image & ~is_text].sum() / total
    spread = np.sqrt((e * (mu - 0.5) ** 2).sum() / total)
    return EnergyShares(float(e[is_image].sum() / total), float(e[is_text].sum() / total), float(shared), float(spread))


def count_rare(n_fires: Int[np.ndarray, " feature"], at_least: int) -> int:
    """Alive features that fire fewer than `at_least` times: a score near 0 or 1 may be chance there."""
    return int(((n_fires > 0) & (n_fires < at_least)).sum())


class Discrimination(NamedTuple):
    """How well a feature alone tells images from texts."""

    auc: Float[np.ndarray, " feature"]
    """P(|z| larger on a random image than on a random text), ties half: 0.5 is chance. NaN where it never fires."""
    accuracy: Float[np.ndarray, " feature"]
    """Of the best threshold on |z|, in either direction, with as many images as texts: 0.5 is chance."""


def tell_modality(
    image: Int[np.ndarray, "feature bin"], n_image: int, text: Int[np.ndarray, "feature bin"], n_text: int
) -> Discrimination:
    """The modality of a row read from one feature: from histograms of |z| over its firings on `n_image` and `n_text` rows.

    Exact to the width of a bin: values in one bin are ties. Measure C3; in place of the one-dimensional logistic regression of
    arXiv 2504.11695, whose ranking is that of the feature itself. Signed codes: |z|.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [_with_silent(counts, n) / n for counts, n in ((image, n_image), (text, n_text))]
        above = [share[:, ::-1].cumsum(axis=1)[:, ::-1] for share in shares]
    auc = (shares[0] * (1 - above[1] + 0.5 * shares[1])).sum(axis=1)
    best = 0.5 + 0.5 * np.abs(above[0] - above[1]).max(axis=1)
    alive = (image.sum(axis=1) + text.sum(axis=1)) > 0
    return Discrimination(np.where(alive, auc, np.nan), np.where(alive, best, np.nan))


def _with_silent(counts: Int[np.ndarray, "feature bin"], n: int) -> Float[np.ndarray, "feature bins"]:
    """A first bin for the rows on which the feature does not fire."""
    return np.column_stack([n - counts.sum(axis=1), counts]).astype(np.float64)


def average_discrimination(found: Float[np.ndarray, " feature"], energy: Float[np.ndarray, " feature"]) -> float:
    """Energy-weighted mean over alive features (arXiv 2602.06218 weighs its accuracy so); NaN without any."""
    alive = np.isfinite(found)
    total = float(energy[alive].sum())
    return float((found[alive] * energy[alive]).sum() / total) if total > 0 else float("nan")
