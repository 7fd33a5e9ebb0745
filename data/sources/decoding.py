"""Pictures from files and bytes, always RGB; what cannot be decoded is said, not raised."""

import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageColor, UnidentifiedImageError

from thresher.data.records import Unreadable
from thresher.errors import ConfigError

DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)
"""What Pillow raises on files that are missing, truncated, no image or not credible."""


class EncodedImage(NamedTuple):
    """An image in a file or in the bytes of one."""

    content: Path | bytes
    name: str
    """What it is called when it cannot be decoded."""
    background: str
    """Colour behind transparent parts."""

    def decode(self) -> Image.Image | Unreadable:
        """The RGB image."""
        return decode_image(self.content, self.name, self.background)


class DecodedImage(NamedTuple):
    """An image that needs no decoding any more, or of which it is known that there is none."""

    image: Image.Image | Unreadable

    def decode(self) -> Image.Image | Unreadable:
        """The image as it is."""
        return self.image


def decode_image(content: Path | bytes, name: str, background: str) -> Image.Image | Unreadable:
    """Decode an image to RGB, transparent parts filled with `background`; `name` stands for it in the reason."""
    try:
        with Image.open(content if isinstance(content, Path) else io.BytesIO(content)) as image:
            image.load()
            return flatten_image(image, background)
    except DECODE_ERRORS as error:
        return Unreadable(f"{name}: {_explain(error)}")


def _explain(error: Exception) -> str:
    """Pillow's reason; the same wherever the file lies, since it becomes part of a store."""
    if isinstance(error, UnidentifiedImageError):
        return "no image, or of a format that Pillow does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def flatten_image(image: Image.Image, background: str) -> Image.Image:
    """An RGB image; transparent parts filled with `background`."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    flat = Image.new("RGBA", layer.size, background)
    flat.alpha_composite(layer)
    return flat.convert("RGB")


def check_colour(background: str) -> None:
    """Raise ConfigError unless Pillow knows the colour."""
    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        raise ConfigError(f"background={background!r}: expected a colour such as white or #8090a0") from error
