"""The model card: what a dictionary is, how well it does, how to use it."""

import json
from collections.abc import Mapping
from typing import Any

MEASURES = {"r2": "R2", "fvu": "FVU", "l0": "L0", "cosine": "cosine", "dead": "dead atoms", "n_rows": "rows"}
"""Evaluated numbers that the table shows first, and what they are called there."""


def write_card(description: Mapping[str, Any], repo: str) -> str:
    """The README.md of a repository, from the contents of a checkpoint's `config.json`: tags, evaluation table, use."""
    architecture, evaluation = description["architecture"], description["evaluation"]
    kind, hook_points = architecture["kind"], description["hook_points"]
    places = f"{', '.join(f'`{name}`' for name in hook_points)} of {_name_model(description)}"
    lines = [
        "---",
        "library_name: thresher",
        "tags: [sparse-autoencoder, interpretability, " + kind.replace("_", "-") + "]",
        "---",
        "",
        f"# {repo.rpartition('/')[2]}",
        "",
        f"A sparse autoencoder (`{kind}`, {architecture['d_sae']} atoms, width {description['d_in']}) for {places}.",
        "",
        "## Evaluation",
        "",
        *(_tabulate(evaluation) or ["Not evaluated: it was not trained here."]),
        "",
        "## Use",
        "",
        "```python",
        "import thresher",
        "",
        f'sae = thresher.load_sae("{repo}")',
        f'codes = sae.encode(activations, "{hook_points[0]}")  # raw activations, [rows, {description["d_in"]}]',
        f'reconstruction = sae.decode(codes, "{hook_points[0]}")',
        "```",
        "",
        "The normalisation of the activations is part of the checkpoint. `thresher sae export` writes it for SAELens,",
        "dictionary_learning, sparsify, overcomplete and SAEBench.",
        "",
        "## Settings",
        "",
        "```json",
        json.dumps({"architecture": architecture, "normalizer": description["normalizer"]}, indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(lines)


def _name_model(description: Mapping[str, Any]) -> str:
    model = description["store"]["identity"].get("model")
    if isinstance(model, Mapping):
        return " ".join(f"{model[name]}" for name in ("kind", "name", "pretrained") if model.get(name))
    return str(model or "a model that the checkpoint does not name")


def _tabulate(evaluation: Mapping[str, Any]) -> list[str]:
    """Pooled numbers and those of each hook point, then the numbers by k, on held-out items."""
    by_hook_point, by_k = evaluation.get("hook_points", {}), evaluation.get("by_k", {})
    rows = {"all": evaluation, **by_hook_point}
    names = _order(evaluation)
    lines = _draw("held-out rows of", names, rows) if names else []
    if by_k:
        lines += ["", "With other numbers of steps:", "", *_draw("k", _order(next(iter(by_k.values()))), by_k)]
    return lines


def _order(values: Mapping[str, Any]) -> list[str]:
    numbers = [name for name, value in values.items() if isinstance(value, int | float)]
    return [name for name in MEASURES if name in numbers] + [name for name in numbers if name not in MEASURES]


def _draw(corner: str, names: list[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    head = [corner, *(MEASURES.get(name, name) for name in names)]
    body = [[label, *(_show(values.get(name)) for name in names)] for label, values in rows.items()]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def _show(value: Any) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"
