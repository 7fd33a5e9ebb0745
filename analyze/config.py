"""The settings of an analysis."""

from dataclasses import field
from pathlib import Path
from typing import Literal

from thresher.analyze.functional.settings import Functional, Judge, Naming
from thresher.config import config
from thresher.data.store import CacheConfig, StoreLocation
from thresher.errors import ConfigError

OWN = ("features", "figures", "site", "compare")
"""Folders of the results that no dictionary may be named after."""


@config
class Thresholds:
    """Where classes begin. Every count in the report follows from these."""

    image_above: float = 0.9
    """A feature is image-only when the 95 % interval of its modality score lies above this."""
    text_below: float = 0.1
    """A feature is text-only when the interval lies below this. Between the two it is shared; across one, undecided."""
    rare_below: int = 20
    """Features with fewer firings on held-out rows are called rare: their score may be extreme by chance. The battery counts
    records instead of rows."""
    min_score: float = 0.3
    """Least correlation (phi) of a feature's firing with a concept's presence to say that it tracks the concept."""
    alpha: float = 0.05
    """False discovery rate allowed, among the pairs of feature and concept and among the features in each test of the
    battery."""
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
class Site:
    """The pages to click through, `site/index.html`; for stores with pairs of images and texts, and of one modality."""

    build: bool = True
    """Whether to write them."""
    items: int = 12
    """Images and captions per feature, those of the largest codes."""
    samples: int = 3
    """Further ones from each quarter of those it fires on."""
    thumbnail: int = 128
    """Pixels on the longest side of an image; larger thumbnails are made smaller, none is made larger."""
    budget: int = 130
    """Megabytes that images may take; with more, fewer are shown per feature."""
    traces: int = 40
    """Megabytes that activations by token and patch may take, and as many that tokens may take; with more, fewer items per
    feature have them. 0 leaves them out. For stores of tokens and patches."""
    nearest: int = 8
    """Nearest atoms per feature."""
    pairs: int = 60
    """Images whose similarity to their captions is taken apart, and captions that are searched for, drawn at random."""
    layout: Literal["pca", "umap"] = "pca"
    """Maps of the atoms beside the two of principal components: `umap` needs umap-learn (the extra `umap`)."""

    def __post_init__(self) -> None:
        for name, least in (
            ("items", 1),
            ("samples", 0),
            ("thumbnail", 16),
            ("budget", 1),
            ("traces", 0),
            ("nearest", 0),
            ("pairs", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"site.{name}={getattr(self, name)}: at least {least}")


@config
class Splice:
    """Next-token loss of a language model with reconstructions in place of its activations."""

    documents: int = 200
    """Held-out documents at most, drawn at random; 0 leaves the measure out."""

    def __post_init__(self) -> None:
        if self.documents < 0:
            raise ConfigError(f"documents={self.documents}: 0 or more")


@config
class External:
    """What items are about, in the words of an encoder that the dictionaries were not trained on."""

    store: StoreLocation | None = None
    """Another store of the same source, by another model; items are found by their keys."""
    image: str | None = None
    """Its hook point of the images; or, without a store, an .npy file [item, width] in the order of the analyzed store's
    images."""
    text: str | None = None
    """The same for the texts; of the same width, in the same space as the images'."""

    def __post_init__(self) -> None:
        if self.image is None or self.text is None:
            raise ConfigError(f"external: image={self.image!r}, text={self.text!r}: name both, hook points or .npy files")


@config
class Battery:
    """The gates that a feature passes to be called shared, and where the other classes begin (docs/analysis.md)."""

    ess_below: float = 20.0
    """Features whose energy rests on fewer items (sum z^2)^2 / sum z^4 are rare too."""
    dense_above: float = 0.5
    """A feature that fires on a larger share of the rows of a modality is dense."""
    least_rho: float = 0.1
    """Least correlation over pairs of a feature with itself, beside being beyond chance: among many pairs the faintest common
    topic is significant."""
    least_bridge_rho: float = 0.3
    """The same of a feature with its partner: a bridge has no gate of meaning beside it, and through random weights images and
    captions still correlate by 0.2 to 0.3 (0.3 is a medium effect in the words of Cohen 1988)."""
    least_z: float = 1.645
    """Least distance of the meaning across modalities from that of random items, in standard deviations."""
    least_agreement: float = 0.25
    """Least cosine between what a feature is about on images and on texts, MMS / sqrt(MS_image MS_text)."""
    bias_gap_share: float = 0.05
    """A dense feature of one modality that carries this share of the gap is a modality bias,"""
    bias_cosine: float = 0.5
    """and so is one whose atom lies so close to the gap's direction."""
    collinear_above: float = 0.5
    """Bridges of a larger cosine are collinear, the others heterogeneous (arXiv 2606.29888)."""
    least_stability: float = 0.7
    """Least cosine with the matched atoms of other seeds."""
    require: tuple[Literal["causal", "robustness"], ...] = ()
    """Gates that a shared feature must pass besides activation, pairing and meaning."""
    least_pairs: int = 20
    """With fewer held-out images that have a caption the battery is left out."""
    edges: int = 8
    """Partners per feature and side that are written to edges.parquet."""
    n_derangements: int = 3
    """How often images and captions are paired at random and all features classified again."""
    histogram_fires: int = 30
    """Firings that a feature needs to be in the histogram beside its expectation."""
    meaning: Literal["auto", "external", "words", "activations", "none"] = "auto"
    """What judges meaning: an external encoder, the words of the captions (an image has those of its captions), the activations
    themselves (flatters the dictionary), or nothing. `auto` takes the first that there is."""
    external: External | None = None
    """Embeddings of an encoder that the dictionaries were not trained on."""
    seeds: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Per dictionary, checkpoints that differ from it by seed alone; those among `saes` are found without it."""
    calibration_pairs: int = 4000
    """Pairs of the made world on which the rule is scored, at most as many as the data have; 0 leaves it out."""

    def __post_init__(self) -> None:
        for name in ("dense_above", "bias_gap_share", "bias_cosine", "least_stability"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"battery.{name}={getattr(self, name)}: expected a number above 0, at most 1")
        for name in ("least_rho", "least_bridge_rho", "least_agreement", "collinear_above"):
            if not -1 <= getattr(self, name) < 1:
                raise ConfigError(f"battery.{name}={getattr(self, name)}: expected a correlation, from -1 to below 1")
        for name, least in (("ess_below", 0), ("least_pairs", 4), ("edges", 1), ("n_derangements", 0), ("histogram_fires", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"battery.{name}={getattr(self, name)}: at least {least}")
        if self.calibration_pairs < 0:
            raise ConfigError(f"battery.calibration_pairs={self.calibration_pairs}: 0 or more")
        if self.meaning == "external" and self.external is None:
            raise ConfigError("battery.meaning='external': give battery.external, the embeddings that judge")


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
    rows: Literal["held_out", "all"] = "held_out"
    """`held_out`: the rows that training did not see. `all`: every row, for dictionaries that were trained elsewhere (released,
    imported), which do not know this store; `image` and `text` then say where to apply them."""
    limit: int | None = None
    """At most this many held-out records, drawn at random; all by default."""
    chunk_rows: int = 8192
    """Rows encoded at once, at most 8192; bounds the memory, changes no number."""
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
    battery: Battery = Battery()
    """Gates and classes of features; for stores with pairs of images and texts."""
    gallery: Gallery = Gallery()
    """What the report shows of single features."""
    figures: Literal["all", "few", "none"] = "all"
    """Numbered figures for papers (docs/figures.md): all, those on sharedness (1, 2, 5, 6, 8), or none; about a second each."""
    site: Site = Site()
    """The pages to click through."""
    splice: Splice = Splice()
    """Spliced next-token loss; for stores of language models."""
    functional: Functional = Functional()
    """Behaviour with reconstructions and without classes of features; for stores with pairs of images and texts."""
    naming: Naming = Naming()
    """Names of features out of a vocabulary."""
    judge: Judge = Judge()
    """A language model that names features; off by default."""

    def __post_init__(self) -> None:
        if not self.saes:
            raise ConfigError("saes: name at least one checkpoint folder")
        for name in self.saes:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ConfigError(f"saes: the name {name!r} becomes a file name; use letters, digits, '-', '_' and '.'")
            if name in OWN or not name.strip("."):
                raise ConfigError(f"saes: the name {name!r} is that of a folder of the results; choose another")
        for name in self.battery.seeds:
            if name not in self.saes:
                raise ConfigError(f"battery.seeds: no dictionary {name!r}; saes has {', '.join(self.saes)}")
        for name, least in (("chunk_rows", 1), ("n_bootstrap", 20), ("n_shuffles", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: at least {least}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit}: at least 1, or leave it out")
