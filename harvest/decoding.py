"""Images decoded, made small for reports and transformed for the model: here, or in processes of their own."""

import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType
from typing import Any, NamedTuple

import torch
from PIL import Image

from thresher.data.records import Encoded, Unreadable
from thresher.errors import ConfigError, SourceError

Transform = Callable[[Sequence[Image.Image]], Any]
"""Makes of images what a model takes."""


class Decoded(NamedTuple):
    """Images of one batch."""

    reasons: tuple[str | None, ...]
    """Per image: why it is unreadable; None for the others."""
    thumbnails: tuple[bytes | None, ...]
    """Per image a PNG; None where it is unreadable or none was asked for."""
    transformed: Any
    """What the transform made of the readable images, in order; None when there are none."""


Decoder = Callable[[Sequence[Encoded], int, Transform], Decoded]
"""Somewhere to decode, see `decode_images`; may be called from several threads."""


def decode_images(images: Sequence[Encoded], thumbnail: int, transform: Transform) -> Decoded:
    """Decode images; thumbnails have at most `thumbnail` pixels on their longest side, 0 for none."""
    found = [image.decode() for image in images]
    readable = [image for image in found if not isinstance(image, Unreadable)]
    return Decoded(
        tuple(image.reason if isinstance(image, Unreadable) else None for image in found),
        tuple(None if isinstance(i, Unreadable) or not thumbnail else encode_thumbnail(i, thumbnail) for i in found),
        transform(readable) if readable else None,
    )


def encode_thumbnail(image: Image.Image, side: int) -> bytes:
    """PNG of an image, its longest side at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return buffer.getvalue()


class DecodingProcesses:
    """Decodes in processes, each call in one of them. They end with this process, however it ends."""

    def __init__(self, n: int) -> None:
        self._pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), initializer=_start)
        self._known: list[Any] = []

    def __call__(self, images: Sequence[Encoded], thumbnail: int, transform: Transform) -> Decoded:
        """Decode, see `decode_images`. Raises SourceError when a process died, which loses nothing that is stored."""
        try:
            result = self._pool.submit(decode_images, images, thumbnail, transform)
            self._known = [*multiprocessing.active_children()] or self._known
            return result.result()
        except BrokenProcessPool as error:
            raise SourceError(
                f"a decoding process died{self._find_end()}; what is stored is safe: rerun the same command to resume, with "
                "fewer `workers`, or decode=threads"
            ) from error

    def __enter__(self) -> "DecodingProcesses":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _find_end(self) -> str:
        """How the first one ended; the others are then ended by the pool with SIGTERM."""
        for _ in range(100):
            codes = {process.exitcode for process in self._known} - {None, 0, -signal.SIGTERM}
            if codes:
                return _describe_end(min(codes))
            # Another thread has waited for it and has not noted the code yet.
            time.sleep(0.02)
        return ""


def _describe_end(code: int) -> str:
    if code >= 0:
        return f" with exit code {code} (a script that starts a harvest needs `if __name__ == '__main__':`)"
    hints = {signal.SIGKILL: "; out of memory?", signal.SIGBUS: "; is the shared memory, /dev/shm, full?"}
    name = signal.Signals(-code)
    return f" by signal {name.value} ({name.name}{hints.get(name, '')})"


def check_picklable(transform: Transform) -> None:
    """Raise ConfigError unless a transform can travel to another process."""
    try:
        pickle.dumps(transform)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"decode=processes: this model's transform stays in its process ({error}); use threads") from error


def _start() -> None:
    """Prepare a decoding process: one thread, deaf to Ctrl-C (its parent is not), and gone when its parent is."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child"

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
