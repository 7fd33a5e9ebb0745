"""Tar shards in the form of webdataset: the members of one sample stand together and share their name up to the first dot."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import BinaryIO, Literal, NamedTuple, cast

import numpy as np

from thresher.config import config
from thresher.data.records import Concept, Encoded, EncodedRecord, Modality, Record, Text, Unreadable
from thresher.data.sources.captions import (
    ESCAPES,
    EmptyCaptions,
    EncodingErrors,
    check_separator,
    make_name,
    make_text,
    split_cell,
)
from thresher.data.sources.decoding import DecodedImage, EncodedImage, check_colour
from thresher.data.sources.paths import expand_paths
from thresher.data.sources.tar import Damage, Member, read_members, scan_members
from thresher.data.sources.text import short_names
from thresher.errors import ConfigError, SourceError
from thresher.progress import log
from thresher.runs import fingerprint

FIRST = 100
"""Samples in which a field of captions must turn up."""


@config
class WebDataset:
    """Tar files whose members are images and their captions: 0001.jpg, 0001.txt, 0002.jpg, ..."""

    kind: Literal["webdataset"] = "webdataset"
    """Which source this is."""
    shards: tuple[str, ...]
    """The tar files, in order: paths, globs (pairs/*.tar) and braces (pairs-{000..012}.tar)."""
    images: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions of members with images, the first that a sample has is taken; none for a source of texts."""
    captions: tuple[str, ...] = ("txt",)
    """Extensions of members with captions. `json:caption` takes a field of a JSON member: a text or a list of texts."""
    separator: str | None = None
    """Cuts a caption into several, for instance ; or |."""
    empty_captions: EmptyCaptions = "drop"
    """An empty member or field gives no caption, or with `keep` an empty one: an item of special tokens only."""
    encoding_errors: EncodingErrors = "unreadable"
    """A caption that is not UTF-8: an item without rows whose status names the member, or U+FFFD for the bad bytes."""
    background: str = "white"
    """Colour behind transparent images."""

    def __post_init__(self) -> None:
        check_colour(self.background)
        check_separator(self.separator)
        if not self.shards:
            raise ConfigError("shards: name at least one tar file")
        if not self.images and not self.captions:
            raise ConfigError("images, captions: name at least one extension")


class _Sample(NamedTuple):
    """Where a sample is."""

    shard: int
    offset: int
    """Of the header of its first member."""
    members: int
    """How many it has; 0 for a place that is damaged."""


class WebDatasetSource:
    """Samples in the order of the shards. Holds their places in memory, 16 bytes each, not their names or content."""

    def __init__(self, settings: WebDataset) -> None:
        self._settings = settings
        self._paths = expand_paths(settings.shards)
        self._names = short_names(self._paths)
        self._damage: dict[tuple[int, int], str] = {}
        self._repeated: set[tuple[int, int]] = set()
        self._fields = {name.partition(":")[0] for name in settings.captions}
        extensions: Counter[str] = Counter()
        samples = (sample for shard in range(len(self._paths)) for sample in self._scan(shard, extensions))
        self._samples = np.fromiter(samples, dtype=[("shard", "i4"), ("offset", "i8"), ("members", "i4")])
        self._check(extensions)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """By the extensions that are named."""
        image: tuple[Modality, ...] = ("image",) if self._settings.images else ()
        return (*image, "text") if self._settings.captions else image

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """None: nothing is known of what the samples show."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Hex digest of the settings, of the shards' names and sizes, and of where their samples are."""
        settings = self._settings
        taken = [settings.images, settings.captions, settings.separator, settings.empty_captions, settings.encoding_errors]
        sizes = [path.stat().st_size for path in self._paths]
        places = [column.tolist() for column in (self._samples["offset"], self._samples["members"])]
        return fingerprint({"taken": taken, "background": settings.background, "shards": [self._names, sizes], "at": places})

    def __len__(self) -> int:
        """Number of samples, damaged places counted."""
        return len(self._samples)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[EncodedRecord]:
        """Samples `start` to `stop`, read as they are asked for; a sample without its image has an `Unreadable` one."""
        wanted = [_Sample(*map(int, sample)) for sample in self._samples[start:stop].tolist()]
        for shard, samples in groupby(wanted, key=lambda sample: sample.shard):
            with self._paths[shard].open("rb") as file:
                for sample in samples:
                    yield self._read_sample(file, sample) if sample.members else self._read_damage(sample)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Samples `start` to `stop`, decoded as they are asked for."""
        return (record.decode() for record in self.read(start, stop))

    def _scan(self, shard: int, extensions: Counter[str]) -> Iterator[_Sample]:
        """The samples of a shard; counts the extensions seen."""
        seen: set[str] = set()
        left_out: list[str] = []
        for base, found in groupby(scan_members(self._paths[shard]), key=_base_of):
            if base is None:
                yield from self._note_damage(shard, [damage for damage in found if isinstance(damage, Damage)])
                continue
            members = [member for member in found if isinstance(member, Member)]
            names = [split_name(member.name)[1] for member in members]
            extensions.update(names)
            if not any(name in self._settings.images or name in self._fields for name in names):
                left_out.append(base)
                continue
            if base in seen:
                self._repeated.add((shard, members[0].header))
            seen.add(base)
            yield _Sample(shard, members[0].header, len(members))
        if left_out:
            log(f"{self._paths[shard]}: {len(left_out)} samples without image or caption are left out, first {left_out[0]!r}")

    def _note_damage(self, shard: int, found: Sequence[Damage]) -> Iterator[_Sample]:
        for damage in found:
            log(f"{self._paths[shard]}: {damage.reason}; what could be read of it is used")
            self._damage[shard, damage.offset] = damage.reason
            yield _Sample(shard, damage.offset, 0)

    def _check(self, extensions: Counter[str]) -> None:
        """Raise SourceError when no sample has what is asked for."""
        shards = ", ".join(map(str, self._paths[:3])) + (", ..." if len(self._paths) > 3 else "")
        seen = ", ".join(extensions) or "none"
        if self._settings.images and not any(name in extensions for name in self._settings.images):
            raise SourceError(f"{shards}: no member ends in {', '.join(self._settings.images)}; extensions: {seen}")
        for name in sorted(self._fields - set(extensions)):
            raise SourceError(f"{shards}: no member with captions ends in {name}; extensions: {seen}")
        for wanted in self._settings.captions:
            extension, _, field = wanted.partition(":")
            known = self._find_fields(extension) if field else None
            if known is not None and field not in known:
                raise SourceError(f"{shards}: no field {field!r} in the .{extension} members; fields: {', '.join(known)}")

    def _find_fields(self, extension: str) -> dict[str, object] | None:
        """The fields of the first JSON members with an extension; None when none of them can be read."""
        known: dict[str, object] = {}
        for shard, offset, members in self._samples[:FIRST].tolist():
            with self._paths[shard].open("rb") as file:
                for member in read_members(file, offset, members):
                    if split_name(member.name)[1] == extension:
                        with contextlib.suppress(ValueError):
                            known |= _parse(_read(file, member).decode("utf-8", ESCAPES))
        return known or None

    def _read_sample(self, file: BinaryIO, sample: _Sample) -> EncodedRecord:
        found: dict[str, Member] = {}
        for member in read_members(file, sample.offset, sample.members):
            found.setdefault(split_name(member.name)[1], member)
        base = make_name(split_name(next(iter(found.values())).name)[0])
        name = f"{self._names[sample.shard]}/{base}"
        key = f"{name}@{sample.offset}" if (sample.shard, sample.offset) in self._repeated else name
        image = self._read_image(file, name, found) if self._settings.images else None
        return EncodedRecord(key, image, texts=tuple(self._read_texts(file, name, found)))

    def _read_image(self, file: BinaryIO, name: str, found: dict[str, Member]) -> Encoded:
        extension = next((wanted for wanted in self._settings.images if wanted in found), None)
        if extension is None:
            return DecodedImage(Unreadable(f"{name}: no image; the sample has {', '.join(found)}"))
        content = _read(file, found[extension])
        if len(content) < found[extension].size:
            return DecodedImage(Unreadable(f"{name}.{extension}: {_describe_cut(content, found[extension])}"))
        return EncodedImage(content, f"{name}.{extension}", self._settings.background)

    def _read_texts(self, file: BinaryIO, name: str, found: dict[str, Member]) -> Iterator[Text]:
        settings = self._settings
        for wanted in settings.captions:
            extension, _, field = wanted.partition(":")
            if extension not in found:
                continue
            place, content = f"{name}.{extension}", _read(file, found[extension])
            shown = content.decode("utf-8", ESCAPES)
            try:
                if len(content) < found[extension].size:
                    raise ValueError(_describe_cut(content, found[extension]))
                cell = _parse(shown).get(field) if field else shown
                captions = list(split_cell(cell, settings.separator, settings.empty_captions))
            except ValueError as error:
                yield Text(make_text(shown, place, "replace").text, unreadable=f"{place}: {error}")
                continue
            for caption in captions:
                yield make_text(caption, place, settings.encoding_errors)

    def _read_damage(self, sample: _Sample) -> EncodedRecord:
        key = f"{self._names[sample.shard]}@{sample.offset}"
        reason = f"{self._names[sample.shard]}: {self._damage[sample.shard, sample.offset]}"
        if self._settings.images:
            return EncodedRecord(key, DecodedImage(Unreadable(reason)))
        return EncodedRecord(key, texts=(Text("", unreadable=reason),))


def split_name(name: str) -> tuple[str, str]:
    """Path up to the first dot of the file's name, and what is behind that dot, in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _base_of(found: Member | Damage) -> str | None:
    return split_name(found.name)[0] if isinstance(found, Member) else None


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.data)
    return file.read(member.size)


def _describe_cut(content: bytes, member: Member) -> str:
    return f"cut off after {len(content)} of {member.size} bytes"


def _parse(text: str) -> dict[str, object]:
    """A JSON object. Raises ValueError for anything else."""
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return cast(dict[str, object], row)
