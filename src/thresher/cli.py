"""The command line: parses, calls, prints."""

import functools
import importlib
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from thresher import __version__
from thresher.config import describe, load_config
from thresher.errors import ThresherError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells count it."""
DAMAGED = 1
"""Exit code of `store verify` when it finds damage."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Harvest activations, fit sparse autoencoders, measure what image and text share.",
)
store_app = typer.Typer(no_args_is_help=True, help="Look at activation stores.")
sae_app = typer.Typer(no_args_is_help=True, help="Look at sparse autoencoders.")
app.add_typer(store_app, name="store")
app.add_typer(sae_app, name="sae")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Configuration file; see the folder configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, dotted: train.mp.sae.k=16")
]
StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of an activation store.")]


def _with_fields(where: str) -> type[TyperCommand]:
    """A command whose `--help` ends with the fields of the config class at `module:name` (imported only then)."""

    class ConfigCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            module, _, name = where.partition(":")
            formatter.write("\nFields of CONFIG.yaml:\n")
            for field in describe(getattr(importlib.import_module(module), name)):
                formatter.write(f"  {field.path}: {field.type}  ({field.default or 'required'})\n")
                formatter.write(_fill(field.doc) + "\n")

    return ConfigCommand


def _fill(doc: str) -> str:
    indent = " " * 6
    return textwrap.fill(
        doc, 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _guard(command: Callable[P, R]) -> Callable[P, R]:
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


@app.command(cls=_with_fields("thresher.harvest.run:HarvestConfig"))
@_guard
def harvest(config: ConfigFile, overrides: Overrides = None) -> None:
    """Read activations from a model and write them to a store. Run again to resume."""
    from thresher.harvest.run import HarvestConfig, run

    typer.echo(run(load_config(HarvestConfig, config, overrides or ())))


@app.command(cls=_with_fields("thresher.train.run:TrainConfig"))
@_guard
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fit a sparse autoencoder on a store. Run again to resume."""
    from thresher.train.run import TrainConfig, run

    typer.echo(run(load_config(TrainConfig, config, overrides or ())))


@app.command(cls=_with_fields("thresher.analyze.run:AnalyzeConfig"))
@_guard
def analyze(config: ConfigFile, overrides: Overrides = None) -> None:
    """Measure what sparse autoencoders found: tables, figures and a report."""
    from thresher.analyze.run import AnalyzeConfig, run

    _finish(run(load_config(AnalyzeConfig, config, overrides or ())))


@app.command(cls=_with_fields("thresher.harvest.pretrain:PretrainConfig"))
@_guard
def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a small CLIP from scratch on image-caption pairs, to have a model to harvest where no hub is in reach."""
    from thresher.harvest.pretrain import PretrainConfig, run

    typer.echo(run(load_config(PretrainConfig, config, overrides or ())))


@app.command(cls=_with_fields("thresher.pipeline:RunConfig"))
@_guard
def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """Harvest, train every sparse autoencoder and analyze, from one file. Finished stages are not repeated."""
    from thresher import pipeline

    _finish(pipeline.run(pipeline.load(config, overrides or ())))


@app.command()
@_guard
def demo(overrides: Overrides = None) -> None:
    """The whole pipeline on the built-in scenes world: four dictionaries compared in a few minutes on a laptop."""
    from thresher import pipeline

    settings = pipeline.load(pipeline.demo_config(), overrides or ())
    _finish(pipeline.run(settings))
    first = next(iter(settings.train.values()))
    typer.echo(
        f"Next: thresher store info {settings.harvest.out}\n"
        f"      thresher sae info {first.out}\n"
        "      thresher demo train.mp.sae.k=4 out=runs/demo-k4\n"
        "What the numbers mean: README.md, How to read results. What was measured before: docs/log.md."
    )


@store_app.command("info")
@_guard
def store_info(path: StoreFolder) -> None:
    """What a store holds: model, source, hook points, rows, sizes."""
    from thresher.data.store import describe_store

    _print_pairs(describe_store(path))


@store_app.command("verify")
@_guard
def store_verify(
    path: StoreFolder,
    sizes: Annotated[bool, typer.Option("--sizes", help="Compare file sizes and indices only; do not read the data.")] = False,
) -> None:
    """Check a store against its checksums; exit code 1 when something is damaged."""
    from thresher.data.store import verify_store

    findings = verify_store(path, level="sizes" if sizes else "checksums")
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(DAMAGED)
    typer.echo(f"{path}: sound")


@store_app.command("ls")
@_guard
def store_ls(folder: Annotated[Path, typer.Argument(help="Folder to look through.")] = Path()) -> None:
    """The stores below a folder."""
    from thresher.data.store import list_stores

    table = Table(box=None, pad_edge=False)
    rows = list_stores(folder)
    if not rows:
        typer.echo(f"{folder}: no activation store here; `thresher harvest` makes one")
        return
    for header in rows[0]:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


@sae_app.command("info")
@_guard
def sae_info(path: Annotated[Path, typer.Argument(metavar="SAE", help="Folder of a checkpoint.")]) -> None:
    """What a checkpoint is, what it was trained on and how well it does on held-out items."""
    from thresher.train.checkpoint import describe_sae

    _print_pairs(describe_sae(path))


def _print_pairs(values: dict[str, Any], indent: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            typer.echo(f"{indent}{key}:")
            _print_pairs(value, indent + "  ")
        else:
            typer.echo(f"{indent}{key}: {value:.6g}" if isinstance(value, float) else f"{indent}{key}: {value}")


def _finish(report: Path) -> None:
    """Print the table of an analysis and where its report is."""
    from thresher.analyze.run import load_summary

    rows = load_summary(report.parent)
    table = Table(box=None, pad_edge=False)
    for header in rows[0] if rows else ():
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.print(table)
    console.print(f"\nreport: {report.resolve()}\nOpen it in a browser.", soft_wrap=True, highlight=False)


def _version(show: bool) -> bool:
    if show:
        typer.echo(f"thresher {__version__}")
        raise typer.Exit
    return show


ShowVersion = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


@app.callback()
def _root(version: ShowVersion = False) -> None:  # pyright: ignore[reportUnusedFunction] - typer calls it
    """Harvest activations, fit sparse autoencoders, measure what image and text share."""


def main() -> None:
    """Entry point of the command `thresher`."""
    app()
