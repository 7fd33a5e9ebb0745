"""Pictures from files and bytes, always RGB; what cannot be decoded is said, not raised."""

import io
from pathlib import Path

from PIL import Image, ImageColor

from thresher.data.records import Unreadable
from thresher.errors import ConfigError

DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)
"""What Pillow raises on files that are missing, truncated, no image or not credible."""


def decode_image(content: Path | bytes, name: str, background: str) -> Image.Image | Unreadable:
    """Decode an image to RGB, transparent parts filled with `background`; `name` stands for it in the reason."""
    try:
        with Image.open(content if isinstance(content, Path) else io.BytesIO(content)) as image:
            image.load()
            return flatten_image(image, background)
    except DECODE_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Unreadable(f"{name}: {reason}")


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
