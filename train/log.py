"""What happened during training, for people and plots: JSON lines and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from thresher.files import write_atomic

LOG = "train_log.jsonl"
TENSORBOARD = "tensorboard"


class TrainLog:
    """Appends lines to `train_log.jsonl` and scalars to `tensorboard/`; a context manager.

    Lines of iterations after `start` are dropped first: a resumed run does them again.
    """

    def __init__(self, folder: Path, start: int) -> None:
        path = folder / LOG
        kept = [line for line in _read_lines(path) if line["iteration"] <= start] if start else []
        write_atomic(path, [(json.dumps(line) + "\n").encode() for line in kept])
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=start + 1)

    def write(self, iteration: int, kind: str, values: Mapping[str, int | float]) -> None:
        """Record named numbers of one iteration; `kind` is `train` or `evaluation`."""
        self._file.write(json.dumps({"iteration": iteration, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, iteration)  # pyright: ignore[reportUnknownMemberType]

    def __enter__(self) -> "TrainLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()
        self._board.close()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; the last one may be torn."""
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]
