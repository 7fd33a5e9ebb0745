"""The command line: parses, calls, prints."""

import importlib
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from thresher import __version__, cli_sae, cli_store
from thresher.cli_common import guard, print_table
from thresher.config import describe, load_config
from thresher.ranks import is_first_process

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Harvest activations, fit sparse autoencoders, measure what image and text share.",
)
app.add_typer(cli_store.app, name="store")
app.add_typer(cli_sae.app, name="sae")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Configuration file; see the folder configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, dotted: train.mp.sae.k=16")
]


def _with_fields(where: str) -> type[TyperCommand]:
    """A command whose `--help` ends with the fields of the config class at `module:name` (imported only then)."""

    class ConfigCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            module, _, name = where.partition(":")
            formatter.write(f"\nFields of {self.params[0].metavar}:\n")
            for field in describe(getattr(importlib.import_module(module), name)):
                formatter.write(f"  {field.path}: {field.type}  ({field.default or 'required'})\n")
                formatter.write(_fill(field.doc) + "\n")

    return ConfigCommand


def _fill(doc: str) -> str:
    indent = " " * 6
    return textwrap.fill(
        doc, 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


@app.command(cls=_with_fields("thresher.harvest.run:HarvestConfig"))
@guard
def harvest(config: ConfigFile, overrides: Overrides = None) -> None:
    """Read activations from a model and write them to a store. Run again to resume.

    On several devices or machines: accelerate launch -m thresher harvest CONFIG.yaml; the store is the same.
    """
    from thresher.harvest.run import HarvestConfig, run

    out = run(load_config(HarvestConfig, config, overrides or ()))
    if is_first_process():
        typer.echo(out)


@app.command()
@guard
def hooks(config: ConfigFile, overrides: Overrides = None) -> None:
    """List the hook points of the model in a harvest's configuration: names, rows, widths."""
    from thresher.harvest.listing import list_hook_points
    from thresher.harvest.run import HarvestConfig

    print_table(list_hook_points(load_config(HarvestConfig, config, overrides or ())))


@app.command(cls=_with_fields("thresher.train.run:TrainConfig"))
@guard
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fit a sparse autoencoder on a store. Run again to resume.

    On several devices or machines: accelerate launch -m thresher train CONFIG.yaml; each has a share of every batch.
    """
    from thresher.train.run import TrainConfig, run

    out = run(load_config(TrainConfig, config, overrides or ()))
    if is_first_process():
        typer.echo(out)


@app.command(cls=_with_fields("thresher.online.config:OnlineConfig"))
@guard
def online(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fit a sparse autoencoder straight to what a model computes, without a store. Run again to resume."""
    from thresher.online.config import load
    from thresher.online.run import run

    typer.echo(run(load(config, overrides or ())))


@app.command(cls=_with_fields("thresher.train.sweep.config:SweepConfig"))
@guard
def sweep(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fit many sparse autoencoders on one pass over a store and compare them at equal L0. Run again to resume or to add.

    On several devices or machines: accelerate launch -m thresher sweep CONFIG.yaml; each trains its share of the members.
    """
    from thresher.train.sweep.run import load, read_table, run

    out = run(load(config, overrides or ()))
    if is_first_process():
        print_table(read_table(out))
        typer.echo(f"\ntable: {out / 'table.md'}")


_analyze_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@_analyze_app.command()
@guard
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B...", help="Folders that `thresher analyze` has written.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")],
    seed: Annotated[int, typer.Option(min=0, help="Decides what is drawn by chance.")] = 0,
) -> None:
    """Finished analyses side by side: headline numbers with intervals, likeness of the dictionaries, figures."""
    from thresher.analyze.compare.run import MARKDOWN
    from thresher.analyze.compare.run import compare as compare_runs

    compare_runs(runs, out, seed)
    typer.echo((out / MARKDOWN).read_text(encoding="utf-8"))
    typer.echo(f"comparison: {out}")


@_analyze_app.command()
@guard
def figures(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `thresher analyze` has written.")],
    out: Annotated[Path | None, typer.Option(help="Another folder for them; by default they are replaced.")] = None,
    which: Annotated[Literal["all", "few"], typer.Option(help="All, or those about sharedness.")] = "all",
) -> None:
    """Draw the numbered figures of a finished analysis again, from its files alone."""
    from thresher.analyze.plots.redraw import redraw

    written = redraw(run, out, which)
    typer.echo(f"figures: {len(written)} files in {written[0].parent}")


class _AnalyzeCommand(_with_fields("thresher.analyze.run:AnalyzeConfig")):
    """`analyze CONFIG.yaml`, and `analyze compare RUN...` and `analyze figures RUN`, which are commands of their own."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        further = cast(TyperGroup, typer.main.get_command(_analyze_app)).commands
        if args and args[0] in further:
            return further[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@app.command(cls=_AnalyzeCommand)
@guard
def analyze(config: ConfigFile, overrides: Overrides = None) -> None:
    """Measure what sparse autoencoders found: tables, figures and a report. `thresher analyze compare RUN_A RUN_B` compares,
    `thresher analyze figures RUN` draws again.

    A configuration called compare or figures is given with its folder: ./compare.
    """
    from thresher.analyze.run import AnalyzeConfig, run

    _finish(run(load_config(AnalyzeConfig, config, overrides or ())))


@app.command(cls=_with_fields("thresher.harvest.pretrain:PretrainConfig"))
@guard
def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a small CLIP from scratch on image-caption pairs, to have a model to harvest where no hub is in reach."""
    from thresher.harvest.pretrain import PretrainConfig, run

    typer.echo(run(load_config(PretrainConfig, config, overrides or ())))


@app.command(cls=_with_fields("thresher.pipeline:RunConfig"))
@guard
def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """Harvest, train every sparse autoencoder and analyze, from one file. Finished stages are not repeated."""
    from thresher import pipeline

    _finish(pipeline.run(pipeline.load(config, overrides or ())))


@app.command(cls=_with_fields("thresher.batch.plan:PlanConfig"))
@guard
def batch(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="Runs of the pipeline, and what varies between them.")],
    overrides: Overrides = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Processes of this machine, or a Ray cluster.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Units at once on this machine.")] = 1,
) -> None:
    """Do many runs of the pipeline: every unit once, again when it dies. Run again to do what is missing."""
    from thresher.batch.plan import load_plan
    from thresher.batch.run import open_engine, pick_headline
    from thresher.batch.run import run as run_batch

    loaded = load_plan(plan, overrides or [])
    with open_engine(loaded.config, engine, workers) as opened:
        outcome = run_batch(loaded, opened)
    print_table(outcome.units)
    print_table(pick_headline(outcome.results))
    typer.echo(f"summary: {loaded.config.out / 'summary.json'}")
    if not outcome.is_complete:
        raise typer.Exit(1)


@app.command()
@guard
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


def _finish(report: Path) -> None:
    """Print the table of an analysis and where its pages are."""
    from thresher.analyze.run import load_summary

    print_table(load_summary(report.parent))
    site = report.resolve().parent / "site" / "index.html"
    features = (
        f"every feature: {site}" if site.exists() else "every feature: no site (turned off, or too few pairs; docs/site.md)"
    )
    Console().print(f"\nreport: {report.resolve()}\n{features}\nOpen them in a browser.", soft_wrap=True, highlight=False)


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
