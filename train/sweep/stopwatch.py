"""The time that one of many takes on a shared machine."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time of the blocks that run under it: on a GPU by events, else CPU time, which neighbours disturb least."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._seconds, self._device = seconds, device
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        # With one thread the step's own thread does all its work; with several, only the whole process knows it.
        self._now = time.thread_time if torch.get_num_threads() == 1 else time.process_time

    @property
    def clock(self) -> str:
        """`GPU seconds`, `CPU seconds` of the thread that steps, or those of the process (with the threads that read) when
        torch computes with several threads."""
        if self._device.type == "cuda":
            return "GPU seconds"
        return "CPU seconds" if self._now is time.thread_time else "CPU seconds of the process"

    @contextmanager
    def running(self) -> Generator[None, None, None]:
        """Count the block's time. Nothing waits for the device."""
        if self._device.type != "cuda":
            start = self._now()
            yield
            self._seconds += self._now() - start
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self._device)
        begin.record(stream)
        yield
        end.record(stream)
        self._pending.append((begin, end))

    def read(self) -> float:
        """Seconds so far; waits for the device."""
        for begin, end in self._pending:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1e3
        self._pending.clear()
        return self._seconds
