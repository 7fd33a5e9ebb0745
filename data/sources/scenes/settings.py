"""The settings of the scenes world."""

import string
from typing import Literal

from thresher.config import config
from thresher.errors import ConfigError

TEMPLATES = (
    "{scene}",
    "a picture of {scene}",
    "this shows {scene}",
    "here we see {scene}",
    "a {mood} picture of {scene}",
    "{scene} in a {mood} mood",
    "{scene} and it feels {mood}",
    "a {style} of {scene}",
    "{scene} as a {style}",
    "this {style} shows {scene}",
    "a {mood} {style} of {scene}",
    "{scene} as a {mood} {style}",
    "this {mood} {style} shows {scene}",
)


@config
class Scenes:
    """A procedural world of simple pictures with captions, whose every concept is known."""

    kind: Literal["scenes"] = "scenes"
    """Which source this is."""
    n_records: int = 100_000
    """Pictures in the source; nothing is stored, so millions cost nothing until they are read."""
    seed: int = 0
    """Decides every record; record i depends on the settings and i alone."""
    image_size: int = 48
    """Width and height of a picture in pixels."""
    captions_per_image: int = 1
    """Captions of each picture; they differ in what they mention and how."""
    max_groups: int = 2
    """Up to how many groups of like objects a picture shows (1 or 2); 1 to 3 objects are in a group."""
    texture_share: float = 0.5
    """Share of pictures whose background has a texture: visible, never in a caption. Every picture has a background."""
    mood_share: float = 0.4
    """Share of captions with a word of mood: stated, never visible."""
    style_share: float = 0.4
    """Share of captions with a word of style: stated, never visible."""
    zipf_exponent: float = 0.5
    """The concept of rank r among its siblings has frequency proportional to r ** -zipf_exponent; 0 makes them equal."""
    cooccurrence: float = 0.2
    """Probability that an object takes the colour its shape prefers instead of an independent one."""
    detail: float = 0.95
    """Probability that a caption mentions an attribute that the picture shows."""
    family_share: float = 0.1
    """Share of mentions that use the family's word (a warm polygon) where there is one (a red square)."""
    templates: tuple[str, ...] = TEMPLATES
    """Forms of a caption: {scene} and, where the caption carries them, {mood} and {style}."""

    def __post_init__(self) -> None:
        """Raise ConfigError on values that describe no world."""
        for name, low in (("n_records", 1), ("seed", 0), ("image_size", 16), ("captions_per_image", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: at least {low}")
        if self.max_groups not in (1, 2):
            raise ConfigError(f"max_groups={self.max_groups}: 1 or 2")
        if not 0 <= self.zipf_exponent <= 4:
            raise ConfigError(f"zipf_exponent={self.zipf_exponent}: between 0 and 4")
        for name in ("texture_share", "mood_share", "style_share", "cooccurrence", "detail", "family_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: a probability between 0 and 1")
        self._check_templates()

    def _check_templates(self) -> None:
        found: set[frozenset[str]] = set()
        for template in self.templates:
            slots = slots_of(template)
            if "scene" not in slots or not slots <= {"scene", "mood", "style"}:
                raise ConfigError(f"template {template!r}: needs {{scene}}, may have {{mood}} and {{style}}, nothing else")
            found.add(slots - {"scene"})
        moods = [False] * (self.mood_share < 1) + [True] * (self.mood_share > 0)
        styles = [False] * (self.style_share < 1) + [True] * (self.style_share > 0)
        for mood in moods:
            for style in styles:
                needed = frozenset(["mood"] * mood + ["style"] * style)
                if needed not in found:
                    names = " and ".join(sorted(needed)) or "neither mood nor style"
                    raise ConfigError(f"templates: none for a caption with {names}; add one, or set its share to 0 or 1")


def slots_of(template: str) -> frozenset[str]:
    """The names of the fields in a template. Raises ConfigError where the braces do not match."""
    try:
        return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}") from error
