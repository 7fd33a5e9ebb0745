"""Which storage a path means: the one place where another kind of storage is chosen."""

from pathlib import Path

from thresher.data.store.local import LocalStorage
from thresher.data.store.storage import Storage


def open_storage(path: str | Path) -> Storage:
    """What keeps the store at `path`."""
    return LocalStorage(Path(path))
