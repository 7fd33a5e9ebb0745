"""What a reader has to know before quoting the numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from thresher.analyze.battery.cautions import warn_about_battery, warn_about_judge, warn_about_power
from thresher.analyze.cautions import Caution
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.inputs import Inputs
from thresher.analyze.pitfalls import warn_about_all, warn_about_numbers, warn_about_rows
from thresher.analyze.results import TITLES

MANY = 0.1
"""Shares above this are worth a warning."""
FEW_RECORDS = 500
NARROW = 100
"""Below so many records percentile intervals are too narrow."""
COMPOSITIONAL = ("spade",)
"""Architectures whose codes sum to one."""


def find_warnings(inputs: Inputs, results: Mapping[str, Any], config: AnalyzeConfig) -> list[Caution]:
    """Sentences about this analysis, most general first."""
    found = [
        *_about_comparison(results),
        *warn_about_all(results),
        *warn_about_rows(inputs, results),
        *_about_centring(inputs, results),
    ]
    if len(inputs.hook_points) == 2:
        found += _about_source(inputs, results, config)
    else:
        found += _about_one_modality(inputs)
    found += _about_model(inputs, results)
    for name, one in results["saes"].items():
        found += [*_about_features(name, one, results), *warn_about_numbers(name, one, results)]
        found += [*_about_truth(name, one), *warn_about_battery(name, one)]
    return found


def _about_comparison(results: Mapping[str, Any]) -> Iterator[Caution]:
    active = {name: _whole(one)["l0"]["value"] for name, one in results["saes"].items()}
    if len(active) > 1 and max(active.values()) > 1.1 * min(active.values()):
        shown = ", ".join(f"{name} {value:.1f}" for name, value in active.items())
        text = f"L0 differs by more than 10 % ({shown}): neither R2 nor the modality histograms compare at different L0."
        yield Caution("unequal-l0", None, text, active)
    sizes = {name: one["d_sae"] for name, one in results["saes"].items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield Caution("unequal-size", None, f"Dictionary sizes differ ({shown}): shares depend on size.", sizes)
    if results["held_out"]["fraction"] == 1:
        text = "Every row was measured. What a dictionary saw in training it fits better than new rows."
        yield Caution("all-rows", None, text, {})
    records = results["held_out"]["records"]
    if records < FEW_RECORDS:
        text = f"Only {records} held-out records: rare features and concepts cannot be judged."
        yield Caution("few-records", None, text, {"records": records})
    if records < NARROW:
        text = (
            f"Intervals of R2 and of shares of margin, energy and gap are percentiles of resamples, too narrow with {records} "
            "records: where it was tried, those at 95 % held the truth in 77 to 92 % with 20 records, in 83 to 95 % with 50."
        )
        yield Caution("narrow-intervals", None, text, {"records": records})


def _about_centring(inputs: Inputs, results: Mapping[str, Any]) -> Iterator[Caution]:
    if len(inputs.hook_points) < 2:
        return
    centred = [name for name, trained in inputs.saes.items() if trained.config.normalize.center == "per_hook_point"]
    if centred:
        text = (
            f"{', '.join(centred)}: each modality's own mean was taken off before encoding. That removes most of the gap "
            "between the modalities, and with it features that would only code it."
        )
        yield Caution("centred-by-modality", None, text, {"saes": centred})
    unit = [name for name, trained in inputs.saes.items() if trained.normalizer.is_unit]
    if unit:
        text = f"{', '.join(unit)}: rows were brought to unit norm first; R2 and cosine are those of the unit rows."
        yield Caution("unit-rows", None, text, {"saes": unit})
    yield from _about_fit(inputs, results)
    compositional = [name for name, trained in inputs.saes.items() if trained.config.sae.kind in COMPOSITIONAL]
    if compositional:
        text = (
            f"{', '.join(compositional)}: the codes of a row sum to one, so energies depend on how many atoms share it: read "
            "mu_count, not mu_energy."
        )
        yield Caution("compositional-codes", None, text, {"saes": compositional})


def _about_fit(inputs: Inputs, results: Mapping[str, Any]) -> Iterator[Caution]:
    for name, trained in inputs.saes.items():
        found = results["saes"][name]["reconstruction"]
        fits = {modality: found[modality]["r2"]["value"] for modality in inputs.hook_points if modality in found}
        worse = {modality: value for modality, value in fits.items() if value is not None and value < 0}
        if worse:
            shown = ", ".join(f"{modality}s {value:.2f}" for modality, value in worse.items())
            text = f"Reconstructions are worse than the mean (R2 of {shown}): it does not fit these rows."
            if trained.is_imported:
                text += " Rows may have been at unit norm, or centred, where it was trained (`thresher sae import --rows`)."
            yield Caution("worse-than-mean", name, text, worse)


def _about_one_modality(inputs: Inputs) -> Iterator[Caution]:
    ((modality, hook_point),) = inputs.hook_points.items()
    text = (
        f"One modality ({modality}, {hook_point}): what is shared between modalities is not applicable, and gates, classes, "
        "bridges and pairs are left out."
    )
    yield Caution("one-modality", None, text, {"modality": modality})


def _about_source(inputs: Inputs, results: Mapping[str, Any], config: AnalyzeConfig) -> Iterator[Caution]:
    if not inputs.store.concepts:
        text = "The source states no ground truth, so features are not scored against concepts."
        yield Caution("no-ground-truth", None, text, {})
    judged = [one["battery"] for one in results["saes"].values() if "battery" in one]
    if judged:
        yield from warn_about_judge(judged[0], results, config)
        yield from warn_about_power(results["calibration"])
        return
    text = (
        f"Fewer than {config.battery.least_pairs} held-out images have a held-out caption: which features mean the same on "
        "both modalities cannot be tested. The classes say on which modality features fire, nothing more. Harvest a source "
        "of images with their captions."
    )
    yield Caution("no-pairs", None, text, {"least_pairs": config.battery.least_pairs})


def _about_model(inputs: Inputs, results: Mapping[str, Any]) -> Iterator[Caution]:
    truth = next(iter(results["saes"].values())).get("truth")
    where = {"shared": " and ".join(inputs.hook_points.values())} | dict(inputs.hook_points)
    for name, title in TITLES.items() if truth else ():
        decodable = truth["decodable"][name]
        if decodable["value"] < (1 - MANY) * decodable["n"]:
            text = (
                f"A linear probe reads only {decodable['value']} of {decodable['n']} {title} concepts from {where[name]} "
                f"(phi >= {results['thresholds']['min_score']}): the model hardly carries the others there, so no dictionary "
                "can be blamed for missing them."
            )
            yield Caution(
                "concepts-not-in-model", None, text, {"kind": name, "n_read": decodable["value"], "n": decodable["n"]}
            )


def _about_features(name: str, one: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Caution]:
    if one["dense"]:
        text = f"{one['dense']} features fire on more than half of the rows of a modality."
        yield Caution("dense-features", name, text, {"n": one["dense"]})
    if "modality" not in one:
        return
    modality, alive = one["modality"], one["modality"]["share"]["shared"]["n"]
    if modality["rare"] > MANY * alive:
        text = (
            f"{modality['rare']} of {alive} alive features fire fewer than {results['thresholds']['rare_below']} times: "
            "their scores may be extreme by chance. Compare the histogram without rare features."
        )
        yield Caution("rare-features", name, text, {"n": modality["rare"], "alive": alive})
    undecided = modality["classes"]["undecided"]
    if undecided > MANY * alive:
        text = f"the class of {undecided} of {alive} alive features is undecided: more held-out items would settle it."
        yield Caution("undecided-features", name, text, {"n": undecided, "alive": alive})
    difference = modality["energy_against_firing"]["value"]
    if difference is not None and difference > MANY:
        text = (
            f"scores by energy and by firing rate differ by {difference:.2f} (median): features fire on both modalities with "
            "different strength, so the class depends on which score is used."
        )
        yield Caution("energy-against-firing", name, text, {"difference": difference})
    if not modality["mean_score_defined"]:
        text = (
            "codes have both signs, so the score by mean activation (mu_mean) is not defined; energy and firing are, and "
            "meaning weighs items by |z|. Negative codes are left out where a search needs codes above 0 (BM25, bridged)."
        )
        yield Caution("signed-codes", name, text, {})


def _about_truth(name: str, one: Mapping[str, Any]) -> Iterator[Caution]:
    if "truth" not in one:
        return
    matched = one["truth"]["matched"]
    if matched["by_chance"] is not None and matched["by_chance"] > MANY * max(matched["value"], 1):
        text = f"{matched['by_chance']:.0f} features match a concept when items are shuffled, {matched['value']} when not."
        yield Caution("matched-by-chance", name, text, {"by_chance": matched["by_chance"], "n": matched["value"]})
    if matched["value"] < 20:
        text = f"only {matched['value']} features track a concept: precision and recall rest on few features."
        yield Caution("few-matched", name, text, {"n": matched["value"]})


def _whole(one: Mapping[str, Any]) -> Mapping[str, Any]:
    return one["reconstruction"].get("pooled") or next(iter(one["reconstruction"].values()))
