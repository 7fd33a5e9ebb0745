"""What all commands share: how errors end, how tables and settings are printed."""

import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from thresher.errors import ThresherError

UNLIMITED = 10_000
"""Columns of a table that goes into a file or a pipe: rows are not wrapped there."""

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells count it."""


def guard(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into a message and exit code 2, and Ctrl-C or SIGTERM into a clean end that says how to go on."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        def stop(signum: int, frame: object) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGTERM, stop)
        try:
            return command(*args, **kwargs)
        except ThresherError as error:
            Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True, style="red")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("stopped; what was committed is kept. Run the same command again to go on from there.", err=True)
            raise typer.Exit(INTERRUPTED) from error
        finally:
            signal.signal(signal.SIGTERM, previous)

    return guarded


def print_pairs(values: Mapping[str, Any], indent: str = "") -> None:
    """Plain values as lines, nested ones indented."""
    for key, value in values.items():
        if value == {}:
            typer.echo(f"{indent}{key}: none")
            continue
        if isinstance(value, Mapping):
            typer.echo(f"{indent}{key}:")
            print_pairs(value, indent + "  ")
        else:
            typer.echo(f"{indent}{key}: {value:.6g}" if isinstance(value, float) else f"{indent}{key}: {value}")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys as a table with a header; nothing for no rows."""
    table = Table(box=None, pad_edge=False)
    for header in rows[0] if rows else ():
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console()
    (console if console.is_terminal else Console(width=UNLIMITED)).print(table)
