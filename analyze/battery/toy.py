"""A world of two modalities whose classes of features are known: what the rule is scored on, with codes of an oracle."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from thresher.analyze.battery.classes import BIAS, COLLINEAR, DEAD, HETEROGENEOUS, POLYSEMANTIC, RARE, SHARED, SPECIFIC
from thresher.analyze.battery.meaning import Embeddings, make_embeddings
from thresher.analyze.battery.sides import Side, Sides, make_sides
from thresher.analyze.metrics.activity import sum_activity
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.resample import Resample
from thresher.errors import ConfigError

MEANING_WIDTH = 32
"""Width of the embeddings that say what an item is about."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Images x = Phi z and texts y = Psi z with a gap between them (the design follows arXiv 2606.29888)."""

    n_records: int = 4000
    captions: int = 1
    """Texts per image."""
    d_in: int = 128
    n_shared: int = 40
    """Concepts of both modalities."""
    cosine: float = 1.0
    """cos(phi, psi) of the atoms of a shared concept. At 1 it is one atom, which makes one shared feature; below, an oracle
    needs two features, which are bridged."""
    n_private: int = 20
    """Concepts of images only, and as many of texts only."""
    n_mixed: int = 20
    """Features that stand for one concept on images and for another, unrelated one on texts."""
    n_rare: int = 4
    n_dead: int = 4
    rate: float = 0.08
    """Share of the records that a concept is in."""
    fidelity: float = 0.9
    """Chance that a caption states a concept of its record; it states others now and then."""
    gap: float = 2.0
    """Distance of the modalities."""
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "fidelity"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: a probability above 0")
        if not -1 <= self.cosine <= 1:
            raise ConfigError(f"cosine={self.cosine}: between -1 and 1")


class World(NamedTuple):
    """A drawn world with the codes of an oracle."""

    sides: Sides
    embeddings: Embeddings | None
    expected: np.ndarray
    """Class of each feature [feature]."""
    image: Float[np.ndarray, "item d_in"]
    """Activations: codes times atoms, and noise."""
    text: Float[np.ndarray, "item d_in"]


@dataclass
class _Plan:
    """Features so far: dense codes of images and texts by column, atoms, what the items are about."""

    image: list[np.ndarray] = field(default_factory=list)
    text: list[np.ndarray] = field(default_factory=list)
    atoms: list[np.ndarray] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def add(self, image: np.ndarray, text: np.ndarray, atom: np.ndarray, expected: str) -> None:
        self.image.append(image)
        self.text.append(text)
        self.atoms.append(atom)
        self.expected.append(expected)


def draw_toy(toy: Toy, resample: Resample, collinear_above: float = 0.5) -> World:
    """Draw the world; a pure function of its settings."""
    generator = np.random.default_rng(toy.seed)
    image_of = np.arange(toy.n_records)
    text_of = np.repeat(image_of, toy.captions)
    plan, about = _Plan(), [np.zeros((toy.n_records, MEANING_WIDTH)), np.zeros((len(text_of), MEANING_WIDTH))]
    _add_shared(plan, about, toy, generator, text_of, collinear_above)
    _add_one_sided(plan, about, toy, generator, text_of)
    _add_mixed(plan, about, toy, generator, text_of)
    _add_gap(plan, toy, generator, text_of)
    _add_rare(plan, toy, generator, text_of)
    dictionary = np.stack(plan.atoms)
    codes = [np.stack(columns, axis=1) for columns in (plan.image, plan.text)]
    sides = [
        Side(csr_array(one), record, sum_activity(csr_array(one), record, resample.weights(0, toy.n_records)))
        for one, record in zip(codes, (image_of, text_of), strict=True)
    ]
    pairs = np.stack([text_of, np.arange(len(text_of))], axis=1)
    first = np.flatnonzero(np.diff(text_of, prepend=-1))
    noisy = [one + 0.3 * generator.normal(size=one.shape) for one in about]
    return World(
        sides=make_sides(sides[0], sides[1], pairs, dictionary, toy.n_records),
        embeddings=make_embeddings("external", image_of, first, noisy[0], noisy[1][first]),
        expected=np.array(plan.expected),
        image=codes[0] @ dictionary + toy.noise * generator.normal(size=(toy.n_records, toy.d_in)),
        text=codes[1] @ dictionary + toy.noise * generator.normal(size=(len(text_of), toy.d_in)),
    )


def _atoms(toy: Toy, generator: np.random.Generator, n: int) -> Float[np.ndarray, "atom d_in"]:
    return normalize_rows(generator.normal(size=(n, toy.d_in)))


def _strength(generator: np.random.Generator, present: np.ndarray) -> np.ndarray:
    """Coefficients 0.5 + Exp(1) where present."""
    return present * (0.5 + generator.exponential(size=len(present)))


def _state(toy: Toy, generator: np.random.Generator, present: np.ndarray, text_of: np.ndarray) -> np.ndarray:
    """Which captions state a concept that is in some records."""
    stated = present[text_of] & (generator.random(len(text_of)) < toy.fidelity)
    return stated | (generator.random(len(text_of)) < toy.rate * (1 - toy.fidelity))


def _add_shared(
    plan: _Plan, about: list[np.ndarray], toy: Toy, generator: np.random.Generator, text_of: np.ndarray, collinear: float
) -> None:
    phi, other = _atoms(toy, generator, toy.n_shared), _atoms(toy, generator, toy.n_shared)
    topics = generator.normal(size=(toy.n_shared, MEANING_WIDTH))
    for index in range(toy.n_shared):
        present = generator.random(toy.n_records) < toy.rate
        stated = _state(toy, generator, present, text_of)
        image, text = _strength(generator, present), _strength(generator, stated)
        about[0] += present[:, None] * topics[index]
        about[1] += stated[:, None] * topics[index]
        if toy.cosine >= 1:
            plan.add(image, text, phi[index], SHARED)
            continue
        aside = other[index] - (other[index] @ phi[index]) * phi[index]
        psi = toy.cosine * phi[index] + np.sqrt(1 - toy.cosine**2) * aside / np.linalg.norm(aside)
        expected = COLLINEAR if toy.cosine > collinear else HETEROGENEOUS
        plan.add(image, np.zeros(len(text_of)), phi[index], expected)
        plan.add(np.zeros(toy.n_records), text, psi, expected)


def _add_one_sided(plan: _Plan, about: list[np.ndarray], toy: Toy, generator: np.random.Generator, text_of: np.ndarray) -> None:
    atoms, topics = _atoms(toy, generator, 2 * toy.n_private), generator.normal(size=(2 * toy.n_private, MEANING_WIDTH))
    for index in range(2 * toy.n_private):
        side = index % 2
        present = generator.random((toy.n_records, len(text_of))[side]) < toy.rate
        about[side] += present[:, None] * topics[index]
        codes = [np.zeros(toy.n_records), np.zeros(len(text_of))]
        codes[side] = _strength(generator, present)
        plan.add(codes[0], codes[1], atoms[index], SPECIFIC)


def _add_mixed(plan: _Plan, about: list[np.ndarray], toy: Toy, generator: np.random.Generator, text_of: np.ndarray) -> None:
    atoms, topics = _atoms(toy, generator, toy.n_mixed), generator.normal(size=(toy.n_mixed, 2, MEANING_WIDTH))
    for index in range(toy.n_mixed):
        codes: list[np.ndarray] = []
        for side, n in enumerate((toy.n_records, len(text_of))):
            present = generator.random(n) < toy.rate
            about[side] += present[:, None] * topics[index, side]
            codes.append(_strength(generator, present))
        plan.add(codes[0], codes[1], atoms[index], POLYSEMANTIC)


def _add_gap(plan: _Plan, toy: Toy, generator: np.random.Generator, text_of: np.ndarray) -> None:
    """One atom per modality that always fires; the two point apart."""
    atom = _atoms(toy, generator, 1)[0]
    image = toy.gap / 2 * generator.uniform(0.9, 1.1, toy.n_records)
    text = toy.gap / 2 * generator.uniform(0.9, 1.1, len(text_of))
    plan.add(image, np.zeros(len(text_of)), atom, BIAS)
    plan.add(np.zeros(toy.n_records), text, -atom, BIAS)


def _add_rare(plan: _Plan, toy: Toy, generator: np.random.Generator, text_of: np.ndarray) -> None:
    for index, atom in enumerate(_atoms(toy, generator, toy.n_rare + toy.n_dead)):
        image, text = np.zeros(toy.n_records), np.zeros(len(text_of))
        if index < toy.n_rare:
            image[generator.choice(toy.n_records, min(3, toy.n_records), replace=False)] = 1.0
        plan.add(image, text, atom, RARE if index < toy.n_rare else DEAD)
