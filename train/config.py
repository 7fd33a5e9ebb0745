"""What a training run is told."""

from pathlib import Path

from thresher.config import config
from thresher.data.store import CacheConfig, StoreLocation
from thresher.data.stream import StreamConfig
from thresher.errors import ConfigError
from thresher.train.arch import Architecture
from thresher.train.normalize import NormalizeConfig
from thresher.train.optimizer import OptimizerConfig

DEFAULT_EPOCHS = 10.0


@config
class TrainConfig:
    """Fit one sparse autoencoder to one or more hook points of a store."""

    store: StoreLocation
    """Folder of the activation store, or its place in a bucket (`s3://bucket/prefix`, `gs://bucket/prefix`)."""
    hook_points: tuple[str, ...]
    """Hook points of equal width whose rows the dictionary is fitted to, together."""
    sae: Architecture
    """The architecture, by its `kind`."""
    out: Path
    """Folder of the run: the checkpoint, its evaluation and the logs."""
    stream: StreamConfig = StreamConfig()
    """How the store is read, and what is held out."""
    cache: CacheConfig = CacheConfig()
    """Copies of what is read of a store in a bucket."""
    normalize: NormalizeConfig = NormalizeConfig()
    """What is done to activations first; recorded in the checkpoint and undone by `decode`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Adam and its learning rate."""
    rows: int | None = None
    """Training budget in rows."""
    epochs: float | None = None
    """Training budget in passes over the training rows, instead of `rows`; 10 when neither is given."""
    seed: int = 0
    """Decides the initial dictionary, the order of the rows and which records are held out."""
    init_seed: int | None = None
    """Decides the initial dictionary instead of `seed`: other dictionaries on the same rows in the same order."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU if there is one."""
    log_every: int = 50
    """Iterations between two lines of the log."""
    evaluate_every: int = 1000
    """Iterations between two evaluations on held-out rows; the end has one anyway."""
    evaluate_rows: int = 10_000
    """Held-out rows per hook point in the evaluations on the way; the last one uses all of them."""
    checkpoint_every: int = 1000
    """Iterations between two checkpoints; a killed run goes on from the last."""

    def __post_init__(self) -> None:
        if not self.hook_points or len(set(self.hook_points)) < len(self.hook_points):
            raise ConfigError(f"hook_points={list(self.hook_points)}: give at least one, each once")
        if self.rows is not None and self.epochs is not None:
            raise ConfigError(f"rows={self.rows} and epochs={self.epochs}: give the budget in one of them")
        if (self.rows is not None and self.rows < 1) or (self.epochs is not None and self.epochs <= 0):
            raise ConfigError(f"rows={self.rows}, epochs={self.epochs}: the training budget must be positive")
        for name in ("log_every", "evaluate_every", "evaluate_rows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give at least 1")

    @property
    def dictionary_seed(self) -> int:
        """What decides the initial dictionary."""
        return self.seed if self.init_seed is None else self.init_seed

    def count_iterations(self, n_rows: int) -> int:
        """Iterations that the budget gives when there are `n_rows` training rows."""
        budget = self.rows if self.rows is not None else (self.epochs or DEFAULT_EPOCHS) * n_rows
        return max(round(budget / self.stream.batch_size), 1)
