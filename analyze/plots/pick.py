"""What figures need of nested files, as flat rows."""

from collections.abc import Mapping
from typing import Any

from thresher.analyze.battery.classes import CLASSES
from thresher.analyze.plots.read import RunTables
from thresher.runs import canonical_json

SPARSITY = ("k", "l1", "l0", "lambda", "sparsity", "theta", "threshold")
"""Fields of an architecture that set how many atoms are active."""
ABLATED = {
    "image_to_text_r1": "R@1, image to text",
    "text_to_image_r1": "R@1, text to image",
    "zero_shot": "zero-shot accuracy",
    "gap": "gap",
}
"""Measures of functional.json that figure 10 shows."""
MEASURES = ("l0", "r2", "fvu", "cosine", "cosine_of_mean")


def list_reconstructions(run: RunTables) -> list[dict[str, Any]]:
    """One dict per dictionary and modality. `family`: kind and size; `kind`: equal where only the seed differs."""
    rows: list[dict[str, Any]] = []
    for name, tables in run.saes.items():
        found = run.metrics["saes"][name]
        others = [] if tables.groups is None else tables.groups["seeds"]["others"]
        kind = "+".join(sorted([name, *others]))
        for side in ("image", "text"):
            if side in found["reconstruction"]:
                values = {key: found["reconstruction"][side][key]["value"] for key in MEASURES}
                rows.append({"sae": name, "family": describe_family(found), "kind": kind, "modality": side} | values)
    families = {row["family"]: row["sae"] for row in rows}
    if len(families) == len({row["sae"] for row in rows}):
        # One dictionary per family: their own names say more.
        return [row | {"family": row["sae"]} for row in rows]
    return _tell_apart(run, rows)


def describe_family(found: Mapping[str, Any]) -> str:
    """Architecture and size of a dictionary in a word."""
    return f"{found['architecture'].get('kind', 'sae')} {found['d_sae']}"


def _tell_apart(run: RunTables, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Architectures of one kind and size that differ in more than sparsity are families of their own."""
    kinds: dict[str, dict[str, str]] = {}
    for row in rows:
        architecture = run.metrics["saes"][row["sae"]]["architecture"]
        rest = canonical_json({key: value for key, value in architecture.items() if key not in SPARSITY}).decode()
        known = kinds.setdefault(row["family"], {})
        label = known.setdefault(rest, row["family"] if not known else f"{row['family']} ({row['sae']})")
        row["family"] = label
    return rows


def list_ablations(run: RunTables) -> list[dict[str, Any]]:
    """Rows of `plot_ablation` from functional.json; empty without one that holds ablations."""
    rows: list[dict[str, Any]] = []
    for name, tables in run.saes.items():
        functional = tables.functional or {}
        sets, whole = functional.get("sets") or {}, functional.get("baselines", {}).get("reconstructed", {})
        for ablated in [label for label in CLASSES if label in sets]:
            without, control = sets[ablated]["without"], sets[ablated].get("same_energy", {}).get("without", {})
            for measure, title in ABLATED.items():
                if measure in without and without[measure]["value"] is not None:
                    ends = {key: without[measure][key] for key in ("value", "low", "high")}
                    drawn = control.get(measure, {})
                    beside = {f"control_{key}": drawn.get(key) for key in ("value", "low", "high")}
                    told = {"sae": name, "measure": title, "ablated": ablated, "whole": whole[measure]["value"]}
                    rows.append(told | ends | beside)
    return rows
