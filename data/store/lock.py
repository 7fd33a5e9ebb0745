"""One writer per store."""

import fcntl
import os
from pathlib import Path

from thresher.data.store.layout import LOCK
from thresher.errors import StoreError


class WriterLock:
    """Held from its creation until `release` or the end of the process, whatever ends it."""

    def __init__(self, root: Path) -> None:
        self._descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise StoreError(f"{root}: another harvest is writing this store; wait for it, or choose another `out`") from error

    def release(self) -> None:
        """Let another writer in."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
