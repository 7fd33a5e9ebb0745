"""Finished analyses, and whether they compare."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from thresher.analyze.cautions import Caution
from thresher.analyze.outputs import FILES, MANIFEST, VERSION
from thresher.analyze.plots.read import RunTables, read_json, read_run
from thresher.analyze.run import load_results
from thresher.errors import AnalysisError

TOLERANCE = 1.1
"""Numbers of active atoms that differ by more than this factor do not compare."""
INCIDENTAL = ("seeds", "external", "edges", "calibration_pairs", "n_derangements")
"""Settings of the battery that no class follows from."""


class Run(NamedTuple):
    """One analysis."""

    name: str
    """The shortest end of its path that no other has."""
    folder: Path
    tables: RunTables
    manifest: Mapping[str, Any]


class Entry(NamedTuple):
    """One dictionary of one analysis."""

    label: str
    """run/dictionary."""
    run: Run
    sae: str

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Its part of metrics.json."""
        return self.run.tables.metrics["saes"][self.sae]

    @property
    def described(self) -> Mapping[str, Any]:
        """Its part of manifest.json."""
        return self.run.manifest["saes"][self.sae]


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Open finished analyses. Raises AnalysisError: fewer than two, one twice, no analysis, another version, other rules."""
    if len(folders) < 2:
        raise AnalysisError(f"{len(folders)} analysis given; name at least two folders that `thresher analyze` has written")
    resolved = [folder.resolve() for folder in folders]
    twice = [str(folder) for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1]
    if twice:
        raise AnalysisError(f"{twice[0]}: given twice; an analysis compares with others only")
    runs = [_open(name, folder) for name, folder in zip(name_folders(resolved), folders, strict=True)]
    for other in runs[1:]:
        _refuse_other_rules(runs[0], other)
    return runs


def list_entries(runs: Sequence[Run]) -> list[Entry]:
    """All dictionaries, run by run."""
    return [Entry(f"{run.name}/{sae}", run, sae) for run in runs for sae in run.tables.metrics["order"]]


def name_folders(folders: Sequence[Path]) -> list[str]:
    """The part that tells paths apart, without what all have in common at the end (`report`)."""
    parts = [folder.parts for folder in folders]
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    for length in range(1, max(len(part) for part in parts) + 1):
        names = ["-".join(part[-length:]).strip("/") for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def find_cautions(runs: Sequence[Run]) -> Iterator[Caution]:
    """What is different between the analyses and has to be known before numbers are read side by side."""
    active = {entry.label: _l0(entry) for entry in list_entries(runs)}
    if max(active.values()) > TOLERANCE * max(min(active.values()), 1e-9):
        shown = ", ".join(f"{name} {value:.1f}" for name, value in active.items())
        text = f"L0 differs by more than 10 % ({shown}): neither R2 nor classes nor histograms compare at different L0."
        yield Caution("unequal-l0", None, text, active)
    sizes = {entry.label: entry.metrics["d_sae"] for entry in list_entries(runs)}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield Caution("unequal-size", None, f"Dictionary sizes differ ({shown}): counts and shares depend on size.", sizes)
    stores = {run.name: run.tables.metrics["store"]["fingerprint"][:12] for run in runs}
    if len(set(stores.values())) > 1:
        shown = ", ".join(f"{run.name} {run.tables.metrics['store']['model']}" for run in runs)
        yield Caution("other-stores", None, f"The analyses are of different stores ({shown}).", stores)
    elif len({_split(run) for run in runs}) > 1:
        splits = {run.name: run.tables.metrics["held_out"]["records"] for run in runs}
        yield Caution("other-items", None, "The analyses held out different items of one store.", splits)
    judges = {run.name: run.manifest.get("meaning") or "none" for run in runs}
    if len(set(judges.values())) > 1:
        shown = ", ".join(f"{name} {judge}" for name, judge in judges.items())
        yield Caution(
            "other-judges", None, f"Meaning was judged by different means ({shown}): the gates are not the same.", judges
        )


def is_same_panel(first: Run, second: Run) -> bool:
    """Whether both analyses look at the same held-out rows of one store."""
    stores = [run.tables.metrics["store"]["fingerprint"] for run in (first, second)]
    return stores[0] == stores[1] and _split(first) == _split(second)


def _split(run: Run) -> tuple[Any, ...]:
    held_out = run.tables.metrics["held_out"]
    panels = sorted((name, panel["hook_point"], panel["n_rows"]) for name, panel in held_out["panels"].items())
    return held_out["fraction"], held_out["seed"], held_out["records"], tuple(panels)


def _open(name: str, folder: Path) -> Run:
    load_results(folder)
    manifest = read_json(folder / MANIFEST)
    if manifest is None or (manifest.get("format"), manifest.get("version")) != (FILES, VERSION):
        found = "missing" if manifest is None else f"format {manifest.get('format')!r}, version {manifest.get('version')}"
        raise AnalysisError(
            f"{folder / MANIFEST}: {found}, expected {FILES} of version {VERSION}; run the analysis again with this version"
        )
    return Run(name, folder, read_run(folder), manifest)


def _refuse_other_rules(first: Run, other: Run) -> None:
    """Classes that follow from other thresholds are not the same classes."""
    differing: list[str] = []
    for group in ("thresholds", "battery"):
        mine, theirs = first.tables.metrics[group], other.tables.metrics[group]
        keys = [key for key in {**mine, **theirs} if key not in INCIDENTAL and mine.get(key) != theirs.get(key)]
        differing += [f"{group}.{key}: {mine.get(key)} and {theirs.get(key)}" for key in keys]
    if differing:
        raise AnalysisError(
            f"{first.folder} and {other.folder}: classes follow from different rules ({'; '.join(differing)}); analyze one of "
            "them again with the settings of the other"
        )


def _l0(entry: Entry) -> float:
    found = entry.metrics["reconstruction"]
    part = found.get("pooled") or next(iter(found.values()))
    return float(part["l0"]["value"])
