"""The numbers of functional.json that the report shows."""

from collections.abc import Mapping
from typing import Any

SHOWN: Mapping[str, Mapping[str, str]] = {
    "Recall at 1, image to text": {
        "activations": "baselines.raw.image_to_text_r1",
        "reconstructions": "baselines.reconstructed.image_to_text_r1",
        "reconstructions, modality erased (LEACE)": "baselines.reconstructed_erased.image_to_text_r1",
        "reconstructions, means taken off": "baselines.reconstructed_centred.image_to_text_r1",
        "without shared features": "sets.shared.without.image_to_text_r1",
        "without random ones of as much energy": "sets.shared.same_energy.without.image_to_text_r1",
        "without bridged features": "sets.bridged.without.image_to_text_r1",
    },
    "Steering: captions among the ten nearest that fire the feature": {
        "before": "steering.mean.added_before",
        "after adding its atom": "steering.mean.added_after",
        "after adding a random atom": "steering.mean.added_random",
    },
    "Probes of captions on images, AUROC": {
        "fitted to images": "transfer.within_images",
        "codes as they are": "transfer.identity",
        "features matched one to one": "transfer.hungarian",
        "features spread over partners": "transfer.bridge",
        "features permuted": "transfer.shuffled",
    },
    "Probes on k features, AUROC": {
        "images, k = 1": "sparse_probing.image_to_image_k1",
        "images, k = 5": "sparse_probing.image_to_image_k5",
        "images, activations": "sparse_probing.image_to_image_raw",
        "captions to images, k = 1": "sparse_probing.text_to_image_k1",
        "captions to images, k = 5": "sparse_probing.text_to_image_k5",
        "captions to images, activations": "sparse_probing.text_to_image_raw",
    },
    "Features of a label taken away": {
        "TPP: own fall less that of others": "targeted.tpp",
        "SCR: share of the bias undone": "targeted.scr",
        "absorption": "targeted.absorption",
    },
    "P(label) of a probe, with its feature set": {
        "to 0": "bias.without",
        "to its mean": "bias.with_feature",
        "a random feature to its mean": "bias.with_random",
    },
    "Nested firing against the tree": {
        "images, precision": "tree.image.precision",
        "images, recall": "tree.image.recall",
        "images, precision by chance": "tree.image.by_chance",
        "texts, precision": "tree.text.precision",
        "texts, recall": "tree.text.recall",
        "texts, precision by chance": "tree.text.by_chance",
        "images, parent picked first": "tree.image.precedence_true",
    },
    "Search of a caption's image by codes, recall at 1": {
        "activations": "search.raw.r1",
        "inner product": "search.dot.r1",
        "BM25": "search.bm25.r1",
        "BM25, partners added": "search.bm25_bridged.r1",
    },
    "R2 of images": {
        "from their own codes": "cross_reconstruction.image_to_image",
        "from codes of their captions": "cross_reconstruction.text_to_image",
    },
    "Cosine of the nearest atom with a class": {"atoms": "plausibility.atoms", "random directions": "plausibility.random"},
}
"""Title of a table -> line -> place in functional.json."""


def summarize_tests(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part `functional` of metrics.json: recall at 1 before and after reconstruction and zero-shot, and `tables`, what the
    report shows; empty without tests.
    """
    if "baselines" not in found:
        return {}
    kept = ("image_to_text_r1", "text_to_image_r1", "gap", "zero_shot")
    summary: dict[str, Any] = {name: {key: found["baselines"][name][key] for key in kept} for name in ("raw", "reconstructed")}
    tables = {title: {line: find_number(found, place) for line, place in lines.items()} for title, lines in SHOWN.items()}
    known = {title: {line: one for line, one in lines.items() if one is not None} for title, lines in tables.items()}
    return summary | {"tables": {title: lines for title, lines in known.items() if lines}}


def find_number(found: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    """The estimate at a dotted place; None where a test was not run or has no value."""
    one: Any = found
    for part in place.split("."):
        if not isinstance(one, Mapping) or part not in one:
            return None
        one = one[part]
    return one if isinstance(one, Mapping) and one.get("value") is not None else None
