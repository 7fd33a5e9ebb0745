"""A training on a store in a bucket is the training on the same store in a folder."""

import dataclasses
import json

from thresher.config import dump_config, load_config
from thresher.data.store import CacheConfig
from thresher.data.store.places import open_storage
from thresher.data.store.storage import write_file
from thresher.data.stream import StreamConfig
from thresher.testing.store import tree
from thresher.train.arch import MatchingPursuit
from thresher.train.config import TrainConfig
from thresher.train.run import run


def test_the_checkpoint_is_the_same_whether_the_store_is_near_or_far(make_store, place, tmp_path):
    near, far = make_store(), open_storage(place)
    for name, content in tree(near).items():
        if name not in ("run.json", "manifest.json") and not name.startswith("commits/"):
            write_file(far, name, [content])
    lock = far.lock()
    for name, content in tree(near).items():
        if name in ("run.json", "manifest.json") or name.startswith("commits/"):
            write_file(far, name, [content])
    lock.release()
    settings = TrainConfig(
        store=near,
        hook_points=("vision.embed", "text.embed"),
        sae=MatchingPursuit(d_sae=32, k=2),
        out=tmp_path / "near",
        stream=StreamConfig(batch_size=64, holdout=0.2, pool_rows=300),
        rows=64 * 30,
        device="cpu",
    )
    run(settings)
    remote = dataclasses.replace(
        settings, store=place, out=tmp_path / "far", cache=CacheConfig(folder=tmp_path / "cache", gigabytes=0.001)
    )
    (tmp_path / "far.yaml").write_text(dump_config(remote))
    assert load_config(TrainConfig, tmp_path / "far.yaml") == remote
    run(remote)
    assert (tmp_path / "far/model.safetensors").read_bytes() == (tmp_path / "near/model.safetensors").read_bytes()
    found = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("near", "far")]
    assert found[0]["store"] == found[1]["store"]
    assert found[0]["evaluation"] == found[1]["evaluation"]
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache/blocks").glob("*/*")) <= 1_000_000
