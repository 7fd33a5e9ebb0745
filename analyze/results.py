"""What is written to disk: metrics as plain values, the table of features, the table of concepts, the summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from thresher.analyze.evaluate import ModalityResult
from thresher.analyze.families import Family
from thresher.analyze.metrics.modality import IMAGE, SHARED, TEXT, UNDECIDED
from thresher.analyze.probe import combine
from thresher.analyze.truth import TruthScore, count_classes, recovers
from thresher.data.records import Concept

VISIBILITIES = (SHARED, IMAGE, TEXT)
TITLES = {SHARED: "shared", IMAGE: "image-only", TEXT: "text-only"}
"""Names of the classes as people read them."""


def plain(value: Any) -> Any:
    """The same with estimates, tuples and numpy values as what JSON can hold; NaN becomes None."""
    fields: tuple[str, ...] | None = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        return plain(dict(zip(fields, value, strict=True)))
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def describe_modality(result: ModalityResult) -> dict[str, Any]:
    """The part `modality` of metrics.json."""
    alive = np.isfinite(result.scores.energy)
    difference = np.abs(result.scores.energy - result.scores.firing)[alive]
    return {
        "share": plain(result.shares),
        "classes": count_classes(result.classes),
        "energy_share": plain(result.energy_shares),
        "energy_against_firing": {
            "value": plain(float(np.median(difference))) if alive.any() else None,
            "n": int(alive.sum()),
            "unit": "alive features",
        },
        "mean_score_defined": bool(np.isfinite(result.scores.mean).any()),
        "gap": {
            "norm": result.gap.norm,
            "features_for_half": result.gap.features_for(0.5),
            "features_for_90_percent": result.gap.features_for(0.9),
            "n": len(result.gap.share),
            "unit": "features",
        },
        "histograms": plain(result.histograms),
    }


def describe_battery(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The part `battery` of metrics.json: groups.json without the histogram and what is the same for all."""
    return {key: value for key, value in groups.items() if key not in ("calibration", "histogram")}


def describe_truth(
    score: TruthScore, classes: np.ndarray, concepts: Sequence[Concept], families: Sequence[Family]
) -> dict[str, Any]:
    """The part `truth` of metrics.json."""
    visibility = np.array([concept.visibility for concept in concepts])
    matched = score.matches.concept >= 0
    table = {
        name: {
            seen: int(((classes == name) & matched & (visibility[score.matches.concept] == seen)).sum())
            for seen in VISIBILITIES
        }
        for name in (*VISIBILITIES, UNDECIDED)
    }
    return {
        "classes": {name: plain(found) for name, found in score.classes.items()},
        "matched": {"value": score.n_matched, "by_chance": plain(score.n_matched_shuffled), "unit": "features"},
        "matched_undecided": {"value": score.n_undecided, "unit": "features"},
        "same_concept": plain(score.same_concept),
        "confusion": table,
        "families": plain(list(families)),
    }


def tabulate_features(result: ModalityResult, score: TruthScore | None, concepts: Sequence[Concept]) -> Any:
    """A pyarrow table of one row per feature, dead ones included; null where a column does not apply.

    `mu_count` is the score by firing rates, `mu_mean` the one by mean activations.
    """
    scores = result.scores
    columns: dict[str, Any] = {
        "feature": np.arange(len(scores.energy)),
        "class": result.classes,
        "n_fire_image": result.n_fires[0],
        "n_fire_text": result.n_fires[1],
        "energy": result.energy,
        "mu_energy": scores.energy,
        "mu_energy_low": scores.energy_interval.low,
        "mu_energy_high": scores.energy_interval.high,
        "mu_count": scores.firing,
        "mu_count_low": scores.firing_interval.low,
        "mu_count_high": scores.firing_interval.high,
        "mu_mean": scores.mean,
        "gap_share": result.gap.share,
    }
    if score is not None:
        columns |= _match_columns(score, concepts)
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _match_columns(score: TruthScore, concepts: Sequence[Concept]) -> dict[str, Any]:
    found = score.matches.concept
    features = np.arange(len(found))
    phi = np.where(found >= 0, score.tracking.phi[:, features, found], np.nan)
    q = np.where(found >= 0, score.tracking.q[score.matches.modality, features, found], np.nan)
    return {
        "concept": [concepts[i].name if i >= 0 else None for i in found],
        "concept_visibility": [concepts[i].visibility if i >= 0 else None for i in found],
        "concept_parent": [concepts[i].parent if i >= 0 else None for i in found],
        "phi_image": phi[0],
        "phi_text": phi[1],
        "q": q,
    }


def tabulate_concepts(
    sae: str,
    score: TruthScore,
    f1: np.ndarray,
    probed: np.ndarray,
    classes: np.ndarray,
    concepts: Sequence[Concept],
    n_items: np.ndarray,
) -> list[dict[str, Any]]:
    """One row per concept: the feature that tracks it best, and whether its class is right.

    `f1` is [2, feature, concept], `n_items` and `probed` are [2, concept]. For shared concepts the score is the smaller
    of the two phi. A feature of the right class that tracks the concept is preferred over a better one of another class.
    """
    visibility = np.array([concept.visibility for concept in concepts])
    phi = score.tracking.phi
    both, yardstick = combine(phi, concepts), combine(probed, concepts)
    detects = recovers(score.tracking.detects, visibility)
    right = detects & (classes[:, None] == visibility)
    best = (both + 2.0 * right).argmax(axis=0)
    rows: list[dict[str, Any]] = []
    for index, concept in enumerate(concepts):
        feature = int(best[index])
        tracked = bool(detects[feature, index])
        modalities = {"image": concept.visibility != TEXT, "text": concept.visibility != IMAGE}
        row: dict[str, Any] = {"sae": sae, "concept": concept.name, "visibility": concept.visibility, "parent": concept.parent}
        row |= {f"n_{name}": int(n_items[m, index]) for m, name in enumerate(modalities)}
        row |= {"recovered": bool(right[feature, index]), "tracked": tracked, "score": round(float(both[feature, index]), 4)}
        row["probe"] = round(float(yardstick[index]), 4)
        row |= {"feature": feature if tracked else None, "class": str(classes[feature]) if tracked else None}
        for m, (name, seen) in enumerate(modalities.items()):
            row[f"phi_{name}"] = round(float(phi[m, feature, index]), 4) if seen and tracked else None
            row[f"f1_{name}"] = round(float(f1[m, feature, index]), 4) if seen and tracked else None
        rows.append(row)
    return rows


def summary_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The headline numbers as text: one row per measure, one column per dictionary. `results` is what metrics.json holds."""
    cells = {name: _summarize(results["saes"][name]) for name in results["order"]}
    measures = dict.fromkeys(measure for one in cells.values() for measure in one)
    return [{"measure": measure} | {name: found.get(measure, "-") for name, found in cells.items()} for measure in measures]


def _summarize(found: Mapping[str, Any]) -> dict[str, str]:
    reconstruction, dead = found["reconstruction"], found["dead"]
    whole = reconstruction.get("pooled") or next(iter(reconstruction.values()))
    cells = {"L0": _number(whole["l0"], 1)}
    names = [name for name in ("image", "text") if name in reconstruction]
    cells |= {f"R2 {name}" if len(names) == 2 else "R2": _number(reconstruction[name]["r2"], 3) for name in names}
    cells |= {"FVU": _number(whole["fvu"], 3), "cosine": _number(whole["cosine"], 3)}
    cells["cosine of the mean"] = _number(whole["cosine_of_mean"], 3)
    cells["dead"] = _percent(dead.get("both") or next(iter(dead.values())))
    if "modality" in found:
        share = found["modality"]["share"]
        cells["alive features"] = str(share[SHARED]["n"])
        cells |= {f"  {title}": _percent(share[name]) for name, title in TITLES.items()}
        cells["  of these undecided"] = _percent(share[UNDECIDED])
    if "battery" in found:
        cells |= _summarize_battery(found["battery"])
    if found.get("functional"):
        cells |= _summarize_tests(found["functional"])
    if "truth" in found:
        for key, unit in (("precision", "features"), ("recall", "concepts")):
            for name, title in TITLES.items():
                one = found["truth"]["classes"][name][key]
                cells[f"{key}, {title} (n {unit})"] = f"{_number(one, 2)} ({one['n']})"
    if "splice" in found:
        splice = found["splice"]
        cells |= {f"loss, {name}": _number(splice[name], 3) for name in ("clean", "spliced", "zero", "mean")}
        cells |= {f"recovered from {name}": _number(splice[f"recovered_from_{name}"], 3) for name in ("zero", "mean")}
    return cells


def _summarize_battery(found: Mapping[str, Any]) -> dict[str, str]:
    classes, margin = found["classes"], found["margin"]
    cells = {"shared, all gates (by chance)": _count(classes, "shared")}
    cells["  bridged (by chance)"] = _count(classes, "bridged-collinear", "bridged-heterogeneous")
    cells["  bimodal-polysemantic"] = _count(classes, "bimodal-polysemantic")
    cells["  modality-specific, -bias"] = _count(classes, "modality-specific", "modality-bias")
    shared = [margin[name]["value"] for name in ("shared_self", "shared_cross")]
    whole = None if None in shared else sum(shared)
    cells["margin in shared, bridged"] = f"{_percent({'value': whole})}, {_percent(margin['bridged'])}"
    energy = (found[name]["shared"] for name in ("energy_image", "energy_text"))
    cells["energy in shared: image, text"] = ", ".join(_percent(one) for one in energy)
    return cells


def _summarize_tests(found: Mapping[str, Any]) -> dict[str, str]:
    raw, rebuilt = found["raw"], found["reconstructed"]
    ways = {"R@1, image to text": "image_to_text_r1", "R@1, text to image": "text_to_image_r1", "zero-shot": "zero_shot"}
    shown = {title: name for title, name in ways.items() if raw[name]["value"] is not None}
    return {f"{title} (raw)": f"{_number(rebuilt[name], 3)} ({_number(raw[name], 3)})" for title, name in shown.items()}


def _count(classes: Mapping[str, Any], *names: str) -> str:
    total = str(sum(classes[name]["n"] for name in names))
    by_chance = [classes[name]["expected_false"] for name in names if "expected_false" in classes[name]]
    return f"{total} ({sum(by_chance):.1f})" if by_chance else total


def _number(found: Mapping[str, Any], digits: int) -> str:
    return "-" if found["value"] is None else f"{found['value']:.{digits}f}"


def _percent(found: Mapping[str, Any]) -> str:
    return "-" if found["value"] is None else f"{100 * found['value']:.0f}%"
