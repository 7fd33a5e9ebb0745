"""A few rows of a store with what they belong to."""

from typing import Any

from thresher.data.store.reader import Store
from thresher.data.store.schema import TokenKind

VALUES = 4
"""Activation values that are shown of a row."""
TEXT = 60
"""Characters that are shown of a text."""


def read_head(store: Store, hook_point: str, start: int, n: int) -> list[dict[str, Any]]:
    """`n` rows from `start` on, fewer at the end: row, item with key and text, position, token id, norm, first values.

    Of what the position holds (`kind`) it gives the word.
    """
    stop = min(start + n, store.rows(hook_point))
    start = min(start, stop)
    info = store.hook_points[hook_point]
    x = store.read(hook_point, start, stop).float()
    item, described = store.read_items_of(hook_point, start, stop), store.read_described(hook_point, start, stop)
    shown = ["key", "status", *(["text"] if info.modality == "text" else [])]
    items = store.items(info.modality, columns=shown).take(item).to_pylist()
    rows: list[dict[str, Any]] = []
    for i in range(stop - start):
        text = {"text": _shorten(items[i]["text"] or "")} if info.modality == "text" else {}
        values = " ".join(f"{value:.3g}" for value in x[i, :VALUES].tolist()) + (" ..." if info.width > VALUES else "")
        place = {name: _show(name, int(column[i])) for name, column in described.items()}
        rows.append(
            {"row": start + i, "item": int(item[i]), "key": items[i]["key"], **text, **place}
            | {"norm": round(float(x[i].norm()), 4), "values": values}
        )
    return rows


def _show(column: str, value: int) -> int | str:
    """A number, of `kind` its word; one that a later release has brought stays a number."""
    is_known = column == "kind" and value in TokenKind.__members__.values()
    return TokenKind(value).name.lower() if is_known else value


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT else f"{line[: TEXT - 3]}..."
