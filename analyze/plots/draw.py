"""Which figures an analysis has, and why the others are left out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from thresher.analyze.plots.bridges import plot_bridge_mass, plot_partners, plot_shares
from thresher.analyze.plots.dynamics import plot_ranks, plot_recovery, plot_stability, plot_steps
from thresher.analyze.plots.meaning import plot_ablation, plot_categories, plot_meaning, plot_sharing
from thresher.analyze.plots.modality import plot_histograms
from thresher.analyze.plots.overview import plot_cumulative, plot_energies, plot_pareto
from thresher.analyze.plots.pick import list_ablations, list_reconstructions
from thresher.analyze.plots.read import RunTables, SaeTables, add_sums, read_run
from thresher.analyze.plots.space import plot_layers, plot_shift
from thresher.analyze.plots.strengths import plot_strengths
from thresher.analyze.plots.style import PER_FIGURE, Chart, Plot, save_plot
from thresher.files import write_atomic
from thresher.runs import canonical_json

FIGURES, INDEX = "figures", "index.json"
Which = Literal["all", "few", "none"]
FEW = ("01", "02", "05", "06", "08")
"""Numbers of the figures that answer the question of sharedness."""
NO_BATTERY = "needs images and texts with pairs"


def draw_run(folder: Path, which: Which, out: Path | None = None) -> list[str]:
    """Draw the figures of an analysis into `out` (by default `folder`/figures) and list them in index.json there; names of
    the files.

    Raises AnalysisError: files of the analysis that cannot be read.
    """
    if which == "none":
        return []
    out, run = folder / FIGURES if out is None else out, add_sums(read_run(folder), folder)
    written: list[str] = []
    index: list[dict[str, Any]] = []
    for number, title, make in list_figures():
        if which == "few" and number[:2] not in FEW:
            index.append({"name": number, "title": title, "files": [], "left_out": "figures: few"})
            continue
        for plot in make(run, number, title):
            files = save_plot(out, plot)
            written += files
            index.append({"name": plot.name, "title": plot.title, "files": files, "left_out": plot.reason})
    write_atomic(out / INDEX, [canonical_json({"format": "thresher-figures", "version": 1, "figures": index})])
    return [*written, INDEX]


Make = Callable[[RunTables, str, str], list[Plot]]


def list_figures() -> Sequence[tuple[str, str, Make]]:
    """Name, question and maker of every figure, in the order of their numbers."""
    return (
        ("01-pareto", "How well do the dictionaries reconstruct at which sparsity?", _draw_pareto),
        ("02-modality-scores", "Are features of one modality, or do they fire too rarely to tell?", _draw_histograms),
        ("03-energies", "How much energy has each feature on images and on texts?", _each(_has_battery, NO_BATTERY, _energies)),
        (
            "03-strengths",
            "How often and how strongly do features fire on images and on texts?",
            _each(_has_sums, "needs stats.safetensors of this very analysis", _strengths),
        ),
        ("04-cumulative-energy", "How many features carry the energy?", _draw_cumulative),
        ("05-bridge-mass", "Do shared or one-sided features carry the alignment?", _each(_has_battery, NO_BATTERY, _mass)),
        ("05-margin-and-gap", "Which classes carry the margin, which the gap?", _each(_has_battery, NO_BATTERY, _shares)),
        (
            "06-partners",
            "Do features that fire on the same pairs have the same atom?",
            _each(_has_battery, NO_BATTERY, _partners),
        ),
        (
            "07-stability",
            "Do other seeds find the features again?",
            _each(_has_seeds, "needs dictionaries that differ by seed alone", _stability),
        ),
        (
            "08-steps",
            "What does each step of a pursuit code?",
            _each(_has_steps, "needs a matching pursuit and both modalities", _steps),
        ),
        ("09-recovery", "What do more coefficients bring?", _draw_recovery),
        (
            "09-rank-and-babel",
            "How many directions do codes use, how alike are atoms selected together?",
            _each(_has_curves, "needs curves.parquet", _ranks),
        ),
        ("10-ablation", "What is lost without a class of features?", _draw_ablation),
        ("11-layers", "Which hook points have the same geometry?", _draw_layers),
        ("11-gap-shift", "What does closing the gap do?", _draw_shift),
        ("12-meaning", "Are features about one thing?", _draw_meaning),
        (
            "12-shared-features",
            "Are items that share features alike?",
            _each(_has_sharing, "needs something that judges meaning", _sharing),
        ),
        (
            "13-categories",
            "Does the same feature detect a category on images and on texts?",
            _each(_has_categories, "needs ground truth of two or more categories", _categories, 2),
        ),
    )


def _each(
    applies: Callable[[SaeTables], bool],
    reason: str,
    draw: Callable[[RunTables, Sequence[str]], Chart],
    per_figure: int = PER_FIGURE,
) -> Make:
    """A figure that has a panel per dictionary: so many to a figure, further ones with a number behind the name."""

    def make(run: RunTables, name: str, title: str) -> list[Plot]:
        saes = [sae for sae, tables in run.saes.items() if applies(tables)]
        if not saes:
            return [Plot(name, title, None, reason)]
        pages = [saes[start : start + per_figure] for start in range(0, len(saes), per_figure)]
        names = [name, *(f"{name}-{page + 1}" for page in range(1, len(pages)))]
        return [Plot(each, title, draw(run, page)) for each, page in zip(names, pages, strict=True)]

    return make


def _has_battery(tables: SaeTables) -> bool:
    return tables.features is not None and tables.groups is not None and tables.edges is not None


def _has_sums(tables: SaeTables) -> bool:
    return _has_battery(tables) and tables.sums is not None


def _has_seeds(tables: SaeTables) -> bool:
    return tables.groups is not None and tables.groups["seeds"]["n"] > 0


def _has_steps(tables: SaeTables) -> bool:
    return tables.steps is not None


def _has_curves(tables: SaeTables) -> bool:
    return tables.curves is not None


def _has_sharing(tables: SaeTables) -> bool:
    return tables.curves is not None and bool((tables.curves["curve"] == "shared_features").any())


def _has_categories(tables: SaeTables) -> bool:
    return tables.categories is not None


def _take(run: RunTables, saes: Sequence[str], field: str) -> dict[str, Any]:
    return {sae: getattr(run.saes[sae], field) for sae in saes}


def _energies(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_energies(_take(run, saes, "features"))


def _strengths(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_strengths(_take(run, saes, "sums"), _take(run, saes, "features"))


def _mass(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_bridge_mass(_take(run, saes, "groups"))


def _shares(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_shares(_take(run, saes, "groups"))


def _partners(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_partners(_take(run, saes, "edges"), _take(run, saes, "groups"))


def _stability(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_stability(_take(run, saes, "features"), _take(run, saes, "curves"))


def _steps(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_steps(_take(run, saes, "steps"))


def _ranks(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_ranks(_take(run, saes, "curves"))


def _sharing(run: RunTables, saes: Sequence[str]) -> Chart:
    return plot_sharing(_take(run, saes, "curves"))


def _categories(run: RunTables, saes: Sequence[str]) -> Chart:
    agreement = {sae: one["categories"] for sae, one in _take(run, saes, "dictionary").items()}
    return plot_categories(_take(run, saes, "categories"), agreement)


def _draw_pareto(run: RunTables, name: str, title: str) -> list[Plot]:
    return [Plot(name, title, plot_pareto(list_reconstructions(run)))]


def _draw_histograms(run: RunTables, name: str, title: str) -> list[Plot]:
    least = int(run.metrics["battery"]["histogram_fires"])

    def draw(run: RunTables, saes: Sequence[str]) -> Chart:
        found: Mapping[str, Any] = _take(run, saes, "dictionary")
        controls = {sae: None if one is None else one["histogram_all"] for sae, one in found.items()}
        return plot_histograms(_take(run, saes, "features"), controls, _take(run, saes, "groups"), least)

    return _each(_has_battery, NO_BATTERY, draw)(run, name, title)


def _draw_cumulative(run: RunTables, name: str, title: str) -> list[Plot]:
    saes = [sae for sae, tables in run.saes.items() if _has_battery(tables) and _has_curves(tables)]
    if not saes:
        return [Plot(name, title, None, NO_BATTERY)]
    return [Plot(name, title, plot_cumulative(_take(run, saes, "curves"), _take(run, saes, "features")))]


def _draw_recovery(run: RunTables, name: str, title: str) -> list[Plot]:
    saes = [sae for sae, tables in run.saes.items() if _has_curves(tables)]
    if not saes:
        return [Plot(name, title, None, "needs curves.parquet")]
    return [Plot(name, title, plot_recovery(_take(run, saes, "curves")))]


def _draw_ablation(run: RunTables, name: str, title: str) -> list[Plot]:
    rows = list_ablations(run)
    return [Plot(name, title, plot_ablation(rows)) if rows else Plot(name, title, None, "needs functional.json")]


def _draw_layers(run: RunTables, name: str, title: str) -> list[Plot]:
    if run.space is None:
        return [Plot(name, title, None, "needs at least 12 records with an image and a text")]
    return [Plot(name, title, plot_layers(run.space))]


def _draw_shift(run: RunTables, name: str, title: str) -> list[Plot]:
    if run.space is None or run.space["shift"] is None:
        return [Plot(name, title, None, "needs images and texts in one space, with a gap")]
    return [Plot(name, title, plot_shift(run.space))]


def _draw_meaning(run: RunTables, name: str, title: str) -> list[Plot]:
    saes = [sae for sae, one in run.saes.items() if one.groups is not None and one.groups["meaning"] != "none"]
    if not saes:
        return [Plot(name, title, None, "needs something that judges meaning")]
    least = int(run.metrics["battery"]["histogram_fires"])
    return [Plot(name, title, plot_meaning(_take(run, saes, "features"), least))]
