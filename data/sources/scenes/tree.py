"""The concept tree of the scenes world: what a picture can show and a caption can state."""

from collections.abc import Iterable

from thresher.data.records import Concept, Visibility

SHAPES = (
    ("round", "circle"),
    ("polygon", "square"),
    ("polygon", "triangle"),
    ("symbol", "star"),
    ("round", "ring"),
    ("symbol", "heart"),
    ("polygon", "diamond"),
    ("symbol", "cross"),
    ("round", "ellipse"),
    ("polygon", "hexagon"),
    ("symbol", "arrow"),
    ("round", "crescent"),
)
"""(family, leaf), the most frequent first; so are the four tuples below that are drawn by rank."""

COLOURS = (
    ("warm", "red"),
    ("cool", "blue"),
    ("warm", "yellow"),
    ("cool", "green"),
    ("warm", "orange"),
    ("cool", "purple"),
    ("warm", "pink"),
    ("cool", "cyan"),
)
BACKGROUNDS = (
    ("light", "white"),
    ("dark", "black"),
    ("light", "sand"),
    ("dark", "navy"),
    ("light", "mint"),
    ("dark", "maroon"),
)
TEXTURES = (
    ("lined", "banded"),
    ("patterned", "dotted"),
    ("lined", "striped"),
    ("patterned", "checkered"),
    ("lined", "hatched"),
    ("patterned", "latticed"),
)
MOODS = (
    ("bright", "happy"),
    ("sombre", "gloomy"),
    ("bright", "calm"),
    ("sombre", "tense"),
    ("bright", "playful"),
    ("sombre", "lonely"),
)
STYLES = (
    ("drawn", "sketch"),
    ("printed", "photo"),
    ("drawn", "painting"),
    ("printed", "poster"),
    ("drawn", "mural"),
    ("printed", "postcard"),
)

SIZES = ("small", "large")
COUNTS = ("one", "several/two", "several/three")
ROWS = ("vertical/top", None, "vertical/bottom")
COLUMNS = ("horizontal/left", None, "horizontal/right")
CENTRE = "position/centre"
BESIDE = "relation/beside"
STACKED = "relation/stacked"


def _family_tree(root: str, leaves: Iterable[tuple[str, str]], visibility: Visibility) -> list[Concept]:
    pairs = list(leaves)
    families = dict.fromkeys(f"{root}/{family}" for family, _ in pairs)
    parents = [Concept(name, None, visibility) for name in families]
    return parents + [Concept(f"{root}/{family}/{leaf}", f"{root}/{family}", visibility) for family, leaf in pairs]


def _grow() -> tuple[Concept, ...]:
    sides = [("horizontal", "left"), ("horizontal", "right"), ("vertical", "top"), ("vertical", "bottom")]
    single = [f"size/{size}" for size in SIZES] + ["count/one", CENTRE, BESIDE, STACKED]
    return (
        *_family_tree("shape", SHAPES, "shared"),
        *_family_tree("colour", COLOURS, "shared"),
        *_family_tree("position", sides, "shared"),
        *_family_tree("count", [("several", "two"), ("several", "three")], "shared"),
        *(Concept(name, None, "shared") for name in single),
        *_family_tree("background", BACKGROUNDS, "image"),
        *_family_tree("texture", TEXTURES, "image"),
        *_family_tree("mood", MOODS, "text"),
        *_family_tree("style", STYLES, "text"),
    )


CONCEPTS: tuple[Concept, ...] = _grow()
"""Every concept of the world; a position in this tuple is the concept's index."""

_INDEX = {concept.name: index for index, concept in enumerate(CONCEPTS)}


def close(names: Iterable[str]) -> tuple[int, ...]:
    """The indices of the named concepts and of all their ancestors, ascending."""
    found: set[int] = set()
    for name in names:
        here: str | None = name
        while here is not None:
            index = _INDEX[here]
            found.add(index)
            here = CONCEPTS[index].parent
    return tuple(sorted(found))
