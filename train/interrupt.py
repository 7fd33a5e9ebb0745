"""Ctrl-C at a moment when the state is whole."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def defer_interrupts() -> Generator[Callable[[], bool], None, None]:
    """Hold Ctrl-C and SIGTERM back while the block runs; yields the question whether one came.

    An optimizer step must not be cut in two. A second signal is not held back. A signal that is ignored stays ignored.
    Outside the main thread, where no signal arrives, nothing is changed.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: handler for number, handler in previous.items() if callable(handler) or handler == signal.SIG_DFL}
    for number in handled:
        signal.signal(number, note)
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
