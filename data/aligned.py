"""Hook points whose rows belong together, side by side: of one item and position, or of one image and its caption."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thresher.data.mixture import Mixture
from thresher.data.records import Modality
from thresher.data.store import Store
from thresher.data.store.layout import has_token_ids
from thresher.data.store.schema import TORCH_DTYPE, HookPointInfo
from thresher.errors import ConfigError, StoreError

JOINT = "+"
"""Between the names of hook points: what they are called together."""
OF_STORE = "@"
"""Between the name of a hook point and the number of its store."""


class Place(NamedTuple):
    """A hook point of a store."""

    store: Store
    hook_point: str


class AlignedStore:
    """Several hook points as if they were of one row space, beside them all of them as one hook point of their joint width.

    Row n of each belongs to the same item and position; where both images and texts are among them, to the same pair: every
    caption of an image makes a row, and the image's own row comes as often as it has captions. Rows that not all of them have
    are left out. Items are those of the first hook point, so that what is held out by item is so for all of them. Of several
    stores, harvested with different models, `text.3@1` is the hook point text.3 of the second one; they are joined by the keys
    of their items. Reads like a store (`Readable`); of rows it holds at most a number per row and hook point, nothing where the
    hook points share a row space.
    """

    def __init__(self, source: Store | Mixture, hook_points: Sequence[str]) -> None:
        """Raises ConfigError: names. Raises StoreError: no such hook point, rows that cannot be joined."""
        if len(hook_points) < 2 or len(set(hook_points)) < len(hook_points):
            raise ConfigError(f"hook_points={list(hook_points)}: rows side by side need at least two hook points, each once")
        self.source = source
        """What it is made from."""
        self._places = {name: _find_place(source, name) for name in hook_points}
        self.names = tuple(hook_points)
        """The hook points."""
        self.joint = JOINT.join(hook_points)
        """What they are called together."""
        self._first = self._places[self.names[0]]
        self.path, self.fingerprint, self.identity = source.path, source.fingerprint, source.identity
        self._rows = _join(self._places)
        infos = [place.store.hook_points[place.hook_point] for place in self._places.values()]
        self.widths = tuple(info.width for info in infos)
        """Of the hook points."""
        self.hook_points: Mapping[str, HookPointInfo] = self._describe(infos)
        if not self.rows(self.joint):
            raise StoreError(f"{self.path}: {', '.join(self.names)} have no rows of the same items and positions")

    def rows(self, hook_point: str) -> int:
        """Number of rows, the same for all."""
        return self._info(hook_point).rows

    def item_of(self, hook_point: str) -> Int64[np.ndarray, "row"]:
        """For each row the index of the first hook point's item."""
        return self.read_items_of(hook_point, 0, self.rows(hook_point))

    def read_items_of(self, hook_point: str, start: int, stop: int) -> Int64[np.ndarray, "row"]:
        """For rows `start` to `stop` (exclusive) the index of the first hook point's item."""
        rows = self._rows[0]
        if rows is None:
            return self._first.store.read_items_of(self._first.hook_point, start, stop)
        return self._items_of_first[rows[start:stop]]

    def read(self, hook_point: str, start: int, stop: int) -> Float[Tensor, "row width"]:
        """Rows `start` to `stop` (exclusive) in the dtype of `hook_points`."""
        info = self._info(hook_point)
        out = torch.empty((max(0, stop - start), info.width), dtype=TORCH_DTYPE[info.dtype])
        self.read_into(hook_point, start, out)
        return out

    def read_into(self, hook_point: str, start: int, out: Float[Tensor, "row width"]) -> None:
        """Fill a CPU tensor with the rows from `start` on; each hook point's are read on their own first."""
        info, stop = self._info(hook_point), start + len(out)
        if not 0 <= start <= stop <= info.rows:
            raise StoreError(f"{self.path}: {hook_point}: rows {start} to {stop} asked for, it has {info.rows}")
        for index, columns in self._blocks(hook_point):
            (store, name), rows = self._places[self.names[index]], self._rows[index]
            found = store.read(name, start, stop) if rows is None else store.read_rows(name, rows[start:stop])
            out[:, columns].copy_(found)

    def read_rows(self, hook_point: str, rows: npt.NDArray[np.int64]) -> Float[Tensor, "row width"]:
        """Any rows in any order, repeats allowed."""
        info = self._info(hook_point)
        out = torch.empty((len(rows), info.width), dtype=TORCH_DTYPE[info.dtype])
        for index, columns in self._blocks(hook_point):
            (store, name), own = self._places[self.names[index]], self._rows[index]
            out[:, columns].copy_(store.read_rows(name, rows if own is None else own[rows]))
        return out

    def items(self, modality: Modality, columns: Sequence[str] | None = None) -> Any:
        """The items of the first hook point's store."""
        return self._first.store.items(modality, columns)

    @functools.cached_property
    def _items_of_first(self) -> npt.NDArray[np.int64]:
        return self._first.store.item_of(self._first.hook_point)

    def _describe(self, infos: Sequence[HookPointInfo]) -> dict[str, HookPointInfo]:
        first = infos[0]
        n_rows = first.rows if self._rows[0] is None else len(self._rows[0])
        described = {
            name: HookPointInfo(name, first.modality, self.joint, info.width, info.dtype, n_rows)
            for name, info in zip(self.names, infos, strict=True)
        }
        dtype = first.dtype if len({info.dtype for info in infos}) == 1 else "float32"
        joint = HookPointInfo(self.joint, first.modality, self.joint, sum(self.widths), dtype, n_rows)
        return described | {self.joint: joint}

    def _blocks(self, hook_point: str) -> list[tuple[int, slice]]:
        """The hook points that one stands for, and where their columns are."""
        if hook_point != self.joint:
            return [(self.names.index(hook_point), slice(None))]
        ends = np.cumsum(self.widths).tolist()
        return [(index, slice(end - width, end)) for index, (end, width) in enumerate(zip(ends, self.widths, strict=True))]

    def _info(self, hook_point: str) -> HookPointInfo:
        if hook_point not in self.hook_points:
            raise StoreError(f"{self.path}: no hook point {hook_point!r} side by side; there are {', '.join(self.hook_points)}")
        return self.hook_points[hook_point]


def _find_place(source: Store | Mixture, name: str) -> Place:
    """The hook point of a name, which in several stores ends with the number of its store."""
    if JOINT in name:
        raise ConfigError(f"hook_points: {name!r}: a name with {JOINT!r} cannot stand side by side with others")
    if isinstance(source, Mixture):
        hook_point, _, number = name.rpartition(OF_STORE)
        if not hook_point or not number.isdigit() or int(number) >= len(source.stores):
            last = len(source.stores) - 1
            raise ConfigError(
                f"hook_points: {name!r}: say of which store, from 0 to {last}: {name.partition(OF_STORE)[0]}{OF_STORE}0"
            )
        store = source.stores[int(number)]
    else:
        store, hook_point = source, name
    if hook_point not in store.hook_points:
        raise StoreError(f"{store.path}: no hook point {hook_point!r}; the store has {', '.join(store.hook_points)}")
    return Place(store, hook_point)


def _join(places: Mapping[str, Place]) -> list[npt.NDArray[np.int64] | None]:
    """For each place its rows in the order of the aligned ones; None where these are all of its rows as they stand."""
    stores = {id(place.store): place.store for place in places.values()}
    infos = [place.store.hook_points[place.hook_point] for place in places.values()]
    if len(stores) == 1 and len({info.space for info in infos}) == 1:
        return [None] * len(infos)
    if len({info.modality for info in infos}) == 2:
        return [*_join_pairs(places)]
    return _join_positions(places)


def _join_pairs(places: Mapping[str, Place]) -> list[npt.NDArray[np.int64]]:
    """The rows of each pair of an image and a text that has one of every place; every place has at most one per item."""
    first = next(iter(places.values())).store
    pairs = first.pairs()
    rows: list[npt.NDArray[np.int64]] = []
    for name, place in places.items():
        info = place.store.hook_points[place.hook_point]
        items = _translate_items(first, place)
        of_item = np.full(max(int(items.max(initial=-1)) + 1, first.items(info.modality, ["record"]).num_rows), -1, np.int64)
        known = np.flatnonzero(items >= 0)
        of_item[items[known]] = known
        if np.count_nonzero(of_item >= 0) < len(known):
            raise StoreError(
                f"{place.store.path}: {name} has several rows per item, and nothing says which belongs to which of a pair; "
                "choose hook points with one row per image and per text"
            )
        rows.append(of_item[pairs[:, 0 if info.modality == "image" else 1]])
    is_whole = np.stack(rows).min(0) >= 0
    return [own[is_whole] for own in rows]


def _join_positions(places: Mapping[str, Place]) -> list[npt.NDArray[np.int64] | None]:
    """The rows of every item and position that all places have, in the order of the first place's keys."""
    first = next(iter(places.values())).store
    keys: list[npt.NDArray[np.int64]] = []
    for name, place in places.items():
        items = _translate_items(first, place)
        key = np.where(items < 0, -1, (items << 32) + place.store.position_of(place.hook_point).astype(np.int64) + 1)
        keys.append(key)
        if len(np.unique(key[key >= 0])) < np.count_nonzero(key >= 0):
            raise StoreError(f"{place.store.path}: {name} has several rows of one item and position; they cannot be told apart")
    if all(np.array_equal(key, keys[0]) and bool((key >= 0).all()) for key in keys):
        rows: list[npt.NDArray[np.int64] | None] = [None] * len(keys)
    else:
        common = functools.reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), [key[key >= 0] for key in keys])
        order = [np.argsort(key) for key in keys]
        rows = [own[np.searchsorted(key, common, sorter=own)] for own, key in zip(order, keys, strict=True)]
    _refuse_other_tokens(places, rows)
    return rows


def _translate_items(first: Store, place: Place) -> npt.NDArray[np.int64]:
    """For each row of a place the index of its item in the first store, -1 where that does not have it."""
    items = place.store.item_of(place.hook_point)
    if place.store is first:
        return items
    modality = place.store.hook_points[place.hook_point].modality
    own, wanted = (store.items(modality, ["key"])["key"].to_pylist() for store in (place.store, first))
    number = {key: index for index, key in enumerate(wanted)}
    return np.array([number.get(key, -1) for key in own], np.int64)[items]


def _refuse_other_tokens(places: Mapping[str, Place], rows: Sequence[npt.NDArray[np.int64] | None]) -> None:
    """Raise StoreError where rows of equal position hold other tokens: the models cut texts in different ways."""
    seen: npt.NDArray[Any] | None = None
    for (name, place), own in zip(places.items(), rows, strict=True):
        if not has_token_ids(place.store.hook_points[place.hook_point].space):
            continue
        found = place.store.token_id_of(place.hook_point)
        found = found if own is None else found[own]
        if seen is not None and not np.array_equal(seen, found):
            raise StoreError(
                f"{place.store.path}: {name}: equal positions of an item hold other tokens than at the hook "
                "points before it; side by side they need one tokenizer"
            )
        seen = found
