"""The settings of an analysis."""

from pathlib import Path

from thresher.config import config
from thresher.data.store import CacheConfig, StoreLocation
from thresher.errors import ConfigError


@config
class Thresholds:
    """Where classes begin. Every count in the report follows from these."""

    image_above: float = 0.9
    """A feature is image-only when the 95 % interval of its modality score lies above this."""
    text_below: float = 0.1
    """A feature is text-only when the interval lies below this. Between the two it is shared; across one, undecided."""
    rare_below: int = 20
    """Features with fewer firings on held-out rows are called rare: their score may be extreme by chance."""
    min_score: float = 0.3
    """Least correlation (phi) of a feature's firing with a concept's presence to say that it tracks the concept."""
    alpha: float = 0.05
    """False discovery rate allowed among the pairs of feature and concept."""
    min_items: int = 20
    """Concepts with fewer held-out items with or without them are not scored."""

    def __post_init__(self) -> None:
        if not 0 <= self.text_below < self.image_above <= 1:
            found = f"text_below={self.text_below}, image_above={self.image_above}"
            raise ConfigError(f"{found}: expected 0 <= text_below < image_above <= 1")
        for name in ("min_score", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number between 0 and 1")
        for name in ("rare_below", "min_items"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1")


@config
class Gallery:
    """What the report shows of single features."""

    shared: int = 12
    """How many shared features, those of most energy first."""
    one_sided: int = 4
    """How many image-only and how many text-only features."""
    items: int = 6
    """Images and captions per feature, those of the largest codes first."""

    def __post_init__(self) -> None:
        for name in ("shared", "one_sided", "items"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: 0 or more")


@config
class Splice:
    """Next-token loss of a language model with reconstructions in place of its activations."""

    documents: int = 200
    """Held-out documents at most, drawn at random; 0 leaves the measure out."""

    def __post_init__(self) -> None:
        if self.documents < 0:
            raise ConfigError(f"documents={self.documents}: 0 or more")


@config
class AnalyzeConfig:
    """Measure trained sparse autoencoders on the held-out items of the store they were trained on."""

    store: StoreLocation
    """Folder of the activation store, or its place in a bucket (`s3://bucket/prefix`, `gs://bucket/prefix`)."""
    cache: CacheConfig = CacheConfig()
    """Copies of what is read of a store in a bucket."""
    saes: dict[str, Path]
    """Checkpoint folders by the name to show. All must have held out the same items of this store."""
    out: Path
    """Folder for the results; `report.html` is the page to open."""
    image: str | None = None
    """Hook point of the images; by default the one of the image tower that the autoencoders were trained on."""
    text: str | None = None
    """Hook point of the texts; by default the one of the text tower that the autoencoders were trained on."""
    limit: int | None = None
    """At most this many held-out records, drawn at random; all by default."""
    chunk_rows: int = 8192
    """Rows encoded at once; bounds the memory, changes no number."""
    n_bootstrap: int = 200
    """Resamples of the records behind every 95 % interval."""
    n_shuffles: int = 3
    """How often the ground truth is shuffled against the items, to count what chance alone would match."""
    seed: int = 0
    """Decides resamples, shuffles and which caption of a record is scored."""
    device: str = "auto"
    """Where codes are computed: auto (a GPU if there is one), cpu, cuda or cuda:<i>."""
    thresholds: Thresholds = Thresholds()
    """Where classes begin."""
    gallery: Gallery = Gallery()
    """What the report shows of single features."""
    splice: Splice = Splice()
    """Spliced next-token loss; for stores of language models."""

    def __post_init__(self) -> None:
        if not self.saes:
            raise ConfigError("saes: name at least one checkpoint folder")
        for name in self.saes:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ConfigError(f"saes: the name {name!r} becomes a file name; use letters, digits, '-', '_' and '.'")
        for name, least in (("chunk_rows", 1), ("n_bootstrap", 20), ("n_shuffles", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: at least {least}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit}: at least 1, or leave it out")
