"""A bucket passes the suite of stores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from thresher.data.store import StoreWriter
from thresher.testing.store import CONCEPTS, HOOK_POINTS, IDENTITY, StoreSuite


@pytest.mark.usefixtures("s3")
class TestRemoteStore(StoreSuite):
    """The suite on a bucket."""

    def open_writer(self, path: str | Path, identity: Mapping[str, Any] = IDENTITY) -> StoreWriter:
        return StoreWriter(path, identity, HOOK_POINTS, CONCEPTS, items_per_shard=8)

    def place(self, path: Path) -> str:
        return f"s3://activations/{path.parent.name}/{path.name}"
