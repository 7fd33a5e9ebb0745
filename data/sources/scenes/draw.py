"""Draw a scene: filled shapes on a plain or textured background, supersampled."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from thresher.data.sources.scenes import tree
from thresher.data.sources.scenes.compose import Scene

SUPERSAMPLING = 4
MARGIN = 0.25
"""Tiles are larger than a picture by this share, so that a texture can shift from picture to picture."""
PERIOD = 0.15
"""Period of a texture in picture widths; no multiple of a patch of 8 in 48 pixels, or all patches would look alike."""
CONTRAST = 42
OUTLINE = (20, 20, 20)
RADIUS = ((0.095, 0.088, 0.083), (0.17, 0.138, 0.12))
"""By size and count, in picture widths."""

RGB = {
    "red": (222, 34, 38),
    "orange": (247, 132, 20),
    "yellow": (250, 224, 40),
    "pink": (252, 130, 190),
    "blue": (44, 84, 236),
    "green": (40, 160, 62),
    "cyan": (60, 214, 226),
    "purple": (136, 52, 176),
    "white": (246, 246, 246),
    "black": (16, 16, 16),
    "sand": (224, 204, 166),
    "navy": (24, 30, 72),
    "mint": (198, 230, 208),
    "maroon": (78, 26, 36),
}

Points = list[tuple[float | int, float | int]]


class Painter:
    """Paints scenes of one size; holds the backgrounds, drawn once."""

    def __init__(self, image_size: int) -> None:
        self._canvas = image_size * SUPERSAMPLING
        tile = math.ceil(self._canvas * (1 + MARGIN))
        masks = [None, *(_texture(name, tile, self._canvas * PERIOD) for _, name in tree.TEXTURES)]
        self._tiles = [[_tile(name, mask, tile) for mask in masks] for _, name in tree.BACKGROUNDS]
        self._outlines = {name: _outline(name) for _, name in tree.SHAPES}

    def paint(self, scene: Scene) -> Image.Image:
        """The RGB picture of a scene."""
        jitter = iter(scene.jitter)
        tile = self._tiles[scene.background][0 if scene.texture is None else scene.texture + 1]
        free = tile.width - self._canvas
        left, top = int(next(jitter) * free), int(next(jitter) * free)
        canvas = tile.crop((left, top, left + self._canvas, top + self._canvas))
        pen = ImageDraw.Draw(canvas)
        for group, (x, y, radius, angle) in _place(scene, jitter):
            outline = self._outlines[tree.SHAPES[scene.groups[group].shape][1]]
            fill = RGB[tree.COLOURS[scene.groups[group].colour][1]]
            pen.polygon(self._transform(outline, x, y, radius, angle), fill=fill, outline=OUTLINE, width=SUPERSAMPLING // 2)
        return canvas.reduce(SUPERSAMPLING)

    def _transform(self, points: Points, x: float, y: float, radius: float, angle: float) -> list[tuple[int, int]]:
        scale, shift = self._canvas * radius, self._canvas
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        return [(round(shift * x + cos * a - sin * b), round(shift * y + sin * a + cos * b)) for a, b in points]


def _place(scene: Scene, jitter: Iterator[float]) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """For each object: its group, then centre x, centre y, radius (picture widths) and angle (radians)."""
    for number, group in enumerate(scene.groups):
        radius = RADIUS[group.size][group.count]
        offsets, (x, y) = _arrange(scene, number, radius), _centre(scene, number)
        x += 0.06 * (next(jitter) - 0.5)
        y += 0.06 * (next(jitter) - 0.5)
        reach_x = max(abs(a) for a, _ in offsets) + radius
        reach_y = max(abs(b) for _, b in offsets) + radius
        x, y = min(max(x, reach_x), 1 - reach_x), min(max(y, reach_y), 1 - reach_y)
        for a, b in offsets:
            yield number, (x + a, y + b, radius, 0.25 * (next(jitter) - 0.5))


def _centre(scene: Scene, number: int) -> tuple[float, float]:
    if len(scene.groups) == 1:
        return (0.2, 0.5, 0.8)[scene.column], (0.2, 0.5, 0.8)[scene.row]
    along = (0.24, 0.76)[number]
    return (along, 0.5) if scene.is_beside else (0.5, along)


def _arrange(scene: Scene, number: int, radius: float) -> Points:
    """Offsets of a group's objects: a triangle when alone, else a line across the axis that parts the groups."""
    step = 2 * radius + 0.03
    count = scene.groups[number].count + 1
    if len(scene.groups) == 1 and count == 3:
        return [(0.0, -0.5 * step), (-0.5 * step, 0.4 * step), (0.5 * step, 0.4 * step)]
    line = [step * (place - (count - 1) / 2) for place in range(count)]
    is_column = scene.is_beside if len(scene.groups) == 2 else False
    return [(0.0, offset) if is_column else (offset, 0.0) for offset in line]


def _tile(background: str, mask: Bool[np.ndarray, "side side"] | None, side: int) -> Image.Image:
    colour = np.array(RGB[background], dtype=np.int16)
    pixels = np.broadcast_to(colour, (side, side, 3)).copy()
    if mask is not None:
        pixels[mask] += CONTRAST if colour.mean() < 128 else -CONTRAST
    return Image.fromarray(pixels.astype(np.uint8))


def _texture(name: str, side: int, period: float) -> Bool[np.ndarray, "side side"]:
    """Where a texture departs from the background's colour."""
    y, x = np.indices((side, side))
    row, column = (y / period) % 1.0, (x / period) % 1.0
    if name == "banded":
        return row < 0.5
    if name == "striped":
        return column < 0.5
    if name == "hatched":
        return ((x + y) / (1.4 * period)) % 1.0 < 0.5
    if name == "checkered":
        return (row < 0.5) ^ (column < 0.5)
    if name == "latticed":
        return (row < 0.25) | (column < 0.25)
    return (row - 0.5) ** 2 + (column - 0.5) ** 2 < 0.1


def _outline(name: str) -> Points:
    """A shape as a polygon around the origin, y downwards, of about unit radius."""
    if name == "circle":
        return _arc(0.0, 360.0, 36)
    if name == "ellipse":
        return [(1.1 * x, 0.6 * y) for x, y in _arc(0.0, 360.0, 36)]
    if name == "ring":
        return _arc(0.0, 360.0, 36) + [(0.5 * x, 0.5 * y) for x, y in reversed(_arc(0.0, 360.0, 36))]
    if name == "crescent":
        inner = [(0.5 + 0.75 * x, 0.75 * y) for x, y in _arc(-75.5, -284.5, 20)]
        return _arc(46.6, 313.4, 28) + inner
    if name == "heart":
        turns = [2 * math.pi * step / 36 for step in range(36)]
        return [(math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 16) for t in turns]
    if name == "star":
        tips = _regular(10, -90.0)
        return [(x, y) if place % 2 == 0 else (0.42 * x, 0.42 * y) for place, (x, y) in enumerate(tips)]
    if name == "cross":
        a, b = 0.32, 0.95
        return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    if name == "arrow":
        return [(0.0, -1.0), (0.9, 0.0), (0.32, 0.0), (0.32, 1.0), (-0.32, 1.0), (-0.32, 0.0), (-0.9, 0.0)]
    if name == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if name == "diamond":
        return [(0.0, -1.1), (0.75, 0.0), (0.0, 1.1), (-0.75, 0.0)]
    return _regular({"triangle": 3, "hexagon": 6}[name], -90.0)


def _regular(n: int, start: float) -> Points:
    return _arc(start, start + 360 * (n - 1) / n, n)


def _arc(start: float, stop: float, n: int) -> Points:
    """`n` points of the unit circle from `start` to `stop` degrees."""
    angles = [math.radians(start + (stop - start) * step / (n - 1)) for step in range(n)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]
