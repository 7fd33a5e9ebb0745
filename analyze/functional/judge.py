"""A language model names features from captions, and is tested on captions it has not seen."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from thresher.analyze.functional.held import Held
from thresher.analyze.functional.server import Server
from thresher.analyze.functional.settings import Judge
from thresher.analyze.metrics.estimate import exact
from thresher.analyze.panels import Panel
from thresher.data.store import Store
from thresher.progress import progress

COLUMNS = ("judge_name", "judge_score")
LONGEST = 80
"""Characters of a name."""
NAME = """These captions belong together because they share one concept:

{captions}

These captions do not have it:

{others}

Answer with a short name of the concept, at most five words, and nothing else."""
TEST = """Concept: {name}

{captions}

Which of these numbered captions are about the concept? Answer with their numbers, separated by commas, or with "none"."""


class Shown(NamedTuple):
    """Captions by what they are for."""

    examples: list[str]
    contrast: list[str]
    tested: list[str]
    has: np.ndarray
    """Which of the tested ones have the feature."""


def judge_features(
    held: Held, store: Store, panel: Panel, energy: np.ndarray, settings: Judge, cache: Path
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Columns `judge_name` and `judge_score` of all features (None where not judged), and a summary.

    A feature has the captions that it fires on, or where these are too few the captions of the images that it fires on. The
    score is balanced accuracy on held-out captions, 0.5 by chance. Raises AnalysisError, ConfigError, NetworkError: the server.
    """
    server = Server(settings, cache)
    captions = store.items("text", columns=["text"])["text"].take(pa.array(panel.items[held.text.items])).to_pylist()
    names: list[Any] = [None] * len(energy)
    scores: list[Any] = [None] * len(energy)
    chosen = [int(one) for one in np.argsort(-energy, kind="stable")[: settings.features] if energy[one] > 0]
    with progress("judge", len(chosen), "features") as advance:
        for feature in chosen:
            shown = choose_captions(held, captions, feature, settings)
            if shown is not None:
                names[feature] = _name(server, shown)
                scores[feature] = _test(server, names[feature], shown)
            advance(1)
    found = [one for one in scores if one is not None]
    mean = exact(float(np.mean(found)) if found else float("nan"), len(found), "features")
    return {"judge_name": names, "judge_score": scores}, {"score": mean}


def choose_captions(held: Held, captions: Sequence[str | None], feature: int, settings: Judge) -> Shown | None:
    """The captions of the largest codes to name it by, others of images of their own to test it on; None with too few."""
    code = held.text.codes[:, [feature]].toarray()[:, 0]
    n_tested = settings.held_out // 2
    if len(np.unique(held.text.group[code > 0])) < settings.examples + n_tested:
        code = held.image.codes[:, [feature]].toarray()[:, 0][held.text.group]
    has_words = np.array([bool(text) for text in captions])
    firing = _one_per_image(np.flatnonzero((code > 0) & has_words), -code, held.text.group)
    fires_anywhere = np.unique(held.text.group[code > 0])
    silent = np.flatnonzero(has_words & ~np.isin(held.text.group, fires_anywhere))
    generator = np.random.default_rng([held.seed, feature])
    silent = _one_per_image(generator.permutation(silent), None, held.text.group)
    n_silent = settings.held_out - n_tested
    if len(firing) < settings.examples + n_tested or len(silent) < settings.examples + n_silent:
        return None
    examples, rest = firing[: settings.examples], firing[settings.examples :]
    tested = np.concatenate([generator.choice(rest, n_tested, replace=False), silent[settings.examples :][:n_silent]])
    order = generator.permutation(len(tested))
    texts = [str(text) for text in captions]
    return Shown(
        examples=[texts[index] for index in examples],
        contrast=[texts[index] for index in silent[: settings.examples]],
        tested=[texts[index] for index in tested[order]],
        has=(np.arange(len(tested)) < n_tested)[order],
    )


def _one_per_image(rows: np.ndarray, key: np.ndarray | None, group: np.ndarray) -> np.ndarray:
    """The first row of each image, in the order of `key` or as they are: captions of one image are near copies."""
    ordered = rows if key is None else rows[np.argsort(key[rows], kind="stable")]
    _, first = np.unique(group[ordered], return_index=True)
    return ordered[np.sort(first)]


def _name(server: Server, shown: Shown) -> str:
    lists = ("\n".join(f"- {text}" for text in texts) for texts in (shown.examples, shown.contrast))
    captions, others = lists
    answer = server.ask(NAME.format(captions=captions, others=others)).strip()
    return answer.splitlines()[0].strip(" \"'.*")[:LONGEST] if answer else ""


def _test(server: Server, name: str, shown: Shown) -> float:
    captions = "\n".join(f"{number}. {text}" for number, text in enumerate(shown.tested, 1))
    answer = server.ask(TEST.format(name=name, captions=captions))
    called = np.isin(np.arange(1, len(shown.tested) + 1), [int(number) for number in re.findall(r"\d{1,6}", answer)])
    return float((called[shown.has].mean() + (~called[~shown.has]).mean()) / 2)
