"""The members of a tar file, with everything that can be read of a damaged one."""

import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from thresher.errors import SourceError

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A file in a tar file."""

    name: str
    """Path in the archive, without a leading `./`."""
    header: int
    """Where its header begins."""
    data: int
    """Where its content begins."""
    size: int
    """Bytes of its content."""


class Damage(NamedTuple):
    """A place from which on a tar file cannot be read, up to the next member."""

    offset: int
    reason: str


def scan_members(path: Path) -> Iterator[Member | Damage]:
    """Every file in a tar file, in order; what is between damage and the next sound header is one `Damage`.

    Reads headers only. Raises SourceError: no such file, or a compressed one.
    """
    try:
        with path.open("rb") as file:
            _refuse_compressed(path, file)
            offset = 0
            while True:
                end = yield from _walk(file, offset)
                damage = _judge_end(file, end)
                if damage is not None:
                    yield damage
                # Behind an end mark there can be another archive: tar files are put together with `cat`.
                found = _find_header(file, end + BLOCK)
                if found is None:
                    return
                offset = found
    except OSError as error:
        raise SourceError(f"{path}: cannot read the tar file ({error.strerror})") from error


def read_members(file: BinaryIO, offset: int, n: int) -> list[Member]:
    """The `n` files whose headers follow each other from `offset` on, as `scan_members` found them."""
    members = _walk(file, offset)
    return [next(members) for _ in range(n)]


def _walk(file: BinaryIO, offset: int) -> Generator[Member, None, int]:
    """The files from a header on; returns where no further header can be read."""
    file.seek(offset)
    try:
        archive: Any = tarfile.TarFile(fileobj=file, mode="r", errors="surrogateescape")
    except tarfile.TarError:
        return offset
    while True:
        try:
            member = archive.next()
        except tarfile.TarError:
            return archive.offset
        if member is None:
            return archive.offset
        # The archive keeps every header for random access; there is none here, and a shard can have a million.
        archive.members.clear()
        if member.isfile():
            yield Member(member.name.removeprefix("./"), member.offset, member.offset_data, member.size)


def _judge_end(file: BinaryIO, offset: int) -> Damage | None:
    """What is wrong at the end of the members; None at a proper end mark."""
    size = file.seek(0, 2)
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        return Damage(min(offset, size), f"the file is cut off at byte {size}, without the end mark of a tar file")
    return Damage(offset, f"no readable header at byte {offset}") if block.strip(b"\0") else None


def _find_header(file: BinaryIO, offset: int) -> int | None:
    """The next place at or behind `offset` where a header with a correct checksum is."""
    file.seek(offset)
    while len(block := file.read(BLOCK)) == BLOCK:
        if block[257:262] == b"ustar" and _is_header(block):
            return offset
        offset += BLOCK
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _refuse_compressed(path: Path, file: BinaryIO) -> None:
    start = file.read(6)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise SourceError(f"{path}: compressed with {name}; unpack it to a plain .tar, in which records can be found")
