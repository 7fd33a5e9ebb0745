"""`thresher store ...` from the command line."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thresher.cli import app
from thresher.data.store import open_store

GOLDEN = Path(__file__).with_name("golden-store")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN, tmp_path / "store")


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["store", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_head_shows_items(store):
    shown = invoke("head", store, "--hook-point", "text.0", "-n", 2, "--start", 3)
    assert "text.0: 24 rows" in shown
    assert "r1#0" in shown
    assert "caption 1" in shown


def test_merge_refuses_equal_keys_and_puts_numbers_before_them_when_asked(store, tmp_path):
    assert "keys must be unique" in invoke("merge", tmp_path / "merged", store, store, code=2)
    invoke("merge", tmp_path / "merged", store, store, "--prefix-keys")
    assert open_store(tmp_path / "merged").rows("text.0") == 48


@pytest.mark.parametrize("profile", ["raw", "compact", "archive"])
def test_what_is_exported_is_imported_again(store, tmp_path, profile):
    invoke("export", store, tmp_path / "out.h5", "--to", "hdf5", "--hook-point", "vision.embed")
    command = "import", tmp_path / "out.h5", tmp_path / "again", "--modality", "image", "--profile"
    invoke(*command, profile)
    invoke(*command, profile)
    assert "of something else" in invoke(*command, "compact" if profile == "raw" else "raw", code=2)
    before, after = open_store(store), open_store(tmp_path / "again")
    assert after.profile == profile
    n_rows = before.rows("vision.embed")
    assert after.read("vision.embed", 0, n_rows).equal(before.read("vision.embed", 0, n_rows).float())


def test_verify_names_the_chunk_and_repair_says_what_a_harvest_will_redo(store):
    assert "uint16: vision.0" in invoke("retype", store, "--to", "uint16")
    assert invoke("repair", store).endswith(f"{store}: sound\n")
    shard = store / "acts.zarr/layers/vision.0/activations/c/1/0"
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    assert f"{shard}: crc32c" in invoke("verify", store, code=1)
    assert "image.tokens block 1 is to be made again" in invoke("repair", store, code=1)


def test_info_shows_the_moments(store):
    shown = invoke("info", store)
    for name in ("mean_norm", "norm_of_mean", "mean_square", "max_abs", "norm_quantiles"):
        assert name in shown
