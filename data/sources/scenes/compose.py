"""Decide what a picture shows: a pure function of the settings and the record's number."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from thresher.data.sources.scenes import tree
from thresher.data.sources.scenes.settings import Scenes

SHARED_STREAM, IMAGE_STREAM, CAPTION_STREAM = 0, 1, 2
"""Each record draws from separate streams, so that what only pictures show cannot touch a caption, nor the reverse."""


@dataclass(frozen=True, slots=True)
class Group:
    """Like objects that stand together."""

    shape: int
    colour: int
    size: int
    count: int
    """One less than the number of objects: an index into `tree.COUNTS`."""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a picture shows; integers index the tuples of `tree`."""

    groups: tuple[Group, ...]
    """One, or two; of two the first stands left of, or above, the second."""
    row: int
    """Where a single group stands, 0 to 2 from the top."""
    column: int
    """The same from the left."""
    is_beside: bool
    """Two groups: side by side, or else stacked."""
    background: int
    texture: int | None
    jitter: tuple[float, ...]
    """Small uniform variations in [0, 1) that carry no concept."""

    def places(self) -> tuple[tuple[str, ...], ...]:
        """For each group, the position concepts it shows."""
        if len(self.groups) == 2:
            sides = tree.COLUMNS if self.is_beside else tree.ROWS
            return tuple((f"position/{side}",) for side in sides if side is not None)
        sides = [side for side in (tree.ROWS[self.row], tree.COLUMNS[self.column]) if side is not None]
        return (tuple(f"position/{side}" for side in sides) or (tree.CENTRE,),)

    def concepts(self) -> tuple[int, ...]:
        """Indices of the concepts that are visible, parents included."""
        names = list(itertools.chain.from_iterable(self.places()))
        for group in self.groups:
            names += [_leaf("shape", tree.SHAPES[group.shape]), _leaf("colour", tree.COLOURS[group.colour])]
            names += [f"size/{tree.SIZES[group.size]}", f"count/{tree.COUNTS[group.count]}"]
        if len(self.groups) == 2:
            names.append(tree.BESIDE if self.is_beside else tree.STACKED)
        names.append(_leaf("background", tree.BACKGROUNDS[self.background]))
        if self.texture is not None:
            names.append(_leaf("texture", tree.TEXTURES[self.texture]))
        return tree.close(names)


class Ranks:
    """Draws ranks with frequency proportional to (rank + 1) ** -exponent."""

    def __init__(self, n: int, exponent: float) -> None:
        weights = [(rank + 1.0) ** -exponent for rank in range(n)]
        self._cumulative = [total / sum(weights) for total in itertools.accumulate(weights)]

    def pick(self, uniform: float) -> int:
        """The rank that a uniform number in [0, 1) stands for."""
        return min(bisect.bisect_right(self._cumulative, uniform), len(self._cumulative) - 1)


class Composer:
    """Composes the scene of any record."""

    def __init__(self, settings: Scenes) -> None:
        self._settings = settings
        self._shapes = Ranks(len(tree.SHAPES), settings.zipf_exponent)
        self._colours = Ranks(len(tree.COLOURS), settings.zipf_exponent)
        self._backgrounds = Ranks(len(tree.BACKGROUNDS), settings.zipf_exponent)
        self._textures = Ranks(len(tree.TEXTURES), settings.zipf_exponent)

    def compose(self, index: int) -> Scene:
        """The scene of record `index`."""
        shared = draw_uniforms(self._settings.seed, index, SHARED_STREAM, 16)
        image = draw_uniforms(self._settings.seed, index, IMAGE_STREAM, 32)
        n_groups = 1 + int(next(shared) * self._settings.max_groups)
        row, column, is_beside = pick_even(next(shared), 3), pick_even(next(shared), 3), next(shared) < 0.5
        groups = tuple(self._draw_group(shared) for _ in range(n_groups))
        background = self._backgrounds.pick(next(image))
        has_texture, texture = next(image) < self._settings.texture_share, self._textures.pick(next(image))
        return Scene(
            groups=groups,
            row=row,
            column=column,
            is_beside=is_beside,
            background=background,
            texture=texture if has_texture else None,
            jitter=tuple(image),
        )

    def _draw_group(self, uniforms: Iterator[float]) -> Group:
        shape = self._shapes.pick(next(uniforms))
        colour = self._colours.pick(next(uniforms))
        if next(uniforms) < self._settings.cooccurrence:
            colour = preferred_colour(shape)
        return Group(shape=shape, colour=colour, size=pick_even(next(uniforms), 2), count=pick_even(next(uniforms), 3))


def preferred_colour(shape: int) -> int:
    """The colour that a shape co-occurs with, both as indices into `tree`."""
    return (3 * shape + 1) % len(tree.COLOURS)


def draw_uniforms(seed: int, index: int, stream: int, n: int) -> Iterator[float]:
    """`n` uniform numbers in [0, 1) that belong to one stream of one record; the same on every platform."""
    return iter(np.random.default_rng((seed, index, stream)).random(n).tolist())


def pick_even(uniform: float, n: int) -> int:
    """One of `n` equally likely integers."""
    return int(uniform * n)


def _leaf(root: str, family_and_leaf: Sequence[str]) -> str:
    return "/".join((root, *family_and_leaf))
