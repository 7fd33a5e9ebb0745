"""Tables of the claims about matching pursuit from the files of one analysis whose dictionaries are named <method>-<seed>.

Every cell is the mean over seeds with the least and the most in brackets. Usage: python benchmarks/claims.py ANALYSIS
(for instance after `thresher analyze configs/claims-analyze.yaml`). Reads the checkpoints too, for the second
null of stability.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import rankdata

from thresher import load_sae
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.stability import match_dictionaries

ONE_SIDED = ("modality-bias", "bridged-collinear", "bridged-heterogeneous", "modality-specific")
UNJUDGED = ("undecided", "rare", "dead")
GROUPS = {"shared": ("shared",), "polysemantic": ("bimodal-polysemantic",), "one modality": ONE_SIDED, "not judged": UNJUDGED}
"""How the classes are put together in these tables."""
PART_OF_GAP = 0.9
TOP = 32
"""Atoms of most energy whose stability stands in a row of its own."""

Row = tuple[str, Callable[["Member"], float | None]]


class Member(NamedTuple):
    """One dictionary of the analysis."""

    name: str
    groups: dict[str, Any]
    numbers: dict[str, Any]
    """Its part of metrics.json."""
    features: dict[str, np.ndarray]
    steps: dict[str, np.ndarray] | None
    folder: Path


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("analysis", type=Path)
    print_claims(parser.parse_args().analysis)


def print_claims(folder: Path) -> None:
    """Print all tables."""
    methods: dict[str, list[Member]] = {}
    for member in read_members(folder):
        methods.setdefault(member.name.rpartition("-")[0] or member.name, []).append(member)
    print_table("Dictionaries", methods, list_basics())
    for method, members in methods.items():
        if members[0].steps is not None:
            print_steps(method, members)
    print_table("Margin, share of it", methods, list_margin())
    print_table("Gap", methods, list_gap())
    print_table("Histogram of modality scores", methods, list_histogram())
    print_table(
        "Classes, number of features; `false`: expected when captions are dealt to other images", methods, list_classes()
    )
    print_stability(methods)


def read_members(folder: Path) -> list[Member]:
    """All dictionaries, in the order of the configuration."""
    metrics = json.loads((folder / "metrics.json").read_text())
    saes = json.loads((folder / "manifest.json").read_text())["saes"]
    found: list[Member] = []
    for name in metrics["order"]:
        steps = folder / name / "steps.parquet"
        found.append(
            Member(
                name,
                json.loads((folder / name / "groups.json").read_text()),
                metrics["saes"][name],
                _read(folder / name / "features.parquet"),
                _read(steps) if steps.exists() else None,
                Path(saes[name]["path"]),
            )
        )
    return found


def _read(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}


def describe(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean (least to most); a dash without a value."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return "-"
    mean, least, most = (f"{value:.{digits}f}" for value in (np.mean(known), min(known), max(known)))
    return mean if least == most else f"{mean} ({least} to {most})"


def print_table(title: str, methods: Mapping[str, Sequence[Member]], rows: Sequence[Row]) -> None:
    """One column per method, one row per number."""
    print(f"\n{title}\n\n| | {' | '.join(f'{name}, {len(members)} seeds' for name, members in methods.items())} |")
    print("|---" * (len(methods) + 1) + "|")
    for label, pick in rows:
        digits = 0 if label.startswith("n ") else 3
        print(f"| {label} | {' | '.join(describe([pick(one) for one in members], digits) for members in methods.values())} |")


def list_basics() -> list[Row]:
    """What has to be equal or known before anything is compared."""

    def measure(side: str, name: str) -> Callable[[Member], float]:
        return lambda one: one.numbers["reconstruction"][side][name]["value"]

    return [
        ("L0", measure("pooled", "l0")),
        ("R2 image", measure("image", "r2")),
        ("R2 text", measure("text", "r2")),
        ("n alive", lambda one: float((one.features["class"] != "dead").sum())),
        ("n near-duplicates (cosine above 0.95)", lambda one: one.groups["near_duplicates"]["value"]),
    ]


def print_steps(method: str, members: Sequence[Member]) -> None:
    """What each step codes, energy shares averaged over images and texts; before the first step, the input."""
    tables = [one.steps for one in members if one.steps is not None]
    plain = ("mu", "overlap", "gap", "residual_auc", "residual_gap", "residual_cosine")
    print(f"\nSteps of {method}\n\n| step | {' | '.join([*GROUPS, *plain])} |")
    print("|---" * (1 + len(GROUPS) + len(plain)) + "|")
    before = [describe([table[f"input_{name}"][0] for table in tables]) for name in ("auc", "gap", "cosine")]
    print(f"| input | {' | '.join(['-'] * (len(GROUPS) + 3) + before)} |")
    for step in np.unique(tables[0]["step"]):
        cells = [describe([_share(table, step, classes) for table in tables], 2) for classes in GROUPS.values()]
        cells += [describe([table[name][table["step"] == step][0] for table in tables]) for name in plain]
        print(f"| {step} | {' | '.join(cells)} |")
    order = describe([_order(one) for one in members])
    print(f"\nRank correlation over features of rho and the step at which images pick them: {order}")


def _share(table: Mapping[str, np.ndarray], step: int, classes: Sequence[str]) -> float:
    columns = [table[f"energy_{name.replace('-', '_')}"][table["step"] == step] for name in classes]
    return float(np.sum(columns, axis=0).mean())


def _order(one: Member) -> float:
    rho, step = one.features["rho"].astype(float), one.features["step_image"].astype(float)
    known = np.isfinite(rho) & np.isfinite(step)
    return float(np.corrcoef(rankdata(rho[known]), rankdata(step[known]))[0, 1])


def list_margin() -> list[Row]:
    """The centred margin by kind of pair of features, and what each group of classes takes along when left out."""
    parts = ("shared_self", "shared_cross", "bridged", "rest")
    found: list[Row] = [("margin itself", lambda one: one.groups["margin"]["total"]["value"])]
    found += [(name, _at("margin", name)) for name in parts]
    return found + [
        (f"lost without {name}", _at("margin_by_class", name))
        for name in ("shared", "bimodal-polysemantic", *ONE_SIDED, "undecided")
    ]


def _at(group: str, name: str) -> Callable[[Member], float | None]:
    return lambda one: one.groups[group][name]["value"]


def list_gap() -> list[Row]:
    """How concentrated the gap is, and which classes carry it."""

    def count_features(one: Member) -> float:
        return float(1 + np.searchsorted(np.cumsum(np.sort(one.features["gap_share"])[::-1]), PART_OF_GAP - 1e-12))

    def add(classes: Sequence[str]) -> Callable[[Member], float]:
        return lambda one: sum(one.groups["gap"][name]["value"] for name in classes)

    return [
        (f"n features for {PART_OF_GAP:.0%}", count_features),
        ("of the alive ones", lambda one: count_features(one) / (one.features["class"] != "dead").sum()),
        ("largest single share", lambda one: float(one.features["gap_share"].max())),
        ("sum of negative shares", lambda one: float(np.minimum(one.features["gap_share"], 0).sum())),
        *[(name, add(classes)) for name, classes in GROUPS.items()],
    ]


def list_histogram() -> list[Row]:
    """Shares beyond the thresholds and in the middle, observed and if all were shared."""

    def pick(name: str) -> Callable[[Member], float]:
        return lambda one: one.groups["histogram"][name]

    def middle(name: str) -> Callable[[Member], float]:
        def measure(one: Member) -> float:
            edges = np.array(one.groups["histogram"]["edges"])
            return float(np.array(one.groups["histogram"][name])[(edges[:-1] >= 0.3 - 1e-9) & (edges[1:] <= 0.7 + 1e-9)].sum())

        return measure

    def beyond(one: Member) -> float:
        scores = one.features["mu_energy"][one.features["class"] != "dead"]
        return float(((scores < 0.1) | (scores > 0.9)).mean())

    return [
        ("all alive, beyond 0.1 and 0.9", beyond),
        ("n features with 30 firings", pick("n")),
        ("of these beyond", pick("one_sided")),
        ("if all were shared", pick("one_sided_expected")),
        ("beyond, by energy", pick("one_sided_energy")),
        ("if all were shared, by energy", pick("one_sided_energy_expected")),
        ("within 0.3 to 0.7", middle("observed_energy")),
        ("if all were shared, within", middle("expected_energy")),
    ]


def list_classes() -> Sequence[Row]:
    """Counts of the classes, and of the false ones among them when captions are dealt to other images."""

    def pick(name: str, key: str) -> Callable[[Member], float]:
        return lambda one: one.groups["classes"][name].get(key, float("nan"))

    names = ("shared", "bimodal-polysemantic", *ONE_SIDED, *UNJUDGED)
    false = ("shared", "bridged-collinear", "bridged-heterogeneous")
    return [(f"n {name}", pick(name, "n")) for name in names] + [
        (f"false {name}", pick(name, "expected_false")) for name in false
    ]


def print_stability(methods: Mapping[str, Sequence[Member]]) -> None:
    """Matched cosines over seeds, beside two nulls."""
    rows: list[Row] = [
        ("all alive", lambda one: _mean(one.features["stability"])),
        ("random directions", lambda one: _mean(one.features["stability_null"])),
        (f"{TOP} of most energy", lambda one: _mean(one.features["stability"][_rank(one)[:TOP]])),
        ("share above 0.7", lambda one: _mean(one.features["stability"][np.isfinite(one.features["stability"])] > 0.7)),
        ("the same, by energy", lambda one: _weigh(one, one.features["stability"] > 0.7)),
        ("all, by energy", lambda one: _weigh(one, one.features["stability"])),
        *[(name, _of_class(name)) for name in ("shared", "bimodal-polysemantic", "modality-specific")],
    ]
    print_table("Stability over seeds", methods, rows)
    spread = {name: draw_spread(members) for name, members in methods.items()}
    cells = " | ".join(
        f"{name}: all {describe(values[0])}, first {TOP} {describe(values[1])}" for name, values in spread.items()
    )
    print(f"\nRandom atoms with the second moments of the other seed's: {cells}")


def _of_class(name: str) -> Callable[[Member], float]:
    def measure(one: Member) -> float:
        return _mean(one.features["stability"][one.features["class"] == name])

    return measure


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _energy(one: Member) -> np.ndarray:
    return one.features["energy_image"] + one.features["energy_text"]


def _rank(one: Member) -> np.ndarray:
    return np.argsort(-_energy(one), kind="stable")


def _weigh(one: Member, values: np.ndarray) -> float:
    kept = np.isfinite(one.features["stability"])
    return float((_energy(one) * values)[kept].sum() / _energy(one)[kept].sum()) if kept.any() else float("nan")


def draw_spread(members: Sequence[Member]) -> tuple[list[float], list[float]]:
    """Matched cosine with random dictionaries that lie where the living atoms of another seed lie: all atoms, the first TOP.

    Uniform directions are too easy a null where activations fill a small part of the space.
    """
    found: tuple[list[float], list[float]] = ([], [])
    atoms = [normalize_rows(load_sae(one.folder).sae.dictionary.detach().double().cpu().numpy()) for one in members]
    for place, one in enumerate(members):
        kept = np.flatnonzero(_energy(one) > 0)
        for index, other in enumerate(members):
            if index == place:
                continue
            living = atoms[index][_energy(other) > 0]
            mixture = np.random.default_rng(index).normal(size=(len(atoms[index]), len(living)))
            cosine = np.full(len(atoms[place]), np.nan)
            cosine[kept] = match_dictionaries(atoms[place][kept], mixture @ living).cosine
            found[0].append(_mean(cosine))
            found[1].append(_mean(cosine[_rank(one)[:TOP]]))
    return found


if __name__ == "__main__":
    main()
