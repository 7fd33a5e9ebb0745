"""The headline numbers of several dictionaries, with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thresher.analyze.battery.classes import BRIDGED, CLASSES, SHARED
from thresher.analyze.compare.open import Entry

PARTS = ("shared_self", "shared_cross", "bridged", "rest")


def list_headline(entry: Entry) -> list[dict[str, Any]]:
    """One dict per measure of a dictionary: dictionary, measure, value, low, high, n, unit."""
    rows = [*_describe_reconstruction(entry), *_describe_classes(entry)]
    return [{"dictionary": entry.label} | row for row in rows]


def _describe_reconstruction(entry: Entry) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for side, found in entry.metrics["reconstruction"].items():
        rows += [_row(f"{measure}, {side}", found[measure]) for measure in ("l0", "r2", "fvu", "cosine")]
    return rows


def _describe_classes(entry: Entry) -> list[dict[str, Any]]:
    groups = entry.run.tables.saes[entry.sae].groups
    if groups is None:
        return []
    alive = sum(groups["classes"][name]["n"] for name in CLASSES) - groups["classes"]["dead"]["n"]
    rows = [_count(f"features, {name}", float(groups["classes"][name]["n"]), alive, "alive features") for name in CLASSES]
    for name in (SHARED, *BRIDGED):
        false = groups["classes"][name].get("expected_false")
        if false is not None:
            rows.append(_count(f"features, {name}, by chance", float(false), alive, "alive features"))
    rows.append(_row("margin", groups["margin"]["total"]))
    rows += [_row(f"margin share, {part.replace('_', ' ')}", groups["margin"][part]) for part in PARTS]
    for name in CLASSES:
        rows.append(_row(f"margin lost without, {name}", groups["margin_by_class"][name]))
        rows.append(_row(f"gap share, {name}", groups["gap"][name]))
        rows += [_row(f"energy share on {side}s, {name}", groups[f"energy_{side}"][name]) for side in ("image", "text")]
    histogram = groups["histogram"]
    rows.append(_count("one-sided features", _real(histogram["one_sided"]), histogram["n"], "frequent features"))
    rows.append(
        _count("one-sided features, by chance", _real(histogram["one_sided_expected"]), histogram["n"], "frequent features")
    )
    return rows


def _row(measure: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {"measure": measure} | {key: estimate[key] for key in ("value", "low", "high", "n", "unit")}


def _count(measure: str, value: float | None, n: int, unit: str) -> dict[str, Any]:
    return {"measure": measure, "value": value, "low": None, "high": None, "n": n, "unit": unit}


def _real(value: float | int | None) -> float | None:
    return None if value is None else float(value)


def tabulate(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Measures as lines, dictionaries as columns; intervals in brackets, a dash where a measure does not apply."""
    labels = list(dict.fromkeys(row["dictionary"] for row in rows))
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    cells = {(row["measure"], row["dictionary"]): show(row) for row in rows}
    return [{"measure": measure} | {label: cells.get((measure, label), "-") for label in labels} for measure in measures]


def show(row: Mapping[str, Any]) -> str:
    """A value with its interval, three digits."""
    if row["value"] is None:
        return "-"
    if row["low"] is None:
        return f"{row['value']:.0f}" if row["value"] == round(row["value"]) else f"{row['value']:.3g}"
    return f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def is_main(measure: str) -> bool:
    """Whether a measure is among those shown side by side; the CSV has all."""
    if measure.startswith(("energy share", "gap share")):
        return measure.endswith((f", {SHARED}", ", modality-specific", ", modality-bias"))
    return not measure.startswith(("margin lost", "fvu"))


def make_markdown(tables: Mapping[str, Sequence[Mapping[str, Any]]], notes: Sequence[str]) -> str:
    """Tables under their titles, after what has to be known before reading them; a table without rows is left out."""
    lines = [line for note in notes for line in (f"> {note}", "")]
    for title, rows in tables.items():
        if rows:
            headers = list(rows[0])
            lines += [f"## {title}", "", _line(headers), _line(["---"] * len(headers))]
            lines += [*(_line([_show_cell(row[header]) for header in headers]) for row in rows), ""]
    return "\n".join(lines)


def _show_cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def aggregate_seeds(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Mean, least and most of each measure over dictionaries of one kind; kinds with one member are left out.

    `kinds`: dictionary -> what is the same for all its seeds.
    """
    found: list[dict[str, Any]] = []
    for kind in dict.fromkeys(kinds.values()):
        members = [label for label, one in kinds.items() if one == kind]
        if len(members) < 2:
            continue
        measures = dict.fromkeys(row["measure"] for row in rows if row["dictionary"] in members)
        for measure in measures:
            values = [
                row["value"]
                for row in rows
                if row["dictionary"] in members and row["measure"] == measure and row["value"] is not None
            ]
            if values:
                found.append(
                    {
                        "dictionaries": " ".join(members),
                        "measure": measure,
                        "mean": float(np.mean(values)),
                        "least": min(values),
                        "most": max(values),
                        "n_seeds": len(values),
                    }
                )
    return found
