"""Names of models and datasets: hub ids, local paths, and a local mirror for machines that reach no hub."""

import os
from pathlib import Path

MIRROR = "THRESHER_HUB"
"""Environment variable that names a folder laid out as `<owner>/<name>`; what is in it is used instead of the hub."""


def local_copy(name: str) -> str:
    """The folder that stands for a hub id in the mirror, or `name` itself when the mirror does not hold it."""
    mirror = os.environ.get(MIRROR)
    if not mirror or not name or Path(name).is_absolute():
        return name
    candidate = Path(mirror) / name
    return str(candidate) if candidate.exists() else name


def find_copy(name: str) -> str:
    """`local_copy` of a name that may be a path. Raises FileNotFoundError for a path where nothing is: it can be no hub id."""
    place = local_copy(name)
    is_path = Path(place).is_absolute() or place.startswith(".") or place.count("/") > 1
    if is_path and not Path(place).exists():
        raise FileNotFoundError(f"{name}: no such file or folder; give one that is there, or a hub id (<owner>/<name>)")
    return place
