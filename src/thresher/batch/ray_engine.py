"""Units of a batch on a Ray cluster; one is started on this machine where none is in reach."""

# pyright: reportUnknownParameterType=none, reportUntypedFunctionDecorator=none, reportMissingImports=none
# pyright: reportUnknownMemberType=none, reportUnknownVariableType=none, reportUnknownArgumentType=none
# ray is hardly typed, and an extra that need not be installed

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from thresher.batch.engines import MISTAKE, STOPPED, Task, close, start
from thresher.progress import log

PASSED_ON = ("THRESHER_", "HF_", "AWS_", "GOOGLE_", "PYTHONPATH")
"""Beginnings of the environment variables that units get from here: the machines of the cluster have their own others."""
PARALLEL = 256
"""Units handed over at once; Ray runs as many as there is room for."""


class UnitDied(Exception):  # noqa: N818 - not an error of this program: it makes Ray try again
    """A unit ended neither well nor with a mistake of the user."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class RayEngine:
    """Runs commands as tasks of Ray, each in a process that ends with its task. All machines must see the same files."""

    slots = PARALLEL

    def __init__(self, retries: int, cpus: float, gpus: float) -> None:
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        found = ray.cluster_resources()
        log(f"batch: Ray cluster with {found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs")
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries, "max_calls": 1}
        options["retry_exceptions"] = [UnitDied]
        self._remote: Any = cast(Any, ray).remote(**options)(_run)
        self._running: set[Any] = set()
        self._is_stopped = False

    def run(self, task: Task) -> int:
        """Run a command as a task; Ray tries again when it or its machine died."""
        if self._is_stopped:
            return STOPPED
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        reference = self._remote.remote(list(task.command), str(task.log.resolve()), str(Path.cwd()), variables)
        self._running.add(reference)
        try:
            return int(ray.get(reference))
        except UnitDied as error:
            # Ray gives it as an error of its own that has ours as its cause.
            return STOPPED if self._is_stopped else getattr(error, "cause", error).code
        except RayError:
            return STOPPED if self._is_stopped else 1
        finally:
            self._running.discard(reference)

    def stop(self) -> None:
        """Cancel the tasks; their processes end with them."""
        self._is_stopped = True
        for reference in list(self._running):
            ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_ours:
            ray.shutdown()


def _run(command: Sequence[str], log: str, folder: str, variables: Mapping[str, str]) -> int:
    """The task: one attempt."""
    os.chdir(folder)
    process = start(Task(command, Path(log)), os.environ | dict(variables))
    try:
        code = process.wait()
    finally:
        process.kill()
        close(process)
    if code not in (0, MISTAKE):
        raise UnitDied(code)
    return code
