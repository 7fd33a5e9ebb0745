"""What features say of labels and of the other modality: bias of probes, plausibility of atoms, cross-reconstruction."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

from thresher.analyze.functional.held import Held
from thresher.analyze.functional.labels import Labels
from thresher.analyze.functional.probes import Probed
from thresher.analyze.metrics.bias import correlate_with_logit, sweep_feature
from thresher.analyze.metrics.estimate import Estimate, estimate, exact
from thresher.analyze.metrics.labels import measure_plausibility
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.universality import cross_reconstruct

TARGETS = 12
"""Labels at most, the most frequent."""
ITERATIONS = 30
PENALTY = 1e-2
"""Of a logistic probe, relative to the mean variance of a dimension."""
SIDES = ("image", "text")


def measure_cross_reconstruction(held: Held) -> dict[str, Estimate]:
    """R2 of images and of texts from the codes of either end of a pair (USAE, arXiv 2502.03714), one line per caption."""
    place = np.searchsorted(held.image.group, held.text.group)
    found = cross_reconstruct(
        [held.image.codes[place], held.text.codes],
        [held.image.atoms, held.text.atoms],
        [held.image.offset, held.text.offset],
        [held.image.x[place], held.text.x],
    )
    return {
        f"{source}_to_{target}": exact(float(found[i, j]), len(place), "pairs")
        for i, source in enumerate(SIDES)
        for j, target in enumerate(SIDES)
    }


def measure_class_plausibility(held: Held, labels: Labels) -> dict[str, Estimate]:
    """Mean over zero-shot classes of the largest cosine of an alive atom with the class vector around the mean of the classes
    (arXiv 2502.12892), beside as many random directions; empty without class vectors.
    """
    if labels.vectors is None:
        return {}
    vectors = normalize_rows(labels.vectors[np.linalg.norm(labels.vectors, axis=1) > 0])
    atoms = held.image.atoms[np.unique(held.image.codes.indices)]
    if len(vectors) < 2 or len(atoms) == 0:
        return {}
    random = np.random.default_rng(held.seed).normal(size=atoms.shape)
    centred = vectors - vectors.mean(axis=0)
    means = {name: float(measure_plausibility(one, centred).mean()) for name, one in (("atoms", atoms), ("random", random))}
    return {name: exact(value, len(vectors), "classes") for name, value in means.items()}


def measure_bias(probed: Probed) -> dict[str, Estimate]:
    """What one feature does to a logistic probe of a label on image activations (MSAE, arXiv 2502.20578): means over labels.

    The feature is the one whose code goes most with the probe's logit on the half that the probe was fitted to. On the other
    half: `correlation` with the logit, and P(label) with the feature set to 0 (`without`) and to its mean code where it fires
    (`with_feature`) in every reconstruction; `with_random`: the same for a random feature.
    """
    if not len(probed.labels):
        return {}
    chosen = np.argsort(-probed.judged_present[0].sum(axis=0), kind="stable")[:TARGETS]
    generator = np.random.default_rng(probed.judged.seed)
    per_label = [_sweep(probed, probed.fitted_present[0][:, label], generator) for label in chosen]
    names = ("correlation", "without", "with_feature", "with_random")
    found = {"correlation": exact(float(np.nanmean([one[0] for one in per_label])), len(chosen), "labels")}
    for place, name in enumerate(names[1:]):
        mean = np.mean([one[1][:, place] for one in per_label], axis=0)
        found[name] = estimate(probed.judged.image.average(mean[:, None])[:, 0], len(chosen), "labels")
    return found


def _sweep(
    probed: Probed, present: Bool[np.ndarray, " image"], generator: np.random.Generator
) -> tuple[float, Float[np.ndarray, "image 3"]]:
    fitted, judged = probed.fitted.image, probed.judged.image
    probe, intercept = fit_logistic(fitted.x, present)
    own = correlate_with_logit(fitted.codes[:, probed.features], fitted.x @ probe)
    best = int(np.nan_to_num(own, nan=-1.0).argmax())
    other = int(generator.integers(len(probed.features)))
    correlation = correlate_with_logit(judged.codes[:, [probed.features[best]]], judged.x @ probe)[0]
    x_hat, columns = judged.rebuild(), list[Any]()
    for place, wants in ((best, (0.0, None)), (other, (None,))):
        feature = probed.features[place]
        values = fitted.codes[:, [feature]]
        mean = float(values.data.mean()) if values.nnz else 0.0
        code = judged.codes[:, [feature]].toarray()[:, 0]
        settings = [mean if one is None else one for one in wants]
        columns.append(sweep_feature(x_hat, code, judged.atoms[feature], probe, intercept, settings))
    return float(correlation), np.concatenate(columns, axis=1)


def fit_logistic(x: Float[np.ndarray, "item d"], present: Bool[np.ndarray, " item"]) -> tuple[Float[np.ndarray, " d"], float]:
    """Weights and intercept of a logistic regression with an L2 penalty, by Newton's method."""
    middle = x.mean(axis=0)
    rows = np.column_stack([x - middle, np.ones(len(x))])
    scale = PENALTY * len(x) * max(float(rows[:, :-1].var(axis=0).mean()), np.finfo(np.float64).tiny)
    penalty = np.append(np.full(x.shape[1], scale), 1e-9)
    weights = np.zeros(rows.shape[1])
    for _ in range(ITERATIONS):
        chance = expit(rows @ weights)
        slope = rows.T @ (chance - present) + penalty * weights
        curvature = (rows * (chance * (1 - chance))[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() <= 1e-8 * max(np.abs(weights).max(), 1.0):
            break
    return weights[:-1], float(weights[-1] - middle @ weights[:-1])
