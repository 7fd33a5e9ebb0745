"""A harvest stores the same rows in every profile, and knows a finished store by its profile too."""

from pathlib import Path

import pytest
import torch

from thresher.config import validate
from thresher.data.store import open_store
from thresher.errors import StoreError
from thresher.harvest.run import HarvestConfig, run

HOOK_POINT = "vision.pooled"


def make_config(out: Path, folder: Path, **changes: object) -> HarvestConfig:
    values = {
        "out": out,
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
        "source": {"kind": "scenes", "n_records": 5, "image_size": 24, "captions_per_image": 1},
        "hook_points": [HOOK_POINT],
        "dtype": "bfloat16",
        "thumbnail": 0,
    }
    return validate(HarvestConfig, values | changes, "test")


def test_the_profile_changes_the_bytes_of_a_harvest_and_not_its_rows(open_clip_folder: Path, tmp_path: Path) -> None:
    raw = open_store(run(make_config(tmp_path / "raw", open_clip_folder)))
    config = make_config(tmp_path / "compact", open_clip_folder, profile="compact", portable_dtype=True)
    for _ in range(2):
        packed = open_store(run(config))
        assert (packed.profile, packed.portable_dtype, packed.identity) == ("compact", True, raw.identity)
        assert torch.equal(packed.read(HOOK_POINT, 0, 5), raw.read(HOOK_POINT, 0, 5))
    with pytest.raises(StoreError, match=r'profile: stored "compact", asked for "archive"'):
        run(make_config(tmp_path / "compact", open_clip_folder, profile="archive", portable_dtype=True))
