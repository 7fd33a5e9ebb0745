"""Inputs: image-caption pairs, images, texts, and the built-in scenes world. A new source is its file and two lines here."""

from typing import Annotated

import pydantic

from thresher.data.records import Source
from thresher.data.sources.huggingface import HuggingFaceDataset, open_dataset
from thresher.data.sources.image_captions import ImageCaptions, ImageCaptionsSource
from thresher.data.sources.in_memory import InMemory, MemorySource
from thresher.data.sources.scenes import Scenes, ScenesSource
from thresher.data.sources.text import TextFiles, TextFilesSource
from thresher.data.sources.webdataset import WebDataset, WebDatasetSource
from thresher.errors import SourceError

SourceConfig = Annotated[
    Scenes | ImageCaptions | WebDataset | TextFiles | HuggingFaceDataset | InMemory, pydantic.Field(discriminator="kind")
]
"""Where records come from, by kind."""

__all__ = [
    "HuggingFaceDataset",
    "ImageCaptions",
    "InMemory",
    "MemorySource",
    "Scenes",
    "SourceConfig",
    "TextFiles",
    "WebDataset",
    "open_source",
]


def open_source(source: Scenes | ImageCaptions | WebDataset | TextFiles | HuggingFaceDataset | InMemory) -> Source:
    """The source of a configuration. Raises SourceError when it is missing, empty or not of the form it should have."""
    match source:
        case Scenes():
            return ScenesSource(source)
        case ImageCaptions():
            return ImageCaptionsSource(source)
        case WebDataset():
            return WebDatasetSource(source)
        case TextFiles():
            return TextFilesSource(source)
        case HuggingFaceDataset():
            return open_dataset(source)
        case InMemory():
            raise SourceError("source in-memory: only a Python program can give it: run(config, source=MemorySource(examples))")
