"""The laws of colours: classes are told apart with every colour vision, by day, by night and in figures; words are readable."""

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest

from thresher.analyze.battery.classes import CLASSES, DEAD, RARE
from thresher.analyze.plots.style import CLASS_COLOURS

VISIONS = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What is seen of linear RGB (Machado et al. 2009, severity 1)."""
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WHITE = np.array([0.95047, 1.0, 1.08883])
STYLE = resources.files("thresher.analyze.site").joinpath("static", "site.css").read_text("utf-8")


def read_themes() -> dict[str, dict[str, str]]:
    """Variables of the style sheet by day and by night."""
    found = [
        dict(re.findall(r"(--[\w-]+): (#\w{6})", block))
        for block in re.findall(r":root[^{]*\{([^}]*--paper: [^}]*--hot[^}]*)\}", STYLE)
    ]
    assert len(found) == 3
    assert found[1] == found[2], "a dark page is the same whether the system or the reader asks for it"
    return {"light": found[0], "dark": found[0] | found[1]}


THEMES = read_themes()


def to_linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def to_lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB."""
    xyz = TO_XYZ @ np.clip(linear, 0, 1) / WHITE
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def differ(first: np.ndarray, second: np.ndarray) -> float:
    """CIEDE2000 (Sharma et al. 2005)."""
    chroma = (np.hypot(*first[1:]) + np.hypot(*second[1:])) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    (l1, a1, b1), (l2, a2, b2) = first, second
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1 * stretch)) % 360, np.degrees(np.arctan2(b2, a2 * stretch)) % 360
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    light, mean_c, mean_h = (l1 + l2) / 2, (c1 + c2) / 2, (h1 + turn / 2) % 360
    t = 1 - 0.17 * np.cos(np.radians(mean_h - 30)) + 0.24 * np.cos(np.radians(2 * mean_h))
    t += 0.32 * np.cos(np.radians(3 * mean_h + 6)) - 0.2 * np.cos(np.radians(4 * mean_h - 63))
    by_light = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    by_chroma, by_hue = (c2 - c1) / (1 + 0.045 * mean_c), hue / (1 + 0.015 * mean_c * t)
    rotation = -2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((mean_h - 275) / 25) ** 2))))
    return float(np.sqrt(by_light**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue))


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio."""
    dark, light = sorted(float(to_linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


def test_the_difference_of_colours_is_that_of_published_pairs() -> None:
    # Sharma et al. 2005, table 1, pairs 1, 7, 17 and 25.
    pairs = [
        ([50, 2.6772, -79.7751], [50, 0, -82.7485], 2.0425),
        ([50, 0, 0], [50, -1, 2], 2.3669),
        ([50, 2.5, 0], [73, 25, -18], 27.1492),
        ([60.2574, -34.0099, 36.2677], [60.4626, -34.1751, 39.4387], 1.2644),
    ]
    for first, second, expected in pairs:
        assert differ(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("vision", VISIONS)
def test_classes_are_told_apart_with_every_colour_vision(theme: str, vision: str) -> None:
    seen = {kind: to_lab(np.array(VISIONS[vision]) @ to_linear(THEMES[theme][f"--class-{kind}"])) for kind in CLASSES}
    near = {pair: differ(seen[pair[0]], seen[pair[1]]) for pair in combinations(CLASSES, 2)}
    assert min(near.values()) > 10.5, min(near, key=lambda pair: near[pair])


def test_figures_and_site_give_a_class_the_same_colour() -> None:
    assert {kind: THEMES["light"][f"--class-{kind}"] for kind in CLASSES} == dict(CLASS_COLOURS)


@pytest.mark.parametrize("theme", THEMES)
def test_words_and_marks_stand_out_from_what_they_lie_on(theme: str) -> None:
    colours = THEMES[theme]
    for ground in ("--paper", "--card"):
        for word in ("--ink", "--soft", "--link", "--image", "--text", "--good", "--bad"):
            assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)
    for kind in set(CLASSES) - {RARE, DEAD}:
        assert contrast(colours[f"--class-{kind}"], colours["--card"]) >= 3, kind
    for ground in ("--wash", "--pick", "--mark"):
        assert contrast(colours["--ink"], colours[ground]) >= 7, ground
        assert contrast(colours["--soft"], colours[ground]) >= 4.5, ground
