"""What says what an item is about: an external encoder, the words of the captions, or the activations themselves."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from thresher.analyze.battery.meaning import Embeddings, make_embeddings
from thresher.analyze.config import Battery, External
from thresher.analyze.inputs import Inputs
from thresher.analyze.metrics.grouping import membership
from thresher.analyze.panels import Panel
from thresher.analyze.truth import one_per_record
from thresher.data.records import Modality
from thresher.data.store import Store, open_store
from thresher.errors import AnalysisError

MOST_RECORDS = 20_000
"""Records judged; more would change no verdict, and embeddings are dense."""
WORD_WIDTH = 256
"""Random directions that words are given; cosines are off by about 1 / 16."""
MOST_WORDS = 20_000


class Judges:
    """The records that meaning is judged on: one image and one caption of each."""

    def __init__(self, panels: Mapping[str, Panel], seed: int) -> None:
        kept = {name: one_per_record(panel.record, seed) for name, panel in panels.items()}
        records = {name: panels[name].record[items] for name, items in kept.items()}
        both = np.intersect1d(records["image"], records["text"])
        if len(both) > MOST_RECORDS:
            both = np.sort(np.random.default_rng(seed).choice(both, MOST_RECORDS, replace=False))
        self.items: dict[str, Int[np.ndarray, " record"]] = {
            name: items[np.isin(records[name], both)][np.argsort(records[name][np.isin(records[name], both)], kind="stable")]
            for name, items in kept.items()
        }
        """Positions in the panels, record by record."""
        self.stored = {name: panels[name].items[items] for name, items in self.items.items()}
        """The same in the store's tables of items."""


def find_embeddings(inputs: Inputs, panels: Mapping[str, Panel], settings: Battery, seed: int) -> Embeddings | None:
    """Embeddings by the configuration; None when nothing can judge meaning.

    Raises AnalysisError: external embeddings of other items or of two widths, words or activations that are not there.
    """
    judges = Judges(panels, seed)
    wanted = settings.meaning
    if settings.external is not None and wanted in ("auto", "external"):
        return _embed("external", judges, _read_external(settings.external, inputs.store, judges))
    if wanted in ("auto", "words") and "text" in inputs.store.items("text").column_names:
        found = _embed_words(inputs.store, judges, seed)
        if found is not None:
            return _embed("words", judges, found)
    if wanted == "words":
        raise AnalysisError(f"{inputs.store.path}: no captions with words to judge meaning by; choose another battery.meaning")
    widths = {panel.hook_point: inputs.store.hook_points[panel.hook_point].width for panel in panels.values()}
    if wanted in ("auto", "activations") and len(set(widths.values())) == 1:
        return _embed(
            "activations", judges, tuple(_read_items(inputs.store, panels[name], judges) for name in ("image", "text"))
        )
    if wanted == "activations":
        raise AnalysisError(
            f"activations of images and texts have no space in common ({widths}); choose another battery.meaning"
        )
    return None


def _embed(source: str, judges: Judges, found: Sequence[np.ndarray]) -> Embeddings | None:
    return make_embeddings(source, judges.items["image"], judges.items["text"], found[0], found[1])


def _read_items(store: Store, panel: Panel, judges: Judges) -> Float[np.ndarray, "record width"]:
    """Mean activation of the rows of each judged item."""
    items = judges.items[panel.modality]
    place = np.full(len(panel.items), -1)
    place[items] = np.arange(len(items))
    chosen = np.flatnonzero(place[panel.item] >= 0)
    x = store.read_rows(panel.hook_point, panel.rows[chosen]).double().numpy()
    sums = membership(place[panel.item[chosen]].astype(np.int64), len(items))
    return (sums @ x) / np.maximum(np.asarray(sums.sum(axis=1)), 1)[:, None]


def _read_external(external: External, store: Store, judges: Judges) -> tuple[np.ndarray, np.ndarray]:
    names: dict[Modality, str] = {"image": str(external.image), "text": str(external.text)}
    if external.store is None:
        found = {name: _read_array(Path(path), name, store, judges) for name, path in names.items()}
    else:
        other = open_store(external.store)
        found = {name: _read_other(other, hook_point, name, store, judges) for name, hook_point in names.items()}
    return found["image"], found["text"]


def _read_array(path: Path, modality: Modality, store: Store, judges: Judges) -> Float[np.ndarray, "record width"]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read as an .npy array ({error}); give [item, width] numbers") from error
    n_items = store.items(modality, columns=["key"]).num_rows
    if found.ndim != 2 or len(found) != n_items:
        raise AnalysisError(
            f"{path}: shape {list(found.shape)}, expected [{n_items}, width], one row per {modality} of {store.path}"
        )
    rows = np.asarray(found[judges.stored[modality]], dtype=np.float64)
    if not np.isfinite(rows).all():
        raise AnalysisError(
            f"{path}: {int((~np.isfinite(rows)).any(axis=1).sum())} rows are not finite; embed these items again"
        )
    return rows


def _read_other(
    other: Store, hook_point: str, modality: Modality, store: Store, judges: Judges
) -> Float[np.ndarray, "record width"]:
    if hook_point not in other.hook_points or other.hook_points[hook_point].modality != modality:
        known = ", ".join(name for name, info in other.hook_points.items() if info.modality == modality)
        raise AnalysisError(f"{other.path}: no hook point {hook_point!r} of {modality}s; it has {known or 'none'}")
    keys = store.items(modality, columns=["key"])["key"].take(pa.array(judges.stored[modality])).to_pylist()
    places = {key: index for index, key in enumerate(other.items(modality, columns=["key"])["key"].to_pylist())}
    missing = [key for key in keys if key not in places]
    if missing:
        raise AnalysisError(
            f"{other.path}: {len(missing)} of {len(keys)} {modality}s are not in it, for instance {missing[0]!r}; harvest the "
            "same source"
        )
    wanted = np.array([places[key] for key in keys], dtype=np.int64)
    place = np.full(max(places.values()) + 1, -1)
    place[wanted] = np.arange(len(wanted))
    item = other.item_of(hook_point)
    chosen = np.flatnonzero(place[item] >= 0)
    x = other.read_rows(hook_point, chosen).double().numpy()
    sums = membership(place[item[chosen]].astype(np.int64), len(wanted))
    return (sums @ x) / np.maximum(np.asarray(sums.sum(axis=1)), 1)[:, None]


def _embed_words(store: Store, judges: Judges, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Captions as sums of directions of their words, rare words longer; an image is the mean of ALL its captions.

    None when hardly any caption has words in common with others.
    """
    captions = store.items("text", columns=["text"])["text"]
    split = [_find_words(text or "") for text in captions.take(pa.array(judges.stored["text"])).to_pylist()]
    pairs = store.pairs()
    place = np.full(store.items("image", columns=["key"]).num_rows, -1)
    place[judges.stored["image"]] = np.arange(len(judges.stored["image"]))
    mine = pairs[place[pairs[:, 0]] >= 0]
    of_images = [_find_words(text or "") for text in captions.take(pa.array(mine[:, 1])).to_pylist()]
    counts = count_words(split)
    known = {word: index for index, (word, n) in enumerate(counts.most_common(MOST_WORDS)) if n > 1}
    if len(known) < 2:
        return None
    weight = np.array([np.log(len(split) / counts[word]) for word in known])
    directions = np.random.default_rng(seed).normal(size=(len(known), WORD_WIDTH)) * weight[:, None] / np.sqrt(WORD_WIDTH)
    text = _count_words(split, known) @ directions
    image = _count_words(of_images, known) @ directions
    sums = membership(place[mine[:, 0]].astype(np.int64), len(judges.stored["image"]))
    return sums @ image, text


def count_words(split: Sequence[Sequence[str]]) -> Counter[str]:
    """How many texts have each word, in the order of the texts and within one by the alphabet: a set has another order in every
    process."""
    return Counter(word for words in split for word in sorted(set(words)))


def _find_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _count_words(texts: Sequence[Sequence[str]], known: Mapping[str, int]) -> csr_array:
    found = [(row, known[word]) for row, words in enumerate(texts) for word in sorted(set(words)) if word in known]
    rows, columns = (np.array([one[axis] for one in found], dtype=np.int64) for axis in (0, 1))
    return csr_array((np.ones(len(found)), (rows, columns)), shape=(len(texts), len(known)))
