"""Does a batch: every unit once, after those that it needs, on an engine."""

import fcntl
import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from thresher.analyze.run import load_summary
from thresher.batch.engines import STOPPED, Engine, LocalEngine, Task, count_attempts, make_command
from thresher.batch.plan import Plan, PlanConfig
from thresher.batch.table import State, Status, read_last_line, show, tell
from thresher.batch.units import Unit, UnitFiles
from thresher.errors import ConfigError
from thresher.files import write_atomic
from thresher.runs import canonical_json, refuse_foreign

SUMMARY = "summary.json"
HEADLINE = ("run", "sae", "L0", "R2", "R2 image", "R2 text", "FVU", "dead", "recovered from zero")
"""Columns of the table of results; `summary.json` has all."""


class Outcome(NamedTuple):
    """What became of a batch; rows are fit for a table."""

    units: list[dict[str, str]]
    """A row per unit."""
    results: list[dict[str, str]]
    """A row per dictionary of each run whose analysis is done."""
    is_complete: bool
    """Whether every unit is done."""


def run(plan: Plan, engine: Engine) -> Outcome:
    """Do what is not done, write `summary.json` and return what became of everything.

    A unit that failed keeps those that need it from running, not the others. On Ctrl-C the engine is stopped and
    KeyboardInterrupt raised. Raises ConfigError: `out` holds other things or is used by another batch.
    """
    folder = plan.config.out
    refuse_foreign(folder, ["units", SUMMARY])
    files = UnitFiles(folder)
    with _lock(folder):
        for unit in plan.units.values():
            files.write(unit)
        scheduler = Scheduler(plan.units, files, engine)
        try:
            with show(scheduler.statuses, {name: files.log(name) for name in plan.units}):
                scheduler.run()
        finally:
            outcome = _summarize(plan, files, scheduler.statuses)
            content = {"units": outcome.units, "results": outcome.results, "is_complete": outcome.is_complete}
            write_atomic(folder / SUMMARY, [canonical_json(content)])
    return outcome


class Scheduler:
    """Hands units to the engine as soon as what they need is done."""

    def __init__(self, units: Mapping[str, Unit], files: UnitFiles, engine: Engine) -> None:
        self.statuses = {name: Status() for name in units}
        """Where each unit is."""
        self._units = units
        self._files = files
        self._engine = engine

    def run(self) -> None:
        """Return when nothing is left that can be done."""
        running: dict[Future[int], str] = {}
        with ThreadPoolExecutor(self._engine.slots, thread_name_prefix="unit") as pool:
            try:
                while True:
                    for name in self._settle():
                        task = Task(make_command(self._files.folder.resolve(), name), self._files.log(name))
                        running[pool.submit(self._do, name, task)] = name
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._end(running.pop(future), future.result())
            except BaseException:
                self._engine.stop()
                raise

    def _settle(self) -> list[str]:
        """The units that can begin, and now count as running; those that are done or cannot be done are noted as that."""
        ready: list[str] = []
        for name, unit in self._units.items():
            if self.statuses[name].state != "waiting":
                continue
            states: set[State] = {self.statuses[needed].state for needed in unit.needs}
            if states & {"failed", "skipped", "stopped"}:
                self._note(name, "skipped")
            elif states <= {"done", "found"} and self._files.is_done(unit):
                self._note(name, "found")
            elif states <= {"done", "found"}:
                # Waits for a free slot at first: the engine says when there is one.
                self.statuses[name].state = "ready"
                ready.append(name)
        return ready

    def _do(self, name: str, task: Task) -> int:
        status = self.statuses[name]
        status.begin(count_attempts(task.log))
        tell(name, status, task.log)
        return self._engine.run(task)

    def _end(self, name: str, code: int) -> None:
        log = self._files.log(name)
        status = self.statuses[name]
        status.end(count_attempts(log))
        if code == STOPPED:
            self._note(name, "stopped")
        else:
            self._note(name, "done" if code == 0 and self._files.is_done(self._units[name]) else "failed")

    def _note(self, name: str, state: State) -> None:
        self.statuses[name].state = state
        tell(name, self.statuses[name], self._files.log(name))


@contextmanager
def open_engine(settings: PlanConfig, kind: Literal["local", "ray"], workers: int) -> Generator[Engine, None, None]:
    """The engine for a plan while the block runs. Raises ConfigError where Ray is not installed."""
    if kind == "local":
        gpus = range(torch.cuda.device_count()) if settings.gpus else ()
        yield LocalEngine(workers, settings.retries, gpus)
        return
    try:
        from thresher.batch.ray_engine import RayEngine
    except ModuleNotFoundError as error:
        raise ConfigError("engine=ray: Ray is not installed; pip install 'thresher[ray]', or use --engine local") from error
    engine = RayEngine(settings.retries, settings.cpus, settings.gpus)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _lock(folder: Path) -> Generator[None, None, None]:
    """Keep other batches out of the folder while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(f"{folder}: another batch works in this folder; wait for it, or choose another `out`") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _summarize(plan: Plan, files: UnitFiles, statuses: Mapping[str, Status]) -> Outcome:
    units: list[dict[str, str]] = []
    for name, unit in plan.units.items():
        status = statuses[name]
        said = read_last_line(files.log(name)) if status.state == "failed" else ""
        times = {"attempts": str(status.attempts), "seconds": f"{status.seconds:.0f}"}
        units.append({"unit": name, "stage": unit.stage, "state": status.state, **times, "out": str(unit.out), "said": said})
    results: list[dict[str, str]] = []
    for name in plan.runs:
        if statuses[f"analyze-{name}"].is_done:
            results += _read_results(name, plan.units[f"analyze-{name}"].out)
    return Outcome(units, results, all(status.is_done for status in statuses.values()))


def _read_results(run: str, folder: Path) -> list[dict[str, str]]:
    """A row per dictionary, from the table of an analysis, which has one per measure."""
    measures = load_summary(folder)
    names = [name for name in measures[0] if name != "measure"]
    return [{"run": run, "sae": name} | {row["measure"].strip(): row[name] for row in measures} for name in names]


def pick_headline(results: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The results as far as they fit beside each other, with equal keys in all rows."""
    shown = [name for name in HEADLINE if any(name in row for row in results)]
    return [{name: row.get(name, "") for name in shown} for row in results]
