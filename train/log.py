"""What happened during training, for people and plots: JSON lines, TensorBoard, Weights & Biases."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from torch.utils.tensorboard.writer import SummaryWriter

from thresher.config import config
from thresher.errors import ConfigError
from thresher.files import write_atomic
from thresher.runs import fingerprint

LOG = "train_log.jsonl"
TENSORBOARD = "tensorboard"


@config
class WandbConfig:
    """A run at Weights & Biases beside the log; needs the extra `wandb`."""

    project: str = "thresher"
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team; the one that is logged in when not given."""
    name: str | None = None
    """Name of the run; that of its folder when not given."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes to `wandb/` in the folder of the run, for `wandb sync`."""


class TrainLog:
    """Appends lines to `train_log.jsonl`, and scalars to `tensorboard/` and W&B where wanted; a context manager.

    Lines of iterations after `start` are dropped first: a resumed run does them again. `described` is what W&B shows as the
    configuration. Raises ConfigError when W&B is wanted and not installed.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        *,
        tensorboard: bool = True,
        wandb: WandbConfig | None = None,
        described: Mapping[str, Any] | None = None,
    ) -> None:
        path = folder / LOG
        kept = [line for line in _read_lines(path) if line["iteration"] <= start] if start else []
        self._wandb: Any = None if wandb is None else _start_wandb(wandb, folder, described or {})
        write_atomic(path, [(json.dumps(line) + "\n").encode() for line in kept])
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=start + 1) if tensorboard else None

    def write(self, iteration: int, kind: str, values: Mapping[str, int | float]) -> None:
        """Record named numbers of one iteration; `kind` is `train` or `evaluation`."""
        self._file.write(json.dumps({"iteration": iteration, "kind": kind, **values}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log({"iteration": iteration} | {f"{kind}/{name}": value for name, value in values.items()})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, iteration)  # pyright: ignore[reportUnknownMemberType]

    def __enter__(self) -> "TrainLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


def _start_wandb(settings: WandbConfig, folder: Path, described: Mapping[str, Any]) -> Any:
    """The run of this folder: the same one again when the training goes on."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"wandb: not installed ({error}); pip install thresher[wandb], or leave wandb out") from error
    folder.mkdir(parents=True, exist_ok=True)
    run: Any = wandb.init(
        project=settings.project,
        entity=settings.entity,
        name=settings.name or folder.name,
        mode=settings.mode,
        dir=str(folder),
        id=fingerprint([str(folder.resolve()), settings.project])[:16],
        resume="allow",
        config=dict(described),
        settings=wandb.Settings(silent=True),
    )
    run.define_metric("*", step_metric="iteration")
    return run


class NoLog:
    """Writes nothing: the log of a process for which another one speaks."""

    def write(self, iteration: int, kind: str, values: Mapping[str, int | float]) -> None:
        """See `TrainLog`."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; the last one may be torn."""
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]
