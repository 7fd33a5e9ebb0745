"""What a training run is told."""

from pathlib import Path

from thresher.config import config
from thresher.data.mixture import StoreLocations
from thresher.data.store import CacheConfig
from thresher.data.stream import StreamConfig
from thresher.errors import ConfigError
from thresher.train.anneal import check_k_start
from thresher.train.arch import Architecture
from thresher.train.log import WandbConfig
from thresher.train.normalize import NormalizeConfig
from thresher.train.optimizer import OptimizerConfig
from thresher.train.parallel.layout import ParallelConfig
from thresher.train.tracing import TraceConfig

DEFAULT_EPOCHS = 10.0
NOT_WRITTEN = "not-written"
"""Stands for the store of a training straight from a model."""


@config
class TrainConfig:
    """Fit one sparse autoencoder to one or more hook points of a store."""

    store: StoreLocations
    """Folder of the activation store, or its place in a bucket (`s3://bucket/prefix`, `gs://bucket/prefix`); or a list of
    them: a hook point then has the rows of all stores that have it."""
    hook_points: tuple[str, ...]
    """Hook points of equal width whose rows the dictionary is fitted to, together; crosscoders and transcoders take them side
    by side, of any widths (with several stores `text.3@0`, `text.3@1`)."""
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
    """Adam, its learning rate, and what happens in and after each step."""
    parallel: ParallelConfig = ParallelConfig()
    """How the processes of one launch share the training; it may differ when a run goes on."""
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
    keep: int = 0
    """Checkpoints that are kept with all it takes to go on from them, as `states/<iteration>/`; beside the last, which always
    is."""
    go_back_to: int | None = None
    """Iteration of one of those: the run goes on from there, and what came after it is deleted. Each time it is given."""
    patience: int | None = None
    """End after so many evaluations on the way without a better R2 on held-out rows; never when not given. The dictionary is
    then that of the best evaluation (a copy of it is kept in memory), and the learning rate has not come to its end."""
    min_gain: float = 0.0
    """A better R2 is better by more than this."""
    tensorboard: bool = True
    """Write the log for TensorBoard too, to `tensorboard/`."""
    wandb: WandbConfig | None = None
    """Write the log to Weights & Biases too."""
    profile: TraceConfig | None = None
    """Trace some iterations with torch's profiler, to `trace.json`."""

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
        if self.keep < 0 or (self.patience is not None and self.patience < 1) or self.min_gain < 0:
            found = f"keep={self.keep}, patience={self.patience}, min_gain={self.min_gain}"
            raise ConfigError(f"{found}: keep 0 or more, be patient for 1 or more, want a gain of 0 or more")
        if self.optimizer.micro_batches > self.stream.batch_size:
            found = f"optimizer.micro_batches={self.optimizer.micro_batches}"
            raise ConfigError(f"{found}: a batch has stream.batch_size={self.stream.batch_size} rows; cut it into fewer parts")
        check_k_start(self.sae, self.optimizer)

    @property
    def dictionary_seed(self) -> int:
        """What decides the initial dictionary."""
        return self.seed if self.init_seed is None else self.init_seed

    def count_iterations(self, n_rows: int) -> int:
        """Iterations that the budget gives when there are `n_rows` training rows."""
        budget = self.rows if self.rows is not None else (self.epochs or DEFAULT_EPOCHS) * n_rows
        return max(round(budget / self.stream.batch_size), 1)
