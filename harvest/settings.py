"""What a harvest is asked to do."""

from typing import Literal

from thresher.config import config
from thresher.data.sources import SourceConfig
from thresher.data.store import Profile, StoreLocation
from thresher.errors import ConfigError
from thresher.harvest.adapters import ModelConfig
from thresher.harvest.adapters.base import Precision
from thresher.harvest.outliers import Outliers
from thresher.harvest.rows import ImageRows, Pool, TextRows


@config
class HarvestConfig:
    """Read activations of one model over one source into one store."""

    out: StoreLocation
    """Folder of the activation store, or its place in a bucket (`s3://bucket/prefix`, `gs://bucket/prefix`). A finished or
    unfinished store of the same harvest there is used, not overwritten."""
    model: ModelConfig
    """The model to read."""
    source: SourceConfig
    """The images, captions or texts to feed it."""
    hook_points: tuple[str, ...]
    """Places to read, by name or glob: vision.3, text.*, vision.pooled, text.embed, module:<path in the model>."""
    image_rows: ImageRows = "all"
    """Positions of an image to keep at hook points with one row per token: `cls`, `registers`, `patches`, or all; `attended`
    are those that the model's attention mask lets through, padding among them where the model attends to it."""
    text_rows: TextRows = "all"
    """Positions of a text to keep. `all` leaves out padding, `content` also BOS, EOS and the like; `last` is the last token,
    `eot` the position the model itself pools, in a language model the last token; `text` and `image` are the tokens of the
    text and of the image where a model reads both in one sequence; `attended` as for images."""
    positions_per_item: int | None = None
    """Of the positions above, keep a random choice of at most so many per item; it follows from `seed` and the item's key."""
    pool: Pool = "none"
    """`mean` gives one row per item instead, the mean over the positions above (in a row space of its own)."""
    outliers: Outliers | None = None
    """What becomes of rows with a large norm; when not given, they are kept."""
    dtype: Precision = "float32"
    """Type of the stored values."""
    autocast: Literal["off", "bfloat16", "float16"] = "off"
    """Mixed precision of the forward pass; off gives the model's own values exactly."""
    compile: bool = False
    """Compile the parts of the model between the hook points (torch.compile): faster on a GPU after a minute of compiling;
    values may differ in the last bits from those of the model as it is."""
    batch_size: int = 64
    """Records per forward pass; texts go in passes of at most so many."""
    text_passes: Literal["source", "length", "packed"] = "source"
    """Which texts of a batch share a forward pass: neighbours, or those of about the same length, which saves padding where a
    model pads to the longest; or all, `packed` several to a sequence, none seeing another, which saves more (language models of
    kind hf-causal-lm). Rows and their order in the store are the same."""
    packed_length: int = 512
    """Tokens of a packed sequence. Texts that are longer go by length. It fills up when a batch (`batch_size`) has many times
    as many tokens."""
    limit: int | None = None
    """Take only so many records."""
    order: Literal["source", "shuffled"] = "source"
    """Order of records in the store; shuffled makes a limit a random sample, and neighbours in the store unrelated."""
    seed: int = 0
    """Decides the shuffled order and the random choice of positions."""
    thumbnail: int = 96
    """Longest side in pixels of the pictures kept for reports; 0 keeps none."""
    on_unreadable: Literal["skip", "stop"] = "skip"
    """An image that cannot be decoded, or a text that is not UTF-8: leave its rows out and count it, or stop."""
    on_nonfinite: Literal["stop", "drop"] = "stop"
    """An activation with NaN or infinity: stop, or leave its row out and count it."""
    items_per_shard: int | None = None
    """Records per shard, which is what a kill can cost; chosen by size (at most 256 MiB, 8192 records) when not given."""
    profile: Profile = "raw"
    """How rows lie in the store; values are the same. `raw`, as they are, is read and written at the speed of the disk.
    `compact` (lz4) and `archive` (zstd, transposed; the smallest and slowest) take less room, bfloat16 about three quarters,
    float16 little less; they cannot be mapped into memory, be read from the disk into place (O_DIRECT), or be seen as HDF5
    without a copy, and training reads them more slowly, from small pools much more slowly."""
    portable_dtype: bool = False
    """Call bfloat16 uint16 in the store's zarr metadata, for readers that do not know bfloat16: they see its bits. thresher
    reads the same from both; `thresher store retype` changes it later."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:<i>."""
    workers: int = 2
    """How many decode and preprocess ahead of the model."""
    decode: Literal["threads", "processes"] = "threads"
    """Decode images in threads, or in processes of their own: faster from about 4 workers on, after some seconds to start."""

    def __post_init__(self) -> None:
        if not self.hook_points:
            raise ConfigError("hook_points: name at least one, for instance vision.pooled")
        for name, low in (
            ("batch_size", 1),
            ("workers", 1),
            ("thumbnail", 0),
            ("seed", 0),
            ("limit", 1),
            ("items_per_shard", 1),
            ("positions_per_item", 1),
            ("packed_length", 2),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name}={value}: at least {low}")
        if self.order == "shuffled" and getattr(self.source, "streaming", False):
            raise ConfigError("order=shuffled: a stream is read in its own order; use streaming=false or order=source")
