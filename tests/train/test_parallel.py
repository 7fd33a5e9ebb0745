"""Laws of training by several processes: the result is that of one, whoever has which rows and which atoms."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from thresher.config import dump_config
from thresher.data.stream import StreamConfig
from thresher.errors import ConfigError
from thresher.train.arch import PCA, BatchTopKCrosscoder, MatchingPursuit, Relu, TopK
from thresher.train.checkpoint import load_sae
from thresher.train.config import TrainConfig
from thresher.train.parallel.coders import check_shards
from thresher.train.parallel.layout import refuse_shared_devices
from thresher.train.run import run
from thresher.train.sweep.config import GridConfig, SearchConfig, SweepConfig

Launch = Callable[..., Any]


@pytest.fixture(scope="module")
def launch(open_launcher: Callable[[Path], AbstractContextManager[Launch]]) -> Iterator[Launch]:
    """Lets n processes do a check of `parallel_checks` and waits for them."""
    with open_launcher(Path(__file__).with_name("parallel_checks.py")) as start:
        yield start


def passed(ended: Any) -> bool:
    """Whether all processes ended well; shows what the others wrote."""
    sys.stdout.write("\n".join(log for code, log in zip(ended.codes, ended.logs, strict=True) if code))
    return not any(ended.codes)


def test_shared_rows_train_like_one_process_with_the_whole_batch(launch: Launch) -> None:
    assert passed(launch(3, "exchange"))
    assert passed(launch(3, "share_rows"))


@pytest.mark.parametrize(("n", "n_shards"), [(3, 3), (4, 2)])
def test_split_dictionaries_train_like_whole_ones(launch: Launch, n: int, n_shards: int) -> None:
    assert passed(launch(n, "split_atoms", n_shards))


def configure(store: Path, out: Path, **fields) -> TrainConfig:
    settings = {
        "sae": TopK(d_sae=32, k=2, dead_after=300),
        "stream": StreamConfig(batch_size=48, holdout=0.2),
        "rows": 48 * 20,
        "log_every": 7,
        "evaluate_every": 4,
        "checkpoint_every": 8,
        # So that the state has a copy of the best dictionary.
        "patience": 9,
        "device": "cpu",
    } | fields
    return TrainConfig(store=store, hook_points=("vision.embed", "text.embed"), out=out, **settings)


def compare_runs(found: Path, expected: Path) -> None:
    """Checkpoints, evaluations and logs agree to rounding."""
    ours, theirs = load_sae(found), load_sae(expected)
    for name, value in theirs.sae.state_dict().items():
        torch.testing.assert_close(ours.sae.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    for name in ("r2", "fvu", "l0", "dead", "cosine"):
        assert ours.evaluation[name] == pytest.approx(theirs.evaluation[name], rel=1e-3, abs=1e-4)
    logs = [[json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()] for out in (found, expected)]
    assert [line.keys() for line in logs[0]] == [line.keys() for line in logs[1]]
    for line, wanted in zip(*logs, strict=True):
        assert line.pop("kind") == wanted.pop("kind")
        assert line == pytest.approx(wanted, rel=2e-3, abs=1e-3)


def test_a_launch_trains_what_one_process_trains_also_after_a_kill(launch: Launch, make_store, tmp_path: Path) -> None:
    """Two processes with shares of the rows; two with halves of the dictionary, of which one dies, and one goes on alone."""
    alone = run(configure(make_store(), tmp_path / "alone"))
    config = tmp_path / "train.yaml"
    config.write_text(dump_config(configure(tmp_path / "store", tmp_path / "rows")))
    ended = launch(2, "run_command", "train", str(config))
    assert passed(ended)
    assert str(tmp_path / "rows") in ended.logs[0]
    assert ended.logs[1] == ""
    compare_runs(tmp_path / "rows", alone)
    again = launch(2, "run_command", "train", str(config))
    assert passed(again)
    assert "is finished" in again.logs[0]
    split = ["train", str(config), f"out={tmp_path / 'atoms'}", "parallel.dictionary_shards=2"]
    ended = launch(2, "run_killed", 1, 13, *split)
    assert ended.codes == [2, -signal.SIGKILL]
    assert "another process of this launch has ended" in ended.logs[0]
    assert load_sae(tmp_path / "atoms").iteration == 8
    run(configure(tmp_path / "store", tmp_path / "atoms"))
    compare_runs(tmp_path / "atoms", alone)


def test_accelerate_launch_trains_what_one_process_trains(make_store, tmp_path: Path, python: Path) -> None:
    alone = run(configure(make_store(), tmp_path / "alone"))
    config = tmp_path / "train.yaml"
    config.write_text(dump_config(configure(tmp_path / "store", tmp_path / "two")))
    launcher = [python, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", "0", "-m", "thresher", "train", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(tmp_path / "two")]
    compare_runs(tmp_path / "two", alone)


def test_processes_share_out_the_members_of_a_sweep_and_change_no_bit_of_them(
    launch: Launch, make_store, tmp_path: Path
) -> None:
    """Searched, with a crosscoder's stream and a dictionary that is fitted once, in two processes and in one."""
    base = configure(make_store(), tmp_path, patience=None, tensorboard=False, rows=48 * 6)
    grid = GridConfig(l0=(2.0,), lr=(3e-3, 1e-2))
    saes = {"mp": MatchingPursuit(d_sae=32, k=2), "both": BatchTopKCrosscoder(d_sae=32), "pca": PCA(d_sae=8, k=2)}
    search = SearchConfig(rungs=(0.5,), l0_tries=1)
    settings = SweepConfig(out=tmp_path, base=base, architectures=saes, grid=grid, seeds=(0, 1), search=search, corrections=0)
    for name, n in (("one", 1), ("two", 2)):
        config = tmp_path / f"{name}.yaml"
        out = dataclasses.replace(settings, out=tmp_path / name)
        config.write_text(dump_config(out).replace(f"  out: {tmp_path}\n", ""))
        assert passed(ended := launch(n, "run_command", "sweep", str(config)))
    assert "table:" in ended.logs[0]
    assert ended.logs[1] == ""
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("model.safetensors")}
    assert len(files) >= 8
    for file in files:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file


def test_what_cannot_be_shared_is_refused_with_a_way_out(launch: Launch, make_store, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(dump_config(configure(make_store(), tmp_path / "out")))
    ended = launch(2, "run_command", "train", str(config), "stream.batch_size=49")
    assert ended.codes == [2, 2]
    assert "need a multiple of 2; give 48 or 50" in " ".join(ended.logs[0].split())
    ended = launch(2, "run_command", "train", str(config), "parallel.dictionary_shards=3")
    assert ended.codes == [2, 2]
    assert "2 processes do not form groups of 3" in " ".join(ended.logs[0].split())
    with pytest.raises(ConfigError, match=r"only dictionaries of mp and topk can be split, sae\.kind is relu"):
        check_shards(Relu(d_sae=8), 2)
    with pytest.raises(ConfigError, match="dropout of atoms is not split"):
        check_shards(MatchingPursuit(d_sae=8, k=2, dropout=0.5), 2)


def test_each_process_needs_a_gpu_of_its_own_or_all_a_cpu() -> None:
    refuse_shared_devices([("a", "cpu"), ("a", "cpu")])
    refuse_shared_devices([("a", "cuda:0"), ("a", "cuda:1"), ("b", "cuda:0")])
    with pytest.raises(ConfigError, match="2 processes on b have the same GPU, cuda:0"):
        refuse_shared_devices([("a", "cuda:0"), ("b", "cuda:0"), ("b", "cuda:0")])
    with pytest.raises(ConfigError, match="one on b has none"):
        refuse_shared_devices([("a", "cuda:0"), ("b", "cpu")])
