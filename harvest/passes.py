"""Which texts of a batch go through the model together, and which share a sequence."""

from collections.abc import Sequence

SHORT = 32
"""Bytes of a text below which lengths are all the same: a few tokens."""


def plan_passes(texts: Sequence[str], size: int) -> list[list[int]]:
    """Texts in their order, at most `size` to a forward pass."""
    return _cut(list(range(len(texts))), size)


def plan_passes_by_length(texts: Sequence[str], size: int) -> list[list[int]]:
    """Texts by length in UTF-8 bytes, at most `size` to a pass, none more than twice as long as another of its pass.

    So at most about half of a pass is padding. Follows from the texts alone; equal lengths keep their order.
    """
    lengths = [max(SHORT, len(text.encode("utf-8", "replace"))) for text in texts]
    passes: list[list[int]] = []
    group: list[int] = []
    for place in sorted(range(len(texts)), key=lambda place: lengths[place]):
        if group and lengths[place] > 2 * lengths[group[0]]:
            passes += _cut(group, size)
            group = []
        group.append(place)
    return passes + _cut(group, size)


def fill_sequences(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Texts of 1 to `size` tokens into sequences of at most `size`: the longest first, each into the first with room.

    Takes at most 11/9 of the fewest sequences possible, and 6/9 (first fit decreasing; Dosa 2007). Follows from the lengths
    alone; texts without tokens are in none.
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for text in sorted((text for text, length in enumerate(lengths) if length), key=lambda text: -lengths[text]):
        found = next((number for number, left in enumerate(room) if left >= lengths[text]), None)
        if found is None:
            found = len(room)
            sequences.append([])
            room.append(size)
        sequences[found].append(text)
        room[found] -= lengths[text]
    return sequences


def _cut(places: list[int], size: int) -> list[list[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]
