"""The plan of a batch: a run of the pipeline, what varies, and the units that follow."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

from thresher import pipeline
from thresher.batch.units import Unit
from thresher.config import config, load_config, override_values, read_values, to_dict
from thresher.errors import ConfigError
from thresher.pipeline import RunConfig
from thresher.runs import fingerprint
from thresher.train.run import FREE_FIELDS

FREE = ("out", "device", "workers", "decode")
"""Fields of a harvest that do not decide what is stored; those of a training are `FREE_FIELDS`."""


@config
class PlanConfig:
    """Many runs of the pipeline (`thresher run`)."""

    out: Path
    """Folder of the batch: `stores/`, `saes/`, `reports/<run>/`, `logs/`, `units/` and `summary.json` come to stand in it."""
    base: Path | dict[str, Any]
    """Configuration of a run, or the file with one (its path from the plan's folder), without `out`: folders follow from the
    batch."""
    grid: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    """Dotted field of the run -> its values; there is a run for every combination of them."""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Name -> dotted fields and their values, for what does not vary freely; each of them with every combination of `grid`."""
    retries: int = 2
    """How often a unit that died (not one that found a mistake) is tried again."""
    cpus: float = 1.0
    """What a unit asks of a Ray cluster."""
    gpus: float = 0.0
    """What a unit asks of a Ray cluster; with the local engine, units take turns at this machine's GPUs where it is not 0."""

    def __post_init__(self) -> None:
        for name, value in (("retries", self.retries), ("cpus", self.cpus), ("gpus", self.gpus)):
            if value < 0:
                raise ConfigError(f"{name}={value}: at least 0")
        empty = [key for key, values in self.grid.items() if not values]
        if empty:
            raise ConfigError(f"grid.{empty[0]}: name at least one value")


class Plan(NamedTuple):
    """What a batch will do."""

    config: PlanConfig
    runs: Mapping[str, RunConfig]
    """Name -> the run, with the folders of the batch."""
    units: Mapping[str, Unit]
    """Name -> unit, each after those that it needs."""


def load_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read and expand a plan. Raises ConfigError that names the run in which a mistake is."""
    settings = load_config(PlanConfig, path, overrides)
    base, where = settings.base, str(path)
    if isinstance(base, Path):
        where = str(path.parent / base)
        base = read_values(path.parent / base)
    runs: dict[str, RunConfig] = {}
    units: dict[str, Unit] = {}
    for name, changes in _expand(settings):
        if name in runs:
            raise ConfigError(f"{path}: two runs are called {name!r}; name them under `runs`")
        values = override_values(base, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
        _refuse_folders(values, f"{where}, run {name}")
        runs[name] = _place(settings.out, name, values, f"{where}, run {name}")
        units |= {unit.name: unit for unit in _list_units(name, runs[name])}
    return Plan(settings, runs, units)


def _expand(settings: PlanConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each run and the fields in which it differs from the base."""
    for name, changes in (settings.runs or {"": {}}).items():
        for combination in itertools.product(*(enumerate(values) for values in settings.grid.values())):
            varied = dict(zip(settings.grid, combination, strict=True))
            parts = [name] if name else []
            parts += [_name_value(key, place, value) for key, (place, value) in varied.items()]
            yield "-".join(parts) or "run", changes | {key: value for key, (_, value) in varied.items()}


def _name_value(key: str, place: int, value: Any) -> str:
    """A part of a folder's name for one value of a field: the value where it is short and plain, else its place."""
    last = key.rpartition(".")[2]
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{last}={text}" if re.fullmatch(r"[A-Za-z0-9_.+]{1,24}", text) else f"{last}={place}"


def _refuse_folders(values: Mapping[str, Any], where: str) -> None:
    groups = {"harvest": values.get("harvest"), "analyze": values.get("analyze")}
    trainings = values.get("train")
    groups |= {f"train.{name}": member for name, member in trainings.items()} if isinstance(trainings, dict) else {}
    for path, group in groups.items():
        for known in ("out", "store", "saes"):
            if isinstance(group, dict) and known in group:
                raise ConfigError(f"{where}: {path}.{known}: the folders of a batch follow from its `out`; leave it away")


def _place(out: Path, name: str, values: Mapping[str, Any], where: str) -> RunConfig:
    """The run with folders that are named by what is in them, so that equal stages of several runs are one."""
    plain = pipeline.complete({**values, "out": str(out / "reports" / name)}, where)
    store = out / "stores" / _key(_pick(to_dict(plain.harvest), FREE))
    folders: dict[str, str] = {}
    for member, training in plain.train.items():
        matched = folders.get(plain.match_l0 or "")
        decisive = _pick(to_dict(training), FREE_FIELDS) | {"store": store.name, "match_l0": matched}
        folders[member] = str(out / "saes" / f"{member}-{_key(decisive)}")
    trainings = values["train"]
    changed = {member: {**trainings[member], "out": folder} for member, folder in folders.items()}
    placed = {**values, "harvest": {**values["harvest"], "out": str(store)}, "train": changed}
    placed["analyze"] = {**(values.get("analyze") or {}), "out": str(out / "reports" / name)}
    return pipeline.complete({**placed, "out": str(out)}, where)


def _list_units(name: str, run: RunConfig) -> Iterator[Unit]:
    harvest = Unit(f"harvest-{Path(run.harvest.out).name}", "harvest", to_dict(run.harvest), ())
    yield harvest
    trainings: dict[str, str] = {}
    for member, training in run.train.items():
        matched = trainings.get(run.match_l0 or "")
        trainings[member] = f"train-{training.out.name}"
        needs = (harvest.name, matched) if matched else (harvest.name,)
        yield Unit(trainings[member], "train", to_dict(training), needs, matched)
    yield Unit(f"analyze-{name}", "analyze", to_dict(run.analyze), (harvest.name, *trainings.values()))


def _pick(values: Mapping[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in left_out}


def _key(values: Mapping[str, Any]) -> str:
    return fingerprint(values)[:10]
