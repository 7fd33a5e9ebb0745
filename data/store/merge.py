"""Several stores of the same hook points into one."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from thresher.data.records import Concept
from thresher.data.store.beside import is_finished
from thresher.data.store.codecs import Profile
from thresher.data.store.layout import MODALITIES
from thresher.data.store.reader import Store, open_store
from thresher.data.store.schema import Batch, HookPointSpec, Item
from thresher.data.store.walk import iterate_batches
from thresher.data.store.writer import StoreWriter
from thresher.errors import StoreError
from thresher.progress import progress

Keys = Literal["keep", "prefix"]
"""Leave the keys of items as they are, or put the number of their part before them: `0/key`."""


def merge_stores(
    parts: Sequence[str | Path], out: str | Path, *, keys: Keys = "keep", profile: Profile | None = None
) -> str | Path:
    """Write the items, pairs and rows of several complete stores into a new one, part after part, and return it.

    All parts must have the same hook points with the same widths and types. Records are counted on from part to part; concepts
    of equal names become one. `identity` of the new store holds those of the parts and which items came from which. The
    store is written with `profile`, or that of the parts. Can be stopped and run again like a harvest. Raises StoreError:
    parts that differ, also in their profiles when none is given, equal keys, whatever a writer raises.
    """
    if len(parts) < 2:
        raise StoreError(f"{len(parts)} stores to merge; give at least two")
    stores = [open_store(path) for path in parts]
    specs, profile = _common_hook_points(stores), profile or _common_profile(stores)
    portable = all(store.portable_dtype for store in stores)
    if keys == "keep":
        _check_keys(stores)
    concepts = _unite_concepts(stores)
    n_items = sum(store.items(modality, columns=["record"]).num_rows for store in stores for modality in MODALITIES)
    identity = _identify(stores, keys)
    if is_finished(out, identity, profile, portable_dtype=portable):
        return out
    writer = StoreWriter(out, identity, specs, concepts, profile=profile, portable_dtype=portable)
    with writer, progress("merge", n_items, "items") as advance:
        for batch in _renumber(stores, concepts, keys):
            if batch.index >= writer.next_batch:
                writer.write(batch)
            advance(sum(len(items) for items in batch.items.values()))
        writer.finish()
    return out


def _common_hook_points(stores: Sequence[Store]) -> list[HookPointSpec]:
    described = [{name: _describe(store, name) for name in store.hook_points} for store in stores]
    for store, found in zip(stores[1:], described[1:], strict=True):
        for name in sorted({*described[0], *found}):
            one, other = found.get(name, "not there"), described[0].get(name, "not there")
            if one != other:
                raise StoreError(
                    f"{store.path}: hook point {name}: {one}; in {stores[0].path}: {other}; only stores of the same hook "
                    "points, widths, types and row columns can be merged"
                )
    return [HookPointSpec(*info[:5]) for info in stores[0].hook_points.values()]


def _describe(store: Store, name: str) -> str:
    info, columns = store.hook_points[name], ", ".join(store.columns_of(name))
    return f"{info.modality}, {info.space}, width {info.width}, {info.dtype}" + (f", with {columns}" if columns else "")


def _common_profile(stores: Sequence[Store]) -> Profile:
    for store in stores[1:]:
        if store.profile != stores[0].profile:
            raise StoreError(
                f"{store.path}: profile {store.profile}, in {stores[0].path} {stores[0].profile}; say which "
                "the new store gets by profile (--profile): rows are decoded and written again"
            )
    return stores[0].profile


def _check_keys(stores: Sequence[Store]) -> None:
    """Raise StoreError for a key that two stores have. Keeps 8 bytes a key, not the keys."""
    for modality in MODALITIES:
        hashes = [_hash_keys(store.items(modality, columns=["key"])["key"].to_pylist()) for store in stores]
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        if len(doubled := values[counts > 1]):
            where = [store for store, found in zip(stores, hashes, strict=True) if doubled[0] in found]
            place = int(np.flatnonzero(hashes[stores.index(where[0])] == doubled[0])[0])
            key = where[0].items(modality, columns=["key"])["key"][place].as_py()
            raise StoreError(
                f"{modality} item {key!r} is in {' and in '.join(str(store.path) for store in where)}: keys must be unique; "
                "merge with keys='prefix' (--prefix-keys) to put the number of its part before each key"
            )


def _hash_keys(keys: Sequence[str]) -> Any:
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.uint64)


def _unite_concepts(stores: Sequence[Store]) -> list[Concept]:
    united: dict[str, Concept] = {}
    for store in stores:
        for concept in store.concepts:
            if united.setdefault(concept.name, concept) != concept:
                raise StoreError(
                    f"{store.path}: concept {concept.name}: {concept}, in another part {united[concept.name]}; stores whose "
                    "concepts contradict each other cannot be merged"
                )
    return list(united.values())


def _identify(stores: Sequence[Store], keys: Keys) -> Mapping[str, Any]:
    parts: list[dict[str, Any]] = []
    before = dict.fromkeys(MODALITIES, 0)
    for store in stores:
        counts = {modality: store.items(modality, columns=["record"]).num_rows for modality in MODALITIES}
        items = {modality: [before[modality], before[modality] + counts[modality]] for modality in MODALITIES}
        parts.append({"identity": dict(store.identity), "fingerprint": store.fingerprint, "items": items})
        before = {modality: before[modality] + counts[modality] for modality in MODALITIES}
    shared = {"model": stores[0].identity["model"]} if _same_model(stores) else {}
    return {**shared, "merged": parts, "keys": keys}


def _same_model(stores: Sequence[Store]) -> bool:
    return all("model" in store.identity and store.identity["model"] == stores[0].identity.get("model") for store in stores)


def _renumber(stores: Sequence[Store], concepts: Sequence[Concept], keys: Keys) -> Iterator[Batch]:
    """The batches of all stores, counted on, with records and concepts of the whole."""
    place = {concept.name: i for i, concept in enumerate(concepts)}
    index = first_record = 0
    for number, store in enumerate(stores):
        own = [place[concept.name] for concept in store.concepts]
        prefix = f"{number}/" if keys == "prefix" else ""

        def renumber(item: Item, own: list[int] = own, first: int = first_record, prefix: str = prefix) -> Item:
            concepts = tuple(own[concept] for concept in item.concepts)
            return item._replace(key=prefix + item.key, record=item.record + first, concepts=concepts)

        for batch in iterate_batches(store):
            items = {modality: [renumber(item) for item in found] for modality, found in batch.items.items()}
            yield replace(batch, index=index, items=items)
            index += 1
        first_record += _count_records(store)


def _count_records(store: Store) -> int:
    records = [store.items(modality, columns=["record"])["record"].to_numpy() for modality in MODALITIES]
    return 1 + max((int(found.max()) for found in records if len(found)), default=-1)
