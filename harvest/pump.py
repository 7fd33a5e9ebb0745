"""Keeps a model busy: one thread launches batch after batch, another finishes what comes back, the caller stores it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

IN_FLIGHT = 2
"""Batches that are launched and not handed on: one that the device computes, one that is on its way or being finished."""

Given = TypeVar("Given")
Launched = TypeVar("Launched")
Made = TypeVar("Made")


def pump(
    given: Iterable[Given], launch: Callable[[Given], Launched], finish: Callable[[Launched], Made]
) -> Generator[Made, None, None]:
    """What `finish(launch(batch))` makes of every batch, in order. Closes `given` at the end when it is a generator.

    `launch` runs in the thread of the caller and should not wait; `finish` in another one, beside the launch of the next.
    The caller takes its time: no batch is launched while more than `IN_FLIGHT` wait to be handed on. After an error in
    `given` or `launch`, what was launched before is handed on first: so the error that is raised is the first one in the
    order of batches, and nothing before it is lost.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="finish") as pool:
        try:
            for future in _launch_all(given, launch, lambda launched: pool.submit(finish, launched)):
                waiting.append(future)
                if len(waiting) > IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            if isinstance(given, Generator):
                given.close()


def _launch_all(
    given: Iterable[Given], launch: Callable[[Given], Launched], submit: Callable[[Launched], Future[Made]]
) -> Iterator[Future[Made]]:
    """A future per batch; one that holds the error where there is one, and nothing behind it."""
    try:
        for batch in given:
            yield submit(launch(batch))
    except Exception as error:
        failed: Future[Made] = Future()
        failed.set_exception(error)
        yield failed
