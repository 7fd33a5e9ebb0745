"""What a reader has to know before quoting the numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from thresher.analyze.inputs import Inputs
from thresher.analyze.results import TITLES

MANY = 0.1
"""Shares above this are worth a warning."""


def find_warnings(inputs: Inputs, results: Mapping[str, Any]) -> list[str]:
    """Sentences about this analysis, most general first."""
    found = [*_about_comparison(results), *_about_centring(inputs)]
    if len(inputs.hook_points) == 2 and not inputs.store.concepts:
        found.append("The source states no ground truth, so features are not scored against concepts.")
    found += _about_model(inputs, results)
    for name, one in results["saes"].items():
        found += [f"{name}: {sentence}" for sentence in (*_about_features(one, results), *_about_truth(one))]
    return found


def _about_comparison(results: Mapping[str, Any]) -> Iterator[str]:
    active = {name: _whole(one)["l0"]["value"] for name, one in results["saes"].items()}
    if len(active) > 1 and max(active.values()) > 1.1 * min(active.values()):
        shown = ", ".join(f"{name} {value:.1f}" for name, value in active.items())
        yield f"L0 differs by more than 10 % ({shown}): neither R2 nor the modality histograms compare at different L0."
    sizes = {name: one["d_sae"] for name, one in results["saes"].items()}
    if len(set(sizes.values())) > 1:
        yield f"Dictionary sizes differ ({', '.join(f'{name} {size}' for name, size in sizes.items())}): shares depend on size."
    if results["held_out"]["records"] < 500:
        yield f"Only {results['held_out']['records']} held-out records: rare features and concepts cannot be judged."


def _about_centring(inputs: Inputs) -> Iterator[str]:
    if len(inputs.hook_points) < 2:
        return
    centred = [name for name, trained in inputs.saes.items() if trained.config.normalize.center == "per_hook_point"]
    if centred:
        yield (
            f"{', '.join(centred)}: each modality's own mean was taken off before encoding. That removes most of the gap "
            "between the modalities, and with it features that would only code it."
        )
    unit = [name for name, trained in inputs.saes.items() if trained.normalizer.is_unit]
    if unit:
        yield f"{', '.join(unit)}: rows were brought to unit norm first; R2 and cosine are those of the unit rows."


def _about_model(inputs: Inputs, results: Mapping[str, Any]) -> Iterator[str]:
    truth = next(iter(results["saes"].values())).get("truth")
    where = {"shared": " and ".join(inputs.hook_points.values())} | dict(inputs.hook_points)
    for name, title in TITLES.items() if truth else ():
        decodable = truth["decodable"][name]
        if decodable["value"] < (1 - MANY) * decodable["n"]:
            yield (
                f"A linear probe reads only {decodable['value']} of {decodable['n']} {title} concepts from {where[name]} "
                f"(phi >= {results['thresholds']['min_score']}): the model hardly carries the others there, so no dictionary "
                "can be blamed for missing them."
            )


def _about_features(one: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    if one["dense"]:
        yield f"{one['dense']} features fire on more than half of the rows of a modality."
    if "modality" not in one:
        return
    modality, alive = one["modality"], one["modality"]["share"]["shared"]["n"]
    if modality["rare"] > MANY * alive:
        yield (
            f"{modality['rare']} of {alive} alive features fire fewer than {results['thresholds']['rare_below']} times: "
            "their scores may be extreme by chance. Compare the histogram without rare features."
        )
    undecided = modality["classes"]["undecided"]
    if undecided > MANY * alive:
        yield f"the class of {undecided} of {alive} alive features is undecided: more held-out items would settle it."
    difference = modality["energy_against_firing"]["value"]
    if difference is not None and difference > MANY:
        yield (
            f"scores by energy and by firing rate differ by {difference:.2f} (median): features fire on both modalities with "
            "different strength, so the class depends on which score is used."
        )
    if not modality["mean_score_defined"]:
        yield "codes have both signs, so the score by mean activation (mu_mean) is not defined; energy and firing are."


def _about_truth(one: Mapping[str, Any]) -> Iterator[str]:
    if "truth" not in one:
        return
    matched = one["truth"]["matched"]
    if matched["by_chance"] is not None and matched["by_chance"] > MANY * max(matched["value"], 1):
        yield f"{matched['by_chance']:.0f} features match a concept when items are shuffled, {matched['value']} when not."
    if matched["value"] < 20:
        yield f"only {matched['value']} features track a concept: precision and recall rest on few features."


def _whole(one: Mapping[str, Any]) -> Mapping[str, Any]:
    return one["reconstruction"].get("pooled") or next(iter(one["reconstruction"].values()))
