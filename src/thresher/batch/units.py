"""A unit of a batch: one stage with one configuration, and the record that says it is done."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from thresher import __version__
from thresher.files import write_atomic
from thresher.runs import canonical_json, fingerprint, fingerprint_file

Stage = Literal["harvest", "train", "analyze"]
PRODUCT: Mapping[Stage, str] = {"harvest": "manifest.json", "train": "config.json", "analyze": "metrics.json"}
"""Stage -> the file of its folder that is written last and says what the others are."""
UNITS, LOGS = "units", "logs"
"""Folders of a batch."""


class Unit(NamedTuple):
    """One stage with one configuration."""

    name: str
    stage: Stage
    config: Mapping[str, Any]
    """Plain values of the stage's configuration."""
    needs: Sequence[str]
    """Names of the units that must be done before."""
    match_l0: str | None = None
    """Name of the training whose realised L0 this training is set to; it is among `needs`."""

    @property
    def out(self) -> Path:
        """The folder that it fills."""
        return Path(self.config["out"])


class UnitFiles(NamedTuple):
    """Where a batch keeps its units; safe to use from any process."""

    folder: Path
    """Of the batch."""

    def path(self, name: str) -> Path:
        """The file with the unit itself."""
        return self.folder / UNITS / f"{name}.json"

    def log(self, name: str) -> Path:
        """What the unit wrote to its standard output and error, all attempts."""
        return self.folder / LOGS / f"{name}.log"

    def write(self, unit: Unit) -> None:
        """Write down a unit, for the process that works on it."""
        self.path(unit.name).parent.mkdir(parents=True, exist_ok=True)
        self.log(unit.name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path(unit.name), [canonical_json(unit._asdict())])

    def read(self, name: str) -> Unit:
        """A unit that `write` wrote."""
        return Unit(**json.loads(self.path(name).read_bytes()))

    def is_done(self, unit: Unit) -> bool:
        """Whether just this unit was done on just these inputs, and what it made is still there."""
        record = self._record(unit.name)
        try:
            return record.exists() and json.loads(record.read_bytes()) == self._describe(unit)
        except (OSError, ValueError):
            return False

    def mark_done(self, unit: Unit) -> None:
        """Note that a unit is done."""
        write_atomic(self._record(unit.name), [canonical_json(self._describe(unit))])

    def _record(self, name: str) -> Path:
        return self.folder / UNITS / f"{name}.done.json"

    def _describe(self, unit: Unit) -> dict[str, Any]:
        """What the unit was, what it was made from and what it made. OSError when something is missing."""
        inputs = {name: _digest(self.read(name)) for name in unit.needs}
        return {"thresher": __version__, "unit": fingerprint(unit._asdict()), "inputs": inputs, "product": _digest(unit)}


def _digest(unit: Unit) -> str:
    return fingerprint_file(unit.out / PRODUCT[unit.stage])
