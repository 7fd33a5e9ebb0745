"""A harvest into a bucket: killed and resumed from the command line, it is what a harvest into a folder is."""

import signal
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thresher.cli import app
from thresher.config import dump_config, validate
from thresher.data.store import verify_store
from thresher.harvest.run import HarvestConfig, run
from thresher.testing.store import tree

KILLED = """
import os, signal, sys
from pathlib import Path
from thresher.config import load_config
from thresher.data.store import StoreWriter
from thresher.harvest.run import HarvestConfig, run

write, last = StoreWriter.write, int(sys.argv[2])

def write_then_die(self, batch):
    write(self, batch)
    if batch.index == last:
        os.kill(os.getpid(), signal.SIGKILL)

StoreWriter.write = write_then_die
run(load_config(HarvestConfig, Path(sys.argv[1])))
"""
OWN = ("config.yaml", "provenance.json")
"""Files that say where and by what a store was made."""


def configure(out: str | Path, folder: Path) -> HarvestConfig:
    values = {
        "out": str(out),
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
        "source": {"kind": "scenes", "n_records": 37, "image_size": 24, "captions_per_image": 2},
        "hook_points": ["vision.1", "vision.embed", "text.embed"],
        "batch_size": 4,
        "items_per_shard": 10,
        "thumbnail": 8,
    }
    return validate(HarvestConfig, values, "test")


def test_a_killed_harvest_into_a_bucket_resumes_to_the_files_of_a_folder(
    open_clip_folder: Path, tmp_path: Path, place: str, python: Path
) -> None:
    whole = tree(run(configure(tmp_path / "store", open_clip_folder)))
    file = tmp_path / "harvest.yaml"
    file.write_text(dump_config(configure(place, open_clip_folder)))
    killed = subprocess.run([python, "-c", KILLED, str(file), "6"], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    invoke = CliRunner().invoke
    verified = invoke(app, ["store", "verify", place])
    assert verified.exit_code == 1
    assert "rerun the same harvest command to resume" in verified.stdout
    resumed = invoke(app, ["harvest", str(file)])
    assert resumed.exit_code == 0, resumed.stderr
    assert "resuming" in resumed.stderr
    found = tree(place)
    assert found.keys() == whole.keys()
    assert [name for name in whole if name not in OWN and found[name] != whole[name]] == []
    assert verify_store(place, level="checksums") == []
    assert "is complete" in invoke(app, ["harvest", str(file)]).stderr
    assert f"path: {place}" in invoke(app, ["store", "info", place]).stdout
    assert "vision.embed" in invoke(app, ["store", "head", place]).stdout


@pytest.mark.usefixtures("s3")
def test_wrong_credentials_stop_a_harvest_before_the_model_is_read(closed_s3, tmp_path: Path) -> None:
    file = tmp_path / "harvest.yaml"
    file.write_text(dump_config(configure("s3://activations/store", tmp_path / "no model")))
    result = CliRunner().invoke(app, ["harvest", str(file)], env={"AWS_ENDPOINT_URL": closed_s3.url})
    assert result.exit_code == 2
    assert "the server refuses these credentials; set AWS_ACCESS_KEY_ID" in result.stderr
