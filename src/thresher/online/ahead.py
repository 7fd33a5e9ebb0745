"""Items of a generator, made ahead of their use by a thread."""

import queue
import threading
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


def read_ahead(source: Generator[T, None, None], n: int) -> Generator[T, None, None]:
    """The items of `source`, up to `n` of them ready before they are asked for.

    The thread that makes them ends, and closes `source`, when this generator is closed or at its end. An error of `source`
    is raised in its turn.
    """
    ready: queue.Queue[T | _Failure | _End] = queue.Queue(n)
    stop = threading.Event()

    def work() -> None:
        try:
            with closing(source):
                for item in source:
                    ready.put(item)
                    if stop.is_set():
                        return
            ready.put(_End())
        except BaseException as error:
            ready.put(_Failure(error))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        while thread.is_alive():
            while not ready.empty():
                ready.get_nowait()
            thread.join(timeout=0.01)
