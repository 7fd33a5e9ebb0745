"""The scenes world: a procedural generator of pictures with captions and the truth about both."""

from thresher.data.sources.scenes.settings import Scenes
from thresher.data.sources.scenes.source import ScenesSource

__all__ = ["Scenes", "ScenesSource"]
