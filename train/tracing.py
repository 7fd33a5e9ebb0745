"""Where the time of some iterations goes, as a trace for chrome://tracing or Perfetto."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from thresher.config import config
from thresher.errors import ConfigError

TRACE = "trace.json"


@config
class TraceConfig:
    """Which iterations torch's profiler looks at; they are slower for it."""

    first: int = 10
    """The first iteration of the trace, counted from where this process starts or goes on."""
    iterations: int = 5
    """Iterations of the trace."""

    def __post_init__(self) -> None:
        if self.first < 1 or self.iterations < 1:
            raise ConfigError(f"first={self.first}, iterations={self.iterations}: give at least 1")


class Tracer:
    """Profiles a range of iterations into `trace.json` of the run; nothing without settings."""

    def __init__(self, settings: TraceConfig | None, folder: Path, device: torch.device) -> None:
        self._settings, self._folder = settings, folder
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profiler = None if settings is None else profile(activities=activities)
        self._is_running = False

    def begin(self, number: int) -> None:
        """Called before the `number`-th iteration of this process, counted from 1."""
        if self._profiler is not None and self._settings is not None and number == self._settings.first:
            self._profiler.start()
            self._is_running = True

    def end(self, number: int) -> None:
        """Called after it; writes the trace after the last."""
        if self._settings is not None and number + 1 == self._settings.first + self._settings.iterations:
            self.close()

    def close(self) -> None:
        """Write what there is."""
        if self._profiler is not None and self._is_running:
            self._is_running = False
            self._profiler.stop()
            self._profiler.export_chrome_trace(str(self._folder / TRACE))
