"""Embeddings of images and of texts that other tools have kept as arrays, made into one store with their pairs."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from thresher.data.store.arrays import read_array, take_rows
from thresher.data.store.beside import is_finished
from thresher.data.store.codecs import Profile
from thresher.data.store.schema import Batch, Dtype, HookPointSpec, Item, Rows
from thresher.data.store.writer import StoreWriter
from thresher.errors import StoreError
from thresher.progress import progress
from thresher.runs import fingerprint

BATCH_BYTES = 64 << 20
"""Activations that are in memory at once."""
IMAGE, TEXT = "vision.embed", "text.embed"
"""What the hook points are called unless somebody says otherwise."""


class _Sides(NamedTuple):
    """What is imported."""

    images: Any
    """[image, width], an array or a dataset of HDF5; the texts alike."""
    texts: Any
    image_of: npt.NDArray[np.int64]
    """[text]: the image that it describes, -1 for none."""
    captions: list[str]
    """[text]; empty where they are not known."""


def import_pairs(
    images: Path,
    texts: Path,
    out: str | Path,
    *,
    pairs: Path | None = None,
    captions: Path | None = None,
    hook_points: tuple[str, str] = (IMAGE, TEXT),
    profile: Profile = "raw",
) -> str | Path:
    """Make a store of two arrays [image, width] and [text, width] at `out` and return it; run again to resume.

    They are in files of `read_array`: .npy, .npz, HDF5, .safetensors, .pt. `pairs` says which text belongs to which image: a
    CSV with the columns `image` and `text`, or an `.npy` [pair, 2] of whole numbers, both counted from 0. Without it row n of
    one belongs to row n of the other. An image may have many texts, a text one image; what has no partner stays single.
    `captions` is a text file with one line per row of `texts`, or a CSV with the column `caption`, and `image` where that says
    the pairs too. An image, with its texts, is one record and is held out as a whole; keys are the row numbers in the arrays.
    float64 becomes float32.
    Raises StoreError: no such arrays, numbers out of range, a text of two images, lines that are not as many as the texts.
    """
    sides = _read(images, texts, pairs, captions)
    arrays = (sides.images, sides.texts)
    specs = [
        HookPointSpec(name, modality, f"{modality}.items", int(array.shape[1]), _dtype(array))
        for name, modality, array in zip(hook_points, ("image", "text"), arrays, strict=True)
    ]
    origin = {
        "kind": images.suffix[1:].partition(":")[0],
        "images": images.name,
        "texts": texts.name,
        "shapes": [list(array.shape) for array in arrays],
    }
    origin |= {"pairs": hashlib.sha256(sides.image_of.tobytes()).hexdigest(), "captions": fingerprint(sides.captions)}
    size = max(1, BATCH_BYTES // (4 * sum(int(array.shape[1]) for array in arrays)))
    identity = {"imported": origin, "model": "unknown", "items_per_batch": size}
    # Texts in the order of their images, those of none at the end, as records of their own.
    order = np.lexsort((np.arange(len(sides.texts)), np.where(sides.image_of < 0, len(sides.images), sides.image_of)))
    plan = list(_plan(sides.image_of[order], len(sides.images), size))
    if is_finished(out, identity, profile):
        return out
    with StoreWriter(out, identity, specs, (), profile=profile) as writer, progress("import", len(plan), "batches") as advance:
        advance(min(len(plan), writer.next_batch))
        for index in writer.missing(len(plan)):
            writer.write(_make_batch(sides, specs, index, *plan[index], order))
            advance(1)
        writer.finish()
    return out


def _plan(image_of: npt.NDArray[np.int64], n_images: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Images, and places in the order of texts, of each batch; an image and its texts are in one."""
    first = np.searchsorted(np.where(image_of < 0, n_images, image_of), np.arange(n_images + 1))
    for start in range(0, n_images, size):
        stop = min(start + size, n_images)
        yield slice(start, stop), slice(int(first[start]), int(first[stop]))
    for start in range(int(first[n_images]), len(image_of), size):
        yield slice(n_images, n_images), slice(start, min(start + size, len(image_of)))


def _make_batch(
    sides: _Sides, specs: Sequence[HookPointSpec], index: int, of_images: slice, of_texts: slice, order: npt.NDArray[np.int64]
) -> Batch:
    n_images, chosen = len(sides.images), order[of_texts]
    owner = sides.image_of[chosen]
    # A text without an image gets the next free record.
    single = n_images + np.arange(of_texts.start, of_texts.stop) - int((sides.image_of >= 0).sum())
    records = np.where(owner < 0, single, owner).tolist()
    captions = [sides.captions[n] for n in chosen.tolist()] if sides.captions else [""] * len(chosen)
    numbers = range(of_images.start, of_images.stop)
    images = [Item(str(n), n, "ok", None, None, ()) for n in numbers]
    texts = [
        Item(str(n), record, "ok", caption, None, ())
        for n, record, caption in zip(chosen.tolist(), records, captions, strict=True)
    ]
    pairs = [(image - of_images.start, text) for text, image in enumerate(owner.tolist()) if image >= 0]
    rows = (np.asarray(sides.images[of_images]), take_rows(sides.texts, chosen))
    return Batch(
        index,
        {"image": images, "text": texts},
        pairs,
        {spec.space: _make_rows(spec, values) for spec, values in zip(specs, rows, strict=True)},
    )


def _make_rows(spec: HookPointSpec, values: npt.NDArray[np.floating]) -> Rows:
    converted = torch.from_numpy(np.array(values, np.float16 if spec.dtype == "float16" else np.float32))
    n_rows = len(converted)
    return Rows(torch.arange(n_rows), torch.full((n_rows,), -1, dtype=torch.int32), None, {spec.name: converted})


def _read(images: Path, texts: Path, pairs: Path | None, captions: Path | None) -> _Sides:
    found = _open(images), _open(texts)
    n_images, n_texts = len(found[0]), len(found[1])
    named = [] if captions is None else _read_captions(captions, n_texts)
    numbers = None if captions is None or pairs is not None else _read_images_of(captions)
    if numbers is not None and captions is not None:
        image_of = _check_pairs(captions, np.stack([numbers, np.arange(n_texts)], axis=1), n_images, n_texts)
    else:
        image_of = (
            _match(images, texts, *found) if pairs is None else _check_pairs(pairs, _read_numbers(pairs), n_images, n_texts)
        )
    return _Sides(*found, image_of, named)


def _open(path: Path) -> Any:
    array = read_array(path)
    if array.ndim != 2 or array.dtype.kind != "f" or not len(array):
        raise StoreError(
            f"{path}: {array.dtype} {list(array.shape)}, expected floating point [item, width] with at least one item"
        )
    return array


def _match(images: Path, texts: Path, image: Any, text: Any) -> npt.NDArray[np.int64]:
    if len(image) != len(text):
        raise StoreError(
            f"{images} has {len(image)} rows and {texts} has {len(text)}: say which belong together with a table of pairs "
            "(--pairs: a CSV with the columns image and text)"
        )
    return np.arange(len(text))


def _check_pairs(path: Path, numbers: npt.NDArray[np.int64], n_images: int, n_texts: int) -> npt.NDArray[np.int64]:
    for column, (name, n) in enumerate((("image", n_images), ("text", n_texts))):
        wrong = np.flatnonzero((numbers[:, column] < 0) | (numbers[:, column] >= n))
        if len(wrong):
            raise StoreError(
                f"{path}: pair {wrong[0]} names {name} {numbers[wrong[0], column]}, but there are {n}, counted from 0"
            )
    image_of = np.full(n_texts, -1, np.int64)
    image_of[numbers[:, 1]] = numbers[:, 0]
    differing = np.flatnonzero(image_of[numbers[:, 1]] != numbers[:, 0])
    if len(differing):
        text = numbers[differing[0], 1]
        raise StoreError(f"{path}: text {text} belongs to two images; give a text of its own (a copied row) to each of them")
    return image_of


def _read_numbers(path: Path) -> npt.NDArray[np.int64]:
    """[pair, 2]: image, text."""
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if not {"image", "text"} <= set(reader.fieldnames or ()):
                    raise ValueError(f"its columns are {', '.join(reader.fieldnames or ()) or 'none'}")
                found = np.array([(int(row["image"]), int(row["text"])) for row in reader], np.int64)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise StoreError(
            f"{path}: cannot be read as pairs ({error}); expected a CSV with the columns image and text, or an .npy "
            "[pair, 2] of whole numbers, counted from 0"
        ) from error
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu" or not len(found):
        raise StoreError(
            f"{path}: {found.dtype} {list(found.shape)}, expected at least one pair, whole numbers [pair, 2]: image, text"
        )
    return found.astype(np.int64)


def _read_captions(path: Path, n_texts: int) -> list[str]:
    try:
        lines = _read_column(path, "caption") if path.suffix == ".csv" else path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); expected UTF-8 text, one line per caption") from error
    if lines is None:
        raise StoreError(f"{path}: no column `caption`; expected a CSV with it, one line per row of the texts' array")
    if len(lines) != n_texts:
        raise StoreError(f"{path}: {len(lines)} lines for {n_texts} texts; expected one line per row of the texts' array")
    return lines


def _read_images_of(path: Path) -> npt.NDArray[np.int64] | None:
    """The column `image` of a CSV of captions, if there is one."""
    found = _read_column(path, "image") if path.suffix == ".csv" else None
    try:
        return None if found is None else np.array([int(number) for number in found], np.int64)
    except ValueError as error:
        raise StoreError(
            f"{path}: column `image`: {error}; expected row numbers in the images' array, counted from 0"
        ) from error


def _read_column(path: Path, name: str) -> list[str] | None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [str(row[name] or "") for row in rows] if name in (rows.fieldnames or ()) else None


def _dtype(array: Any) -> Dtype:
    return "float16" if array.dtype == np.float16 else "float32"
