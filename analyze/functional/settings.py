"""The settings of functional tests, of names and of the judge."""

from pathlib import Path

from thresher.config import config
from thresher.data.store import StoreLocation
from thresher.errors import ConfigError


@config
class Vocabulary:
    """Words with their embeddings by the studied encoder."""

    store: StoreLocation | None = None
    """A store harvested from a list of words (a text source of one word per item) with the same model,"""
    hook_point: str | None = None
    """and its hook point of the texts; not needed where it has only one."""
    embeddings: Path | None = None
    """Instead of a store an .npy file [word, width],"""
    words: Path | None = None
    """and the words in the same order: one per line, or a CSV with a header, whose column `text`, `word` or `name` (else the
    first) is read."""

    def __post_init__(self) -> None:
        if (self.store is None) == (self.embeddings is None):
            raise ConfigError("vocabulary: give either `store`, or `embeddings` with `words`")
        if (self.embeddings is None) != (self.words is None):
            raise ConfigError("vocabulary: `embeddings` and `words` belong together; give both or neither")


@config
class Functional:
    """Tests of behaviour on held-out pairs (docs/analysis.md)."""

    images: int = 1000
    """Held-out images at most, drawn at random, with all their captions; 0 leaves all these tests out. Recall depends on it."""
    draws: int = 3
    """Random sets of features, of the same energy and of the same number, beside each class that is ablated; 0 for none."""
    steered: int = 8
    """Shared and bridged features that are steered, those that carry most of the margin; 0 for none."""
    labels: Path | None = None
    """Class of each image: an .npy of whole numbers in the order of the store's images (-1 for unknown), or a CSV with the
    columns `key` and `label` (a class by name or number). By default the ground truth of the source, where it has one."""
    classes: Vocabulary | None = None
    """The classes in the order of their numbers, for zero-shot classification of `labels`."""
    logit_scale: float = 100.0
    """What the model multiplies cosines with before the softmax; 100 for CLIP."""

    def __post_init__(self) -> None:
        for name in ("images", "draws", "steered"):
            if getattr(self, name) < 0:
                raise ConfigError(f"functional.{name}={getattr(self, name)}: 0 or more")
        if not self.logit_scale > 0:
            raise ConfigError(f"functional.logit_scale={self.logit_scale}: above 0")
        if self.classes is not None and self.labels is None:
            raise ConfigError("functional.classes: give functional.labels too, the class of each image")


@config
class Naming:
    """Names of features out of a vocabulary, without a judge."""

    vocabulary: Vocabulary | None = None
    """Where words come from; without it features have no names."""
    least_z: float = 3.0
    """A name stands when its word is so many standard deviations nearer than the words on average;"""
    least_cosine: float = 0.1
    """and its cosine is at least this, both freed from their means."""

    def __post_init__(self) -> None:
        if not -1 <= self.least_cosine < 1:
            raise ConfigError(f"naming.least_cosine={self.least_cosine}: expected a cosine, from -1 to below 1")


@config
class Judge:
    """A language model that names features from their captions and is tested on captions it has not seen."""

    url: str | None = None
    """Base of an OpenAI-compatible server, for instance `http://localhost:8000/v1`; without it nothing is asked."""
    model: str = ""
    """Name of the model there."""
    key_env: str | None = None
    """Environment variable that holds the key, if the server wants one. The key itself is written nowhere."""
    features: int = 50
    """Features judged, those of most energy among the alive ones."""
    examples: int = 8
    """Captions shown to find a name, those of the largest codes."""
    held_out: int = 10
    """Other captions on which the name is tested, half of them with the feature."""
    timeout: float = 60.0
    """Seconds for one answer."""
    retries: int = 3
    """Further tries when the server is busy or does not answer."""
    cache: Path | None = None
    """File of the answers, so that a rerun asks nothing twice; by default `<out>.judge.jsonl`, beside the folder of results."""

    def __post_init__(self) -> None:
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"judge.url={self.url!r}: expected http:// or https://")
        if self.url is not None and not self.model:
            raise ConfigError("judge.model: name the model of the server")
        for name, least in (("features", 1), ("examples", 1), ("held_out", 2), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"judge.{name}={getattr(self, name)}: at least {least}")
        if not self.timeout > 0:
            raise ConfigError(f"judge.timeout={self.timeout}: above 0")
