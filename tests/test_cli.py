"""Laws of the command line: what a user types, reads and gets back."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from thresher.cli import app
from thresher.config import describe
from thresher.pipeline import RunConfig

TRAIN = {
    "hook_points": ["vision.embed", "text.embed"],
    "sae": {"kind": "mp", "d_sae": 16, "k": 3},
    "stream": {"batch_size": 16, "holdout": 0.5},
    "rows": 320,
    "evaluate_every": 1000,
    "checkpoint_every": 5,
}
HARVEST = {
    "model": {"kind": "open-clip", "name": "scenes"},
    "source": {"kind": "scenes", "n_records": 96, "seed": 3},
    "hook_points": ["vision.embed", "text.embed"],
    "batch_size": 16,
    "items_per_shard": 16,
    "thumbnail": 16,
}
ANALYZE = {
    "n_bootstrap": 20,
    "thresholds": {"min_items": 2},
    "figures": "none",
    "site": {"build": False},
    "functional": {"images": 0},
    "battery": {"calibration_pairs": 0, "n_derangements": 1},
}
CONFIG = {"out": "out", "harvest": HARVEST, "train": {"mp": TRAIN}, "analyze": ANALYZE}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def refused(*arguments: str | Path) -> str:
    """The message of a command that ends with exit code 2 and no traceback."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file by its path; not TensorBoard's, which hold the time."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.name != "lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run, in the working directory, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = invoke("run", write(folder / "run.yaml", CONFIG))
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture
def home(finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run as working directory."""
    shutil.copytree(finished[0], tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_a_run_prints_its_table_and_where_the_report_is(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert re.search(r"^measure +mp *$", result.stdout, re.MULTILINE)
    assert re.search(r"^L0 +3\.0 *$", result.stdout, re.MULTILINE)
    assert f"report: {folder / 'out/report/report.html'}" in result.stdout
    assert (folder / "out/report/report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_second_run_repeats_nothing_and_prints_the_same(home: Path, finished: tuple[Path, Result]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*") if path.is_file()}
    again = invoke("run", "run.yaml")
    assert again.exit_code == 0
    table, _, _ = again.stdout.partition("report:")
    assert table == finished[1].stdout.partition("report:")[0]
    assert {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*") if path.is_file()} == before
    assert [line.partition(":")[0] for line in again.stderr.splitlines()] == ["harvest", "training mp", "train", "analyze"]


def test_each_stage_alone_gives_the_files_of_a_run(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = {
        "harvest": HARVEST | {"out": "out/store"},
        "train": TRAIN | {"store": "out/store", "out": "out/sae/mp"},
        "analyze": ANALYZE | {"store": "out/store", "saes": {"mp": "out/sae/mp"}, "out": "out/report"},
    }
    for stage, values in stages.items():
        result = invoke(stage, write(tmp_path / f"{stage}.yaml", values))
        assert result.exit_code == 0, result.output
    alone, together = read_files(tmp_path / "out"), read_files(finished[0] / "out")
    assert alone.keys() == together.keys()
    # matplotlib writes the time of day into PDF files.
    assert [name for name in alone if alone[name] != together[name] and not name.endswith(".pdf")] == []


def test_a_moved_run_goes_on_where_it_lies(home: Path) -> None:
    shutil.move(home / "out", home / "elsewhere")
    shutil.rmtree(home / "elsewhere/sae/mp")
    result = invoke("run", "run.yaml", "out=elsewhere")
    assert result.exit_code == 0, result.output
    assert "harvest: elsewhere/store is complete" in result.stderr
    assert (home / "elsewhere/sae/mp/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("harvest.batchsize=3", "harvest.batchsize: unknown field; did you mean 'batch_size'?"),
        ("harvest.batch_size=many", "harvest.batch_size: input should be a valid integer"),
        ("train.mp.sae.k=17", "k=17: pick between 1 and d_sae=16"),
        ("train={}", "train: name at least one"),
        ("out=5", "out: expected the folder of the run, found 5"),
        ("batch_size", "override 'batch_size': expected key=value"),
        ("harvest.hook_points=[vision.embd]", "'vision.embed' is none of harvest.hook_points (vision.embd); mend either"),
        (
            "harvest.hook_points=[vision.embed, text.embed, vision.embd]",
            "hook point vision.embd: this model has no such place; nearest: vision.embed",
        ),
        ("harvest.source.seed=4", "holds a complete harvest of something else; choose another `out`"),
        ("train.mp.sae.k=2", "out/sae/mp: holds another run: sae.k is 3 there, 2 here"),
        ("analyze.image=vision.0", "no hook point 'vision.0'; nearest: vision.embed"),
        ("out=run.yaml", "run.yaml/store: cannot write the store (Not a directory)"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_changed(home: Path, override: str, expected: str) -> None:
    before = read_files(home)
    assert expected in refused("run", "run.yaml", override)
    assert read_files(home) == before


@pytest.mark.parametrize("path", ["missing.yaml", "out", "out/sae/mp/model.safetensors"])
def test_what_is_no_configuration_is_refused(home: Path, path: str) -> None:
    assert f"error: {path}: " in refused("run", path)


@pytest.mark.parametrize(
    ("stage", "out"), [("harvest", "out/sae/mp"), ("harvest", "."), ("train", "out/store"), ("analyze", "out/store")]
)
def test_no_stage_writes_into_the_folder_of_something_else(home: Path, stage: str, out: str) -> None:
    stages = {
        "harvest": HARVEST,
        "train": TRAIN | {"store": "out/store"},
        "analyze": ANALYZE | {"store": "out/store", "saes": {"mp": "out/sae/mp"}},
    }
    config = write(home / "stage.yaml", stages[stage] | {"out": out})
    before = read_files(home)
    assert "the folder holds other things" in refused(stage, config)
    assert read_files(home) == before


def test_a_training_refused_by_its_store_can_be_mended_in_place(home: Path) -> None:
    config = write(home / "train.yaml", TRAIN | {"store": "out/store", "out": "new"})
    assert "no hook point 'vision.embd'; the store has vision.embed" in refused("train", config, "hook_points=[vision.embd]")
    assert "none of its 96 rows is left for training" in refused("train", config, "stream.holdout=0.999")
    assert "do not fit into memory" in refused("train", config, "sae.d_sae=10000000000000")
    assert "device='mps': expected auto, cpu" in refused("train", config, "device=mps")
    assert invoke("train", config).exit_code == 0


@pytest.mark.parametrize("damage", ["config.yaml", "config.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_named(home: Path, damage: str) -> None:
    (home / "out/sae/mp" / damage).write_bytes(b"")
    (home / "out/sae/mp/model.safetensors").unlink(missing_ok=damage == "config.yaml")
    assert "out/sae/mp" in refused("run", "run.yaml")


def test_a_dictionary_of_another_store_is_refused(home: Path) -> None:
    narrow = write(home / "narrow.yaml", HARVEST | {"out": "narrow", "hook_points": ["vision.3", "text.embed"], "limit": 32})
    assert invoke("harvest", narrow).exit_code == 0
    config = write(home / "analyze.yaml", ANALYZE | {"store": "narrow", "saes": {"mp": "out/sae/mp"}, "out": "report"})
    assert "mp was trained on the store" in refused("analyze", config)


def test_an_unfinished_store_tells_how_to_go_on(home: Path) -> None:
    (home / "out/store/manifest.json").unlink()
    config = write(home / "train.yaml", TRAIN | {"store": "out/store", "out": "new"})
    assert "rerun the same harvest command to resume" in refused("train", config)
    assert "complete: False" in invoke("store", "info", "out/store").stdout


@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_a_store_of_another_version_is_refused(home: Path, name: str) -> None:
    path = home / "out/store" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    assert "store format version 99, this thresher reads version 1" in refused("store", "info", "out/store")


def test_a_complete_store_that_lost_a_record_is_refused_with_its_name(home: Path) -> None:
    (home / "out/store/commits/items/00000001.json").unlink()
    assert "commits/items/00000001.json is missing" in refused("store", "info", "out/store")


def test_unreadable_images_and_long_texts_are_counted_or_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(buffer, "PNG")
    (tmp_path / "good.png").write_bytes(buffer.getvalue())
    (tmp_path / "bad.png").write_bytes(buffer.getvalue()[:60])
    long = "a red square " * 100
    (tmp_path / "table.jsonl").write_text(
        "".join(json.dumps({"image": f"{name}.png", "caption": long}) + "\n" for name in ("good", "bad"))
    )
    source = {"kind": "image-captions", "folder": str(tmp_path), "table": "table.jsonl"}
    config = write(tmp_path / "harvest.yaml", HARVEST | {"out": "store", "source": source, "items_per_shard": None})
    assert "bad.png" in refused("harvest", config, "on_unreadable=stop")
    result = invoke("harvest", config)
    assert result.exit_code == 0, result.output
    assert "1 unreadable, 2 truncated" in result.stderr


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/table.csv").write_text("image,caption\n")
    source = {"kind": "image-captions", "folder": str(tmp_path / "images"), "table": "table.csv"}
    config = write(tmp_path / "harvest.yaml", HARVEST | {"out": str(tmp_path / "store"), "source": source})
    assert str(tmp_path / "images") in refused("harvest", config)
    assert not (tmp_path / "store").exists()


def test_verify_names_a_flipped_byte_and_exits_1(home: Path) -> None:
    assert invoke("store", "verify", "out/store").stdout == "out/store: sound\n"
    shard = max((home / "out/store/acts.zarr").rglob("c/*/0"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    result = invoke("store", "verify", "out/store")
    assert result.exit_code == 1
    assert str(shard.relative_to(home)) in result.stdout


def test_stores_and_dictionaries_tell_what_they_are(home: Path) -> None:
    info = invoke("store", "info", "out/store").stdout
    assert "complete: True" in info
    assert "name: scenes" in info
    assert "rows: 96" in info
    assert re.search(r"out/store +open-clip scenes +", invoke("store", "ls", "out").stdout)
    assert "no activation store here" in invoke("store", "ls", "out/sae").stdout
    assert "missing: no such folder" in refused("store", "ls", "missing")
    sae = invoke("sae", "info", "out/sae/mp").stdout
    assert "kind: mp" in sae
    assert "is_finished: True" in sae
    assert "no checkpoint of a dictionary" in refused("sae", "info", "run.yaml")


@pytest.mark.parametrize("command", ["harvest", "train", "analyze", "pretrain", "run"])
def test_help_prints_every_field_with_its_docs(command: str) -> None:
    text = " ".join(invoke(command, "--help").stdout.split())
    field = {"run": None}.get(command, command)
    docs = [doc for doc in describe(RunConfig) if field is None or doc.path.startswith(f"{field}.")]
    assert command == "pretrain" or docs
    for doc in docs:
        assert doc.doc, f"{doc.path} has no docs"
        if field is None:
            assert f"{doc.path}: {' '.join(doc.type.split())}" in text
        assert " ".join(doc.doc.split()) in text


def start(program: Path, *arguments: str, cwd: Path, stderr: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment["TERM"] = "xterm"
    command = [program, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)


STOPPED = """
import itertools, os, signal, sys
import torch
from thresher.cli import main
from thresher.data.store import StoreWriter

def stop_at(owner, name, last, number):
    calls, function = itertools.count(), getattr(owner, name)
    def signalled(*arguments, **keywords):
        if next(calls) == last:
            os.kill(os.getpid(), number)
        return function(*arguments, **keywords)
    setattr(owner, name, signalled)

if sys.argv.pop(1) == "Ctrl-C":
    stop_at(StoreWriter, "write", 2, signal.SIGINT)
else:
    stop_at(torch.optim.Adam, "step", 8, signal.SIGTERM)
main()
"""
"""`thresher`, which gets Ctrl-C when it harvests its third batch, or SIGTERM in the ninth iteration of a training."""


def test_a_run_stopped_twice_ends_with_the_files_of_one_that_was_not(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: Path
) -> None:
    write(tmp_path / "run.yaml", CONFIG)
    for signalled in ("Ctrl-C", "SIGTERM"):
        process = start(python, "-c", STOPPED, signalled, "run", "run.yaml", cwd=tmp_path)
        out, err = process.communicate()
        assert (process.returncode, out) == (130, ""), err
        assert "Run the same command again to go on from there." in err
        assert not re.search(r"Traceback|\x1b|\r", err)
        assert (tmp_path / "out/store/manifest.json").exists() == (signalled == "SIGTERM")
    assert '"is_finished": false' in (tmp_path / "out/sae/mp/config.json").read_text()
    monkeypatch.chdir(tmp_path)
    result = invoke("run", "run.yaml")
    assert result.exit_code == 0, result.output
    found, expected = (read_files(folder / "out") for folder in (tmp_path, finished[0]))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_progress_is_a_bar_on_a_terminal_and_never_on_stdout(home: Path, python: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(python.with_name("thresher"), "store", "verify", "out/store", cwd=home, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux: the other side is closed
        pass
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0, shown
    assert out == "out/store: sound\n"
    assert b"verify out/store" in shown
    assert b"\x1b[" in shown
