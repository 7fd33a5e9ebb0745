"""Files that are either whole or not there."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_atomic(path: Path, buffers: Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader, a crash or a power loss sees the old content or the new one, never a part.

    Temporary file with a fixed name beside it, fsync, rename, fsync of the folder. OSError (no space left, read-only)
    leaves the old content and no temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for buffer in buffers:
                file.write(buffer)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
