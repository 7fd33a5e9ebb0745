"""What a CLIP can do on held-out pairs: retrieval, zero-shot classification, and the gap between its modalities."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from thresher.data.records import Concept
from thresher.harvest.pretrain.model import normalize

DRAW = 256
"""Pairs per retrieval draw."""
TIE = 1e-6
"""Cosines closer than this are a tie; equal captions in different rows of a batch differ by less."""
BATCH = 512


class Estimate(NamedTuple):
    """A mean over disjoint draws with its 95 % interval."""

    mean: float
    low: float
    high: float


def embed_images(model: nn.Module, images: UInt8[Tensor, "row 3 height width"], device: str) -> Float[Tensor, "row d"]:
    """Unit embeddings of pictures, on the CPU."""
    clip: Any = model.eval()
    with torch.inference_mode():
        parts = [clip.encode_image(normalize(batch.to(device)), normalize=True).cpu() for batch in images.split(BATCH)]
    return torch.cat(parts)


def embed_texts(
    model: nn.Module, texts: Sequence[str], tokenizer: Callable[[list[str]], Tensor], device: str
) -> Float[Tensor, "row d"]:
    """Unit embeddings of texts, on the CPU."""
    clip: Any = model.eval()
    with torch.inference_mode():
        ids = tokenizer(list(texts))
        return torch.cat([clip.encode_text(batch.to(device), normalize=True).cpu() for batch in ids.split(BATCH)])


def measure_retrieval(image: Float[Tensor, "row d"], text: Float[Tensor, "row d"]) -> dict[str, Estimate]:
    """Recall at 1 and 5, both directions, among `DRAW` pairs (all, when there are fewer); row i pairs with row i.

    A tie counts against the model: of two equal captions in a draw, neither is found first. Intervals are over draws; with
    a single draw, over its pairs, as if these were independent.
    """
    size = min(DRAW, len(image))
    found: dict[str, list[float]] = {}
    for start in range(0, len(image) - size + 1, size):
        similarity = image[start : start + size] @ text[start : start + size].T
        for direction, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
            rank = rank_partners(scores)
            for k in (1, 5):
                found.setdefault(f"{direction}_r@{k}", []).append((rank < k).double().mean().item())
    means = [(a + b) / 2 for a, b in zip(found["image_to_text_r@1"], found["text_to_image_r@1"], strict=True)]
    found["mean_r@1"] = means
    if len(means) == 1:
        return {name: estimate_share(values[0], size) for name, values in found.items()}
    return {name: estimate(values) for name, values in found.items()}


def rank_partners(scores: Float[Tensor, "row row"]) -> Int[Tensor, "row"]:
    """For each row, how many others score at least as high as its own partner, the diagonal."""
    own = scores.diagonal()[:, None]
    return (scores >= own - TIE).sum(dim=1) - 1


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % interval over draws; the interval of a single draw is the whole range."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, 0.0, 1.0)
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


def estimate_share(share: float, n: int) -> Estimate:
    """A share of `n` cases with Wilson's 95 % interval (Wilson 1927)."""
    z = float(stats.norm.ppf(0.975))
    middle, spread = share + z * z / (2 * n), z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return Estimate(share, (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n))


def measure_gap(image: Float[Tensor, "row d"], text: Float[Tensor, "row d"]) -> float:
    """Modality gap: distance between the mean embeddings of the two modalities (arXiv 2203.02053)."""
    return functional.pairwise_distance(image.mean(dim=0), text.mean(dim=0)).item()


class Task(NamedTuple):
    """Naming one leaf of a part of the concept tree."""

    root: str
    leaves: tuple[int, ...]
    """Indices of the concepts to tell apart."""
    prompts: tuple[str, ...]
    """With {} for the name of the leaf."""


def measure_zero_shot(
    image: Float[Tensor, "row d"],
    shown: Sequence[frozenset[int]],
    tasks: Sequence[Task],
    concepts: Sequence[Concept],
    embed: Callable[[list[str]], Float[Tensor, "text d"]],
) -> dict[str, dict[str, float]]:
    """For each task: accuracy of naming the leaf, among the pictures that show exactly one leaf of every task.

    A class is the mean of its prompts' unit embeddings (arXiv 2103.00020, section 3.1.4), which `embed` gives. With the
    accuracy come the share of the commonest leaf, the number of classes and of pictures. `shown` are the pictures' concepts.
    """
    rows = [row for row, found in enumerate(shown) if all(len(found & set(task.leaves)) == 1 for task in tasks)]
    result: dict[str, dict[str, float]] = {}
    for task in tasks:
        names = [concepts[leaf].name.rpartition("/")[2] for leaf in task.leaves]
        means = [embed([_fill(prompt, name) for prompt in task.prompts]).mean(dim=0) for name in names]
        classes = functional.normalize(torch.stack(means), dim=1)
        truth = np.array(
            [next(place for place, leaf in enumerate(task.leaves) if leaf in shown[row]) for row in rows], dtype=int
        )
        guess = (image[rows] @ classes.T).argmax(dim=1).numpy()
        n = max(len(rows), 1)
        result[task.root] = {
            "accuracy": float((guess == truth).sum()) / n,
            "commonest": float(np.bincount(truth, minlength=1).max()) / n,
            "classes": len(names),
            "pictures": len(rows),
        }
    return result


def find_leaves(concepts: Sequence[Concept], root: str) -> list[int]:
    """Indices of the concepts below `root` that are no parent."""
    parents = {concept.parent for concept in concepts}
    return [
        index for index, concept in enumerate(concepts) if concept.name.startswith(f"{root}/") and concept.name not in parents
    ]


def _fill(prompt: str, name: str) -> str:
    """Put a name into a prompt, with `an` before a vowel."""
    if name[:1] in "aeiou":
        prompt = prompt.replace(" a {}", " an {}")
    return prompt.format(name)
