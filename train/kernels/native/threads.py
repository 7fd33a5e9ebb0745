"""Rows shared between threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

PARTS_PER_THREAD = 4
"""Rows take different time: a thread that is done early takes another part."""


def share_rows(n_rows: int, loop: Callable[..., Any], *arguments: Any) -> None:
    """Call `loop(first, last, *arguments)` on parts of the rows, in `torch.get_num_threads()` threads of this call only.

    Python's own threads, as the loops run without its lock: numba's thread layers abort in a forked process, and the one
    that is always there cannot be entered twice at once.
    """
    n_threads = min(torch.get_num_threads(), n_rows)
    if n_threads <= 1:
        loop(0, n_rows, *arguments)
        return
    size = -(-n_rows // (n_threads * PARTS_PER_THREAD))
    starts = range(0, n_rows, size)
    with ThreadPoolExecutor(n_threads) as pool:
        for done in [pool.submit(loop, start, min(start + size, n_rows), *arguments) for start in starts]:
            done.result()
