"""Which figures a report has, and what is written below them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thresher.analyze.figures import Chart, draw_concepts, draw_confusion, draw_modality, draw_reconstruction, save_chart
from thresher.analyze.metrics.modality import Histogram
from thresher.analyze.report import Figure


def draw_figures(
    folder: Path,
    results: Mapping[str, Any],
    histograms: Mapping[str, Mapping[str, Histogram]],
    concepts: Sequence[Mapping[str, Any]],
) -> list[Figure]:
    """Draw what the results allow, save each as PNG, PDF and CSV, and give them for the report."""
    saes = results["saes"]
    chart = draw_reconstruction({name: found["reconstruction"] for name, found in saes.items()})
    text = "Higher is better at equal L0. Dotted: what predicting the mean of the modality scores, which needs no atom."
    figures = [_save(folder, "reconstruction", "Reconstruction against sparsity.", text, chart)]
    if histograms:
        rare = results["thresholds"]["rare_below"]
        text = (
            "Left: every alive feature counts once. Middle: weighted by energy, so that what matters for reconstruction "
            f"counts. Right: only features that fire at least {rare} times, because rare ones look one-sided by chance."
        )
        figures.append(_save(folder, "modality", "Modality scores of the features.", text, draw_modality(histograms)))
    if concepts:
        tables = {name: found["truth"]["confusion"] for name, found in saes.items()}
        text = "Number of matched features; colour: share of the line. Right classes lie on the diagonal."
        figures.append(_save(folder, "confusion", "Class against truth.", text, draw_confusion(tables)))
        text = (
            "Phi of the feature that tracks each concept best; for shared concepts the smaller of images and captions. "
            "A dot: its class is right too. Names: shared green, image-only blue, text-only orange."
        )
        figures.append(_save(folder, "concepts", "Recovered concepts.", text, draw_concepts(concepts)))
    return figures


def _save(folder: Path, name: str, title: str, caption: str, chart: Chart) -> Figure:
    return Figure(name, title, caption, save_chart(chart, folder, name), chart.alt)
