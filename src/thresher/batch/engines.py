"""Where the units of a batch run: in processes of this machine (here), or on a Ray cluster (`ray_engine`)."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

MISTAKE = 2
"""Exit code of a unit that found a mistake, which another attempt would find again."""
STOPPED = -1000
"""Code of a unit that was not let run to its end because the batch was stopped."""
THREADS = "OMP_NUM_THREADS"
"""Environment variable: how many threads torch and BLAS compute with."""


class Task(NamedTuple):
    """A command that does a unit."""

    command: Sequence[str]
    log: Path
    """Gets its output and errors, after those of earlier attempts."""


@runtime_checkable
class Engine(Protocol):
    """Runs commands, several at once; safe to use from several threads."""

    slots: int
    """How many it is worth to hand over at once."""

    def run(self, task: Task) -> int:
        """Run a command, again when it died, and give its last exit code: 0, or why it failed (negative: a signal)."""
        ...

    def stop(self) -> None:
        """End what runs now, such that it can be resumed; nothing starts any more."""
        ...


class LocalEngine:
    """Runs commands as processes of this machine. They end with this process, however it ends, if they follow their stdin.

    Those that run at once share the processors: each gets its part as `OMP_NUM_THREADS`, unless that is set already. Else
    each would start a thread per processor, and the threads of OpenMP wait for each other at full speed.
    """

    def __init__(self, slots: int, retries: int, gpus: Sequence[int] = ()) -> None:
        self.slots = slots
        self._retries = retries
        self._variables = {} if slots == 1 or THREADS in os.environ else {THREADS: str(max(1, count_processors() // slots))}
        self._gpus: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(slots):
            self._gpus.put(gpus[slot % len(gpus)] if gpus else None)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._changing = threading.Lock()
        self._is_stopped = False

    def run(self, task: Task) -> int:
        """Run a command, again when it died."""
        gpu = self._gpus.get()
        variables = self._variables | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
        try:
            code = self._attempt(task, variables)
            for _ in range(self._retries):
                if code in (0, MISTAKE, STOPPED):
                    break
                code = self._attempt(task, variables)
            return code
        finally:
            self._gpus.put(gpu)

    def stop(self) -> None:
        """End what runs now; nothing starts any more."""
        with self._changing:
            self._is_stopped = True
            for process in self._running:
                process.send_signal(signal.SIGTERM)

    def _attempt(self, task: Task, variables: Mapping[str, str]) -> int:
        with self._changing:
            if self._is_stopped:
                return STOPPED
            process = start(task, os.environ | dict(variables))
            self._running.add(process)
        code = process.wait()
        with self._changing:
            self._running.discard(process)
            close(process)
            return STOPPED if self._is_stopped and code != 0 else code


def count_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(task: Task, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start one attempt; the process gets a standard input that ends when this process does."""
    with task.log.open("ab") as log:
        log.write(f"--- attempt {count_attempts(task.log) + 1}\n".encode())
        log.flush()
        return subprocess.Popen(task.command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=dict(environment))


def close(process: "subprocess.Popen[bytes]") -> None:
    """Let go of a process that has ended."""
    if process.stdin is not None:
        process.stdin.close()


def count_attempts(log: Path) -> int:
    """How often a unit was tried, this batch and earlier ones together."""
    return sum(line.startswith(b"--- attempt ") for line in log.read_bytes().splitlines()) if log.exists() else 0


def make_command(folder: Path, unit: str) -> list[str]:
    """The command that does a unit."""
    return [sys.executable, "-m", "thresher.batch.worker", str(folder), unit]
