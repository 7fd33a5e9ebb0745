"""Letting the next writer in where a dead one has left its lock behind."""

from pathlib import Path

from thresher.data.store.places import parse_location
from thresher.errors import StoreError


def unlock_store(location: str | Path) -> str:
    """Say that whoever holds the lock of a store in a bucket is gone for good; gives who that was, empty when nobody was.

    Should he be alive after all, he can commit nothing once the next writer has begun. Raises StoreError for a folder of this
    machine, whose lock ends with its process.
    """
    location = parse_location(location)
    if isinstance(location, Path):
        raise StoreError(f"{location}: the lock of a folder ends with the process that holds it; there is nothing to unlock")
    from thresher.data.store.objects import Objects
    from thresher.data.store.ownership import abandon

    return abandon(Objects(location))
