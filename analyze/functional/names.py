"""Names of features from a vocabulary: by the atom, by the images and by the captions that they fire on."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.functional.held import Half, Held
from thresher.analyze.functional.settings import Naming
from thresher.analyze.functional.words import Words
from thresher.analyze.metrics.estimate import exact
from thresher.analyze.metrics.naming import Names, compare_names, name_features
from thresher.analyze.metrics.needs import normalize_rows

SIDES = ("atom", "image", "text")
COLUMNS = ("name_atom", "name_atom_z", "name_image", "name_image_z", "name_text", "name_text_z", "name_agreement")


class Named(NamedTuple):
    """Names of all features."""

    columns: dict[str, list[Any]]
    """Columns of features.parquet; None where there is no valid name."""
    summary: dict[str, Any]


def name_all(held: Held, words: Words, settings: Naming, classes: np.ndarray) -> Named:
    """Name every feature three times, by unit directions freed from what all of a modality have in common.

    `atom`: the decoder atom without its part along the gap. `image`, `text`: the mean unit activation of the items it fires on,
    weighted by its codes (negative ones left out), less the mean of the modality. A name stands when it is `least_z` standard
    deviations above the words on average and its cosine at least `least_cosine`.
    """
    sides = {"atom": free_from_gap(held), "image": weigh_activations(held.image), "text": weigh_activations(held.text)}
    names = {side: name_features(directions, words.vectors, 1) for side, directions in sides.items()}
    valid = {side: _find_valid(one, settings) for side, one in names.items()}
    word = {side: np.where(valid[side], one.word[:, 0], -1) for side, one in names.items()}
    agreement = compare_names(word["image"], word["text"], words.vectors)
    columns: dict[str, list[Any]] = {}
    for side in SIDES:
        columns[f"name_{side}"] = [words.words[index] if index >= 0 else None for index in word[side].tolist()]
        columns[f"name_{side}_z"] = names[side].z.tolist()
    columns["name_agreement"] = agreement.tolist()
    return Named(columns, _summarize(word, agreement, classes, words, held.seed))


def free_from_gap(held: Held) -> Float[np.ndarray, "feature d_in"]:
    """Atoms in the units of the images' activations, without their part along the gap of unit activations."""
    gap = normalize_rows(held.image.x).mean(axis=0) - normalize_rows(held.text.x).mean(axis=0)
    unit = normalize_rows(gap[None])[0]
    return held.image.atoms - np.outer(held.image.atoms @ unit, unit)


def weigh_activations(half: Half) -> Float[np.ndarray, "feature d_in"]:
    """The mean unit activation of what each feature fires on, less the modality's mean; zeros where it fires on nothing."""
    positive = half.codes.maximum(0)
    unit = normalize_rows(half.x)
    total = np.asarray(positive.sum(axis=0), dtype=np.float64)[:, None]
    centred = unit - unit.mean(axis=0)
    return np.divide(positive.T @ centred, total, out=np.zeros((len(total), unit.shape[1])), where=total > 0)


def _find_valid(names: Names, settings: Naming) -> np.ndarray:
    return (np.nan_to_num(names.z, nan=-np.inf) >= settings.least_z) & (
        np.nan_to_num(names.cosine[:, 0], nan=-1.0) >= settings.least_cosine
    )


def _summarize(
    word: dict[str, np.ndarray], agreement: np.ndarray, classes: np.ndarray, words: Words, seed: int
) -> dict[str, Any]:
    """How many have a name, by class; the mean agreement of both names, and of the names of two different features."""
    found: dict[str, Any] = {}
    generator = np.random.default_rng(seed)
    for kind in sorted(set(classes.tolist())):
        members = np.flatnonzero(classes == kind)
        shares = {
            f"named_by_{side}": exact(float((word[side][members] >= 0).mean()), len(members), "features") for side in SIDES
        }
        both = members[np.isfinite(agreement[members])]
        shuffled = compare_names(word["image"][both], word["text"][generator.permutation(both)], words.vectors)
        agreements = {"agreement": agreement[both], "agreement_by_chance": shuffled}
        means = {
            name: exact(float(one.mean()) if len(both) else np.nan, len(both), "features") for name, one in agreements.items()
        }
        found[kind] = shares | means
    return found
