"""What a member of a sweep came to and what it cost, in a file beside its checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from thresher.errors import CheckpointError
from thresher.files import write_atomic
from thresher.runs import canonical_json
from thresher.train.checkpoint import is_finished, read_description

COST = "cost.json"


class Cost(NamedTuple):
    """What training a member took. Times move with the machine; all else of a member is a pure function of its settings."""

    seconds: float
    """Spent in its optimizer steps alone: reading, normalising and evaluating are not counted."""
    clock: str
    """Which time that is (`Stopwatch.clock`)."""
    parameter_bytes: int
    """Of its parameters and buffers."""
    state_bytes: int
    """Of what its optimizer remembers (and averages of weights, if there are any)."""
    curve: tuple[Mapping[str, Any], ...]
    """Its evaluations on held-out rows on the way: `iteration`, `seconds` until then, `l0`, and `r2` by hook point."""
    diverged: str | None = None
    """Where its loss stopped being finite, if it did; the member was then left as it was."""


def write_cost(folder: Path, cost: Cost) -> None:
    """Replace the file as a whole."""
    write_atomic(folder / COST, [canonical_json(cost._asdict())])


def read_cost(folder: Path) -> Cost | None:
    """The file's contents; None when there is none. Raises CheckpointError: damaged."""
    path = folder / COST
    try:
        values = json.loads(path.read_bytes())
        return Cost(**values)._replace(curve=tuple(values["curve"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete its folder to train this member again") from error


class Outcome(NamedTuple):
    """A member that came to its end."""

    folder: Path
    evaluation: Mapping[str, Any] | None
    """As in `TrainedSAE`, on all held-out rows; None when it diverged."""
    cost: Cost

    @property
    def l0(self) -> float:
        """Realised L0 on held-out rows; NaN when it diverged."""
        return float("nan") if self.evaluation is None else float(self.evaluation["l0"])

    @property
    def r2(self) -> float:
        """Mean of the hook points' R2 on held-out rows; NaN when it diverged."""
        if self.evaluation is None:
            return float("nan")
        found = [float(each["r2"]) for each in self.evaluation["hook_points"].values()]
        return sum(found) / len(found)


def read_outcome(folder: Path) -> Outcome | None:
    """What the member in a folder came to; None while it has not come to its end. Raises CheckpointError."""
    cost = read_cost(folder)
    if cost is not None and cost.diverged is not None:
        return Outcome(folder, None, cost)
    if cost is None or not is_finished(folder):
        return None
    return Outcome(folder, read_description(folder)["evaluation"], cost)
