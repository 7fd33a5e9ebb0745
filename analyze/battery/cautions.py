"""What a reader of the classes has to know before quoting them."""

from collections.abc import Iterator, Mapping
from typing import Any

from thresher.analyze.battery.classes import BIAS, BRIDGED, SHARED, SPECIFIC
from thresher.analyze.cautions import Caution
from thresher.analyze.config import AnalyzeConfig

MANY = 0.1
"""Shares above this are worth a warning."""
FEW_IMAGES = 1000
"""Below, the largest correlations are as large by chance."""
RECALL = 0.9
"""Recall on the made world below which a class is under-counted for want of pairs."""
JUDGES = {
    "words": (
        "Meaning is judged by the words of the captions, for want of an external encoder: an image is about what its captions "
        "say. Give battery.external to judge by an encoder of its own."
    ),
    "activations": (
        "Meaning is judged by the activations that the dictionaries were fitted to, for want of captions or an external "
        "encoder: that flatters every feature. Give battery.external."
    ),
    "none": (
        "Nothing judges meaning: shared features are those that fire on both sides of the same pairs. Give battery.external."
    ),
}


def warn_about_judge(battery: Mapping[str, Any], results: Mapping[str, Any], config: AnalyzeConfig) -> Iterator[Caution]:
    """What is the same for all dictionaries."""
    source, pairs = battery["meaning"], battery["pairs"]
    if source in JUDGES:
        yield Caution(f"meaning-by-{source}", None, JUDGES[source], {})
    if pairs["n_images"] < FEW_IMAGES:
        text = (
            f"Only {pairs['n_images']} held-out images have captions: a feature has to fire often to be told from chance, and "
            "the largest correlations depend on how many pairs and features there are."
        )
        yield Caution("few-pairs", None, text, dict(pairs))
    items = {name: panel["n_items"] for name, panel in results["held_out"]["panels"].items()}
    if pairs["n_images"] < (1 - MANY) * items["image"]:
        text = f"{items['image'] - pairs['n_images']} of {items['image']} held-out images have no held-out caption: in no pair."
        yield Caution("unpaired-images", None, text, {"n": items["image"] - pairs["n_images"]})
    if config.battery.n_derangements == 0:
        text = "No images were paired at random (battery.n_derangements=0): how many classes are false is not known."
        yield Caution("no-false-counts", None, text, {})


def warn_about_battery(name: str, one: Mapping[str, Any]) -> Iterator[Caution]:
    """About the classes of one dictionary."""
    if "battery" not in one:
        return
    battery = one["battery"]
    yield from _about_chance(name, battery)
    if battery["margin"]["shared_self"]["value"] is None:
        text = (
            "the interval of the contrastive margin reaches 0: matched images and texts are no more alike than others in these "
            "reconstructions, so no share of the margin is given."
        )
        yield Caution("no-margin", name, text, {"margin": battery["margin"]["total"]["value"]})
    if not battery["gap_is_beyond_noise"]:
        text = "the gap between the modalities is no larger than the choice of items makes it: shares of it mean nothing."
        yield Caution("no-gap", name, text, {})
    bias = battery["classes"][BIAS]["n"]
    if bias:
        text = f"{bias} dense features carry the gap between the modalities; words of caption style make such features too."
        yield Caution("modality-bias", name, text, {"n": bias})
    copies = battery["near_duplicates"]
    if copies["value"]:
        text = (
            f"{copies['value']} of {copies['n']} alive features have another alive atom within a cosine of 0.95: counts of "
            "features count such copies apart."
        )
        yield Caution("near-duplicates", name, text, {"n": copies["value"], "alive": copies["n"]})


def _about_chance(name: str, battery: Mapping[str, Any]) -> Iterator[Caution]:
    for title, names in (("shared", (SHARED,)), ("bridged", BRIDGED)):
        found = sum(battery["classes"][one]["n"] for one in names)
        false = sum(battery["classes"][one].get("expected_false", 0.0) for one in names)
        if false > MANY * max(found, 1):
            text = f"{false:.1f} features would be called {title} if images and captions were paired at random, {found} are."
            yield Caution(f"{title}-by-chance", name, text, {"expected_false": false, "n": found})


def warn_about_power(calibration: Mapping[str, Any] | None) -> Iterator[Caution]:
    """Classes that the rule finds too seldom in a made world with as many pairs."""
    if calibration is None:
        return
    worst: dict[str, float] = {}
    for scores in calibration["by_cosine"].values():
        for name in (SHARED, *BRIDGED, SPECIFIC):
            recall = scores[name]["recall"]["value"] if name in scores else None
            if recall is not None:
                worst[name] = min(recall, worst.get(name, 1.0))
    weak = {name: recall for name, recall in worst.items() if recall < RECALL}
    if weak:
        shown = ", ".join(f"{name} {recall:.2f}" for name, recall in weak.items())
        text = (
            f"With {calibration['n_pairs']} pairs the rule misses features even of a made world of known classes (recall: "
            f"{shown}): counts of these classes are too low."
        )
        yield Caution("low-power", None, text, weak)
