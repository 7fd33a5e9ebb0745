"""Which items training never sees, and their rows."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from thresher.data.mixture import Mixture
from thresher.data.readable import Readable
from thresher.data.records import Modality
from thresher.errors import StoreError

MODALITIES: tuple[Modality, ...] = ("image", "text")


def held_out(store: Readable, modality: Modality, fraction: float, seed: int) -> Bool[np.ndarray, "item"]:
    """Which items of a modality are held out: all items of about `fraction` of the records.

    Image and captions of one record are always on the same side. A pure function of record and seed (SplitMix64, Steele,
    Lea & Flood 2014), so that it does not change when a store grows. Of several stores an item is held out in all when it
    is in one (by its key), and with it its record.
    """
    if isinstance(store, Mixture):
        return _hold_out_of_all(store, fraction, seed)[modality]
    return choose_records(_read_records(store, modality), fraction, seed)


def read_held_out(
    store: Readable, hook_point: str, *, fraction: float, seed: int, limit: int | None
) -> tuple[Float[Tensor, "row d_in"], Int64[np.ndarray, "row"]]:
    """The held-out rows of a hook point in float32, and the item of each row, in the order of the store.

    With `limit` a random choice of so many of them, the same for the same seed. Raises StoreError when there are none.
    """
    mask = held_out(store, store.hook_points[hook_point].modality, fraction, seed)
    items = store.item_of(hook_point)
    rows = np.flatnonzero(mask[items])
    if len(rows) == 0:
        raise StoreError(
            f"{store.path}: {hook_point}: no rows are held out with holdout={fraction}; harvest more records or hold out more"
        )
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    return store.read_rows(hook_point, rows).float(), items[rows]


def _hold_out_of_all(stores: Mixture, fraction: float, seed: int) -> dict[Modality, npt.NDArray[np.bool_]]:
    """What is held out of one store, and the records of the same items elsewhere, until no item is on both sides.

    Costs memory for the keys of all items.
    """
    held: dict[Modality, npt.NDArray[np.bool_]]
    held = {name: choose_records(_read_records(stores, name), fraction, seed) for name in MODALITIES}
    keys = {name: _number_keys(stores, name) for name in MODALITIES}
    records = _number_records(stores)
    n_records = 1 + max(int(numbers.max(initial=-1)) for numbers in records.values())
    n_held = -1
    while n_held != (n_held := sum(int(mask.sum()) for mask in held.values())):
        in_record = np.zeros(n_records, np.bool_)
        for name, mask in held.items():
            of_key = np.zeros(1 + int(keys[name].max(initial=-1)), np.bool_)
            of_key[keys[name][mask]] = True
            in_record[records[name][of_key[keys[name]]]] = True
        held = {name: in_record[numbers] for name, numbers in records.items()}
    return held


def _number_keys(stores: Mixture, modality: Modality) -> npt.NDArray[np.int64]:
    """For each item a number that stands for its key."""
    keys = stores.items(modality, ["key"])["key"].combine_chunks().dictionary_encode()
    return keys.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _number_records(stores: Mixture) -> dict[Modality, npt.NDArray[np.int64]]:
    """For each item the number of its record, counted through all stores."""
    found: dict[Modality, list[npt.NDArray[np.int64]]] = {name: [] for name in MODALITIES}
    before = 0
    for store in stores.stores:
        own: dict[Modality, npt.NDArray[np.int64]] = {}
        for name in MODALITIES:
            own[name] = _read_records(store, name).astype(np.int64)
        for name, records in own.items():
            found[name].append(records + before)
        before += 1 + max(int(records.max(initial=-1)) for records in own.values())
    return {"image": np.concatenate(found["image"]), "text": np.concatenate(found["text"])}


def _read_records(store: Readable, modality: Modality) -> npt.NDArray[np.uint64]:
    return store.items(modality, columns=["record"])["record"].to_numpy().astype(np.uint64)


def choose_records(records: npt.NDArray[np.uint64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which records of one source are held out."""
    start = _mix(np.array([seed % 2**64], np.uint64))
    return _mix(records ^ start) < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of SplitMix64: a bijection of 64-bit words that looks random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
