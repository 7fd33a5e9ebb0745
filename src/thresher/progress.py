"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere. All of it on stderr."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from thresher.ranks import is_first_process

SECONDS_PER_LINE = 10.0
"""How often the plain form writes a line."""


class Advance(Protocol):
    """Reports that `n` more units are done; keywords (`loss=0.31`) are shown beside the bar."""

    def __call__(self, n: int = 1, **shown: float | str) -> None:
        """Advance by `n` units."""
        ...


def log(message: str) -> None:
    """One line of news for the person who watches. Of several processes that were launched together only the first speaks."""
    if not is_first_process():
        return
    Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Generator[Advance, None, None]:
    """Show progress of `total` units (unknown when None) while the block runs; yields the function that advances it."""
    if not is_first_process():
        yield _say_nothing
        return
    console = Console(stderr=True)
    bar = _bar(console, label, total, unit) if console.is_terminal else _lines(label, total, unit)
    with bar as advance:
        yield advance


def _say_nothing(n: int = 1, **shown: float | str) -> None:
    pass


@contextmanager
def _bar(console: Console, label: str, total: int | None, unit: str) -> Generator[Advance, None, None]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=console) as shown_progress:
        task = shown_progress.add_task(label, total=total, rate="", shown="")
        start = time.monotonic()
        done = 0

        def advance(n: int = 1, **shown: float | str) -> None:
            nonlocal done
            done += n
            rate = f"{_rate(done, start)} {unit}/s"
            shown_progress.update(task, advance=n, rate=rate, shown=_format(shown))

        yield advance


@contextmanager
def _lines(label: str, total: int | None, unit: str) -> Generator[Advance, None, None]:
    start = last = time.monotonic()
    done = 0
    latest: dict[str, float | str] = {}

    def advance(n: int = 1, **shown: float | str) -> None:
        nonlocal done, last, latest
        done, latest = done + n, shown or latest
        now = time.monotonic()
        if now - last < SECONDS_PER_LINE:
            return
        last = now
        left = f", {(total - done) * (now - start) / max(done, 1):.0f} s left" if total else ""
        of = f"/{total}" if total else ""
        log(f"{label}: {done}{of} {unit}, {_rate(done, start)} {unit}/s{left} {_format(latest)}".rstrip())

    yield advance
    log(f"{label}: {done} {unit} in {time.monotonic() - start:.1f} s, {_rate(done, start)} {unit}/s {_format(latest)}".rstrip())


def _rate(done: int, start: float) -> str:
    rate = done / max(time.monotonic() - start, 1e-9)
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


def _format(shown: dict[str, float | str]) -> str:
    return " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in shown.items())
