"""Inputs: image-caption pairs, images, texts, and the built-in scenes world. A new source is its file and two lines here."""

from typing import Annotated

import pydantic

from thresher.data.records import Source
from thresher.data.sources.huggingface import HuggingFaceDataset, HuggingFaceSource
from thresher.data.sources.image_captions import ImageCaptions, ImageCaptionsSource
from thresher.data.sources.scenes import Scenes, ScenesSource
from thresher.data.sources.text import TextFiles, TextFilesSource

SourceConfig = Annotated[Scenes | ImageCaptions | TextFiles | HuggingFaceDataset, pydantic.Field(discriminator="kind")]
"""Where records come from, by kind."""

__all__ = ["HuggingFaceDataset", "ImageCaptions", "Scenes", "SourceConfig", "TextFiles", "open_source"]


def open_source(source: Scenes | ImageCaptions | TextFiles | HuggingFaceDataset) -> Source:
    """The source of a configuration. Raises SourceError when it is missing, empty or not of the form it should have."""
    match source:
        case Scenes():
            return ScenesSource(source)
        case ImageCaptions():
            return ImageCaptionsSource(source)
        case TextFiles():
            return TextFilesSource(source)
        case HuggingFaceDataset():
            return HuggingFaceSource(source)
