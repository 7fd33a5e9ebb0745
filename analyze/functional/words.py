"""Vocabularies: words and their embeddings, from a store or from files."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from thresher.analyze.functional.settings import Vocabulary
from thresher.analyze.metrics.grouping import membership
from thresher.data.store import StoreLocation, open_store
from thresher.errors import AnalysisError

COLUMNS = ("text", "word", "name")


class Words(NamedTuple):
    """Words in order."""

    words: tuple[str, ...]
    vectors: Float[np.ndarray, "word width"]


def read_vocabulary(vocabulary: Vocabulary, width: int) -> Words:
    """The words with their embeddings. Raises AnalysisError: unreadable, of different lengths, of another encoder's width."""
    if vocabulary.store is not None:
        found, where = _read_store(vocabulary.store, vocabulary.hook_point), f"{vocabulary.store}"
    else:
        assert vocabulary.embeddings is not None, "checked by the settings"
        assert vocabulary.words is not None, "checked by the settings"
        words, where = read_words(vocabulary.words), str(vocabulary.embeddings)
        found = Words(tuple(words), _read_array(vocabulary.embeddings))
        if len(words) != len(found.vectors):
            raise AnalysisError(
                f"{where}: {len(found.vectors)} embeddings for the {len(words)} words of {vocabulary.words}; give one per word"
            )
    if found.vectors.shape[1] != width:
        raise AnalysisError(
            f"{where}: embeddings of width {found.vectors.shape[1]}, the dictionary works at width {width}; embed the "
            "words with the encoder whose activations are analyzed"
        )
    if not np.isfinite(found.vectors).all():
        raise AnalysisError(f"{where}: embeddings that are not finite; embed these words again")
    return found


def read_words(path: Path) -> list[str]:
    """Words of a text file, one per line, or of a CSV with a header. Raises AnalysisError: unreadable or empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path}: the words cannot be read ({error}); give a text file or a CSV") from error
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        names = list(rows[0]) if rows else []
        column = next((name for name in COLUMNS if name in names), names[0] if names else "")
        words = [str(row[column]) for row in rows]
    else:
        words = [line.strip() for line in text.splitlines() if line.strip()]
    if not words:
        raise AnalysisError(f"{path}: no words; expected one per line, or a CSV with a header")
    return words


def _read_array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read as an .npy array ({error}); give [word, width] numbers") from error
    if found.ndim != 2:
        raise AnalysisError(f"{path}: shape {list(found.shape)}, expected [word, width]")
    return np.asarray(found, dtype=np.float64)


def _read_store(location: StoreLocation, hook_point: str | None) -> Words:
    store = open_store(location)
    known = [name for name, info in store.hook_points.items() if info.modality == "text"]
    name = hook_point if hook_point is not None else known[0] if len(known) == 1 else None
    if name not in known:
        raise AnalysisError(
            f"{store.path}: no single hook point of texts for the vocabulary ({hook_point!r} asked for); it has "
            f"{', '.join(known) or 'none'}: set vocabulary.hook_point"
        )
    texts = store.items("text", columns=["text"])["text"].to_pylist()
    item = store.item_of(name)
    x = store.read(name, 0, len(item)).double().numpy()
    sums = membership(np.asarray(item, dtype=np.int64), len(texts))
    count = np.asarray(sums.sum(axis=1))
    kept = np.flatnonzero(count > 0)
    return Words(tuple(texts[index] or "" for index in kept), (sums @ x)[kept] / count[kept, None])
