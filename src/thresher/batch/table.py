"""What a batch shows while it runs: a live table on a terminal, a line per change elsewhere."""

import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from thresher.progress import log

State = Literal["waiting", "ready", "running", "done", "found", "failed", "skipped", "stopped"]
"""`ready`: waits for a free place; `found`: was done before; `skipped`: something that it needs failed."""
COLORS: Mapping[State, str] = {"running": "cyan", "done": "green", "found": "green", "failed": "red", "skipped": "yellow"}
SHOWN = 40
"""Units in the table at once: those that run or failed come first."""
TAIL = 2048
"""Bytes at the end of a log in which its last line is looked for."""


@dataclass
class Status:
    """Where a unit is."""

    state: State = "waiting"
    attempts: int = 0
    """In this batch."""
    seconds: float = 0.0
    since: float = 0.0
    """When it began, by the monotonic clock."""

    tried: int = 0
    """Attempts of earlier batches."""

    @property
    def is_done(self) -> bool:
        """Whether what the unit makes is there."""
        return self.state in ("done", "found")

    def begin(self, tried: int) -> None:
        """It runs from now on, after so many attempts of earlier batches."""
        self.state, self.since, self.tried = "running", time.monotonic(), tried

    def end(self, tried: int) -> None:
        """It has come to an end after so many attempts in all."""
        self.attempts, self.seconds = tried - self.tried, time.monotonic() - self.since


@contextmanager
def show(statuses: Mapping[str, Status], logs: Mapping[str, Path]) -> Generator[None, None, None]:
    """Show a table of the units while the block runs, where the standard error is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=lambda: draw(statuses, logs), console=console, refresh_per_second=2, transient=True):
        yield


def tell(name: str, status: Status, path: Path) -> None:
    """One line about a unit whose state has changed, where there is no table."""
    if Console(stderr=True).is_terminal:
        return
    seconds = f" after {status.seconds:.0f} s" if status.seconds else ""
    attempts = f", {status.attempts} attempts" if status.attempts > 1 else ""
    log(f"batch: {name}: {status.state}{seconds}{attempts}" + (f"; see {path}" if status.state == "failed" else ""))


def draw(statuses: Mapping[str, Status], logs: Mapping[str, Path]) -> Table:
    """The units that run or failed, then the others, with the last line of their logs."""
    counts = Counter(status.state for status in statuses.values())
    table = Table(box=None, pad_edge=False, caption=", ".join(f"{n} {state}" for state, n in counts.items()))
    for header in ("unit", "state", "time", "last line"):
        table.add_column(header, overflow="ellipsis", no_wrap=True)
    order = {"running": 0, "failed": 1, "waiting": 2}
    for name in sorted(statuses, key=lambda name: order.get(statuses[name].state, 3))[:SHOWN]:
        status = statuses[name]
        seconds = time.monotonic() - status.since if status.state == "running" else status.seconds
        color = COLORS.get(status.state, "default")
        line = read_last_line(logs[name]) if status.state in ("running", "failed") else ""
        table.add_row(name, f"[{color}]{status.state}[/]", f"{seconds:.0f} s" if seconds else "", line)
    return table


def read_last_line(path: Path) -> str:
    """The last line of a log that says something; empty without one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
