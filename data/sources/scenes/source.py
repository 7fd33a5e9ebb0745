"""The scenes world as a source of records."""

import hashlib
import json
from collections.abc import Iterator

from thresher.config import to_dict
from thresher.data.records import Concept, Modality, Record
from thresher.data.sources.scenes import tree
from thresher.data.sources.scenes.captions import Captioner
from thresher.data.sources.scenes.compose import Composer
from thresher.data.sources.scenes.draw import Painter
from thresher.data.sources.scenes.settings import Scenes

VERSION = 1
"""Part of the fingerprint; raise it when the same settings would give other records."""


class ScenesSource:
    """Endless pairs of pictures and captions with ground truth; nothing is read from disk, nothing is kept."""

    def __init__(self, settings: Scenes) -> None:
        self._settings = settings
        self._composer = Composer(settings)
        self._captioner = Captioner(settings)
        self._painter = Painter(settings.image_size)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Pictures and captions."""
        return ("image", "text")

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concept tree, the same for all settings."""
        return tree.CONCEPTS

    @property
    def fingerprint(self) -> str:
        """Hex digest of the settings and of the version of the world."""
        identity = json.dumps({"version": VERSION, **to_dict(self._settings)}, sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()

    def __len__(self) -> int:
        """Number of records."""
        return self._settings.n_records

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records `start` to `stop`; each costs about 0.3 ms wherever it lies."""
        end = len(self) if stop is None else min(stop, len(self))
        for index in range(start, end):
            scene = self._composer.compose(index)
            texts = tuple(self._captioner.caption(scene, index, n) for n in range(self._settings.captions_per_image))
            yield Record(
                key=f"scene-{index:09d}", image=self._painter.paint(scene), image_concepts=scene.concepts(), texts=texts
            )
