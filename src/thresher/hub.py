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
