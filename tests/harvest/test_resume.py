"""A harvest that was stopped, however it was stopped, ends as if it had not been."""

import hashlib
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from thresher.config import dump_config, validate
from thresher.data.store import Batch, StoreWriter, open_store, verify_store
from thresher.errors import StoreError
from thresher.harvest.run import HarvestConfig, run

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


def make_config(out: Path, folder: Path, **changes: Any) -> HarvestConfig:
    values: dict[str, Any] = {
        "out": out,
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
        "source": {"kind": "scenes", "n_records": 37, "image_size": 24, "captions_per_image": 2},
        "hook_points": ["vision.1", "vision.embed", "text.1", "text.embed"],
        "batch_size": 4,
        "items_per_shard": 5,
        "thumbnail": 8,
    }
    return validate(HarvestConfig, values | changes, "test")


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the lock and the two that say where and by what the store was made."""
    skipped = {".lock", "config.yaml", "provenance.json"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in skipped]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def unharmed(open_clip_folder: Path, tmp_path: Path) -> dict[str, str]:
    """The files of a harvest that nothing stopped."""
    return digest_files(run(make_config(tmp_path / "unharmed", open_clip_folder)))


def test_a_killed_harvest_ends_with_the_same_files(
    open_clip_folder: Path, tmp_path: Path, unharmed: dict[str, str], python: Path
) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    (tmp_path / "harvest.yaml").write_text(dump_config(settings))
    command = [python, "-c", KILLED, str(tmp_path / "harvest.yaml"), "5"]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with pytest.raises(StoreError, match="rerun the same harvest command to resume"):
        open_store(settings.out)
    run(settings)
    assert digest_files(settings.out) == unharmed
    assert verify_store(settings.out, level="checksums") == []


def test_control_c_leaves_a_store_to_resume(
    open_clip_folder: Path,
    tmp_path: Path,
    unharmed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    write = StoreWriter.write

    def write_then_interrupt(self: StoreWriter, batch: Batch) -> None:
        write(self, batch)
        if batch.index == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", write_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    assert not open_store(settings.out, incomplete="prefix").is_complete
    run(settings)
    assert "resuming" in capsys.readouterr().err
    assert digest_files(settings.out) == unharmed


def test_an_unfinished_store_of_another_harvest_is_not_continued(
    open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)

    def fail(self: StoreWriter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    with pytest.raises(StoreError, match="batch_size"):
        run(make_config(tmp_path / "store", open_clip_folder, batch_size=8))
    run(settings)
    assert verify_store(settings.out, level="checksums") == []


def test_the_number_of_workers_decides_nothing(open_clip_folder: Path, tmp_path: Path, unharmed: dict[str, str]) -> None:
    assert digest_files(run(make_config(tmp_path / "store", open_clip_folder, workers=5))) == unharmed
