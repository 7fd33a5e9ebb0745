"""Laws of training straight from a model: the result is that of a training on the store that was not written."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thresher.cli import app
from thresher.config import validate
from thresher.data.holdout import held_out
from thresher.data.store import open_store
from thresher.errors import ConfigError, StoreError
from thresher.harvest.run import HarvestConfig, open_harvest
from thresher.harvest.run import run as harvest
from thresher.online.ahead import read_ahead
from thresher.online.config import complete
from thresher.online.live import LiveStream
from thresher.online.run import run
from thresher.online.sequence import Block, Place, RowSequence, reduce_weights
from thresher.train.checkpoint import load_sae
from thresher.train.learner import Learner
from thresher.train.run import TrainConfig
from thresher.train.run import run as train

NAMES = ["vision.embed", "text.embed"]
SCALE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


def describe(out: Path, folder: Path, **stream: Any) -> dict[str, Any]:
    """A training of 14 iterations on 45 images with two captions each."""
    return {
        "harvest": {
            "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
            "source": {"kind": "scenes", "n_records": 45, "image_size": 24, "captions_per_image": 2},
            "batch_size": 4,
            "device": "cpu",
        },
        "train": {
            "hook_points": NAMES,
            "sae": {"kind": "mp", "d_sae": 16, "k": 2},
            "out": str(out),
            "stream": {"batch_size": 16, "holdout": 0.2} | stream,
            "rows": 16 * 14,
            "log_every": 3,
            "evaluate_every": 5,
            "checkpoint_every": 4,
            "device": "cpu",
        },
    }


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def store(open_clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the harvest of `describe` would write."""
    folder = tmp_path_factory.mktemp("online")
    values = describe(folder, open_clip_folder)["harvest"] | {"out": str(folder / "store"), "hook_points": NAMES}
    return Path(harvest(validate(HarvestConfig, values, "test")))


def test_what_fits_into_memory_trains_as_from_a_store_to_the_last_bit(
    store: Path, open_clip_folder: Path, tmp_path: Path
) -> None:
    values = describe(tmp_path / "online", open_clip_folder)
    assert run(complete(values, "test")) == tmp_path / "online"
    stored = values["train"] | {"store": str(store), "out": str(tmp_path / "stored")}
    train(validate(TrainConfig, stored, "test"))
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("online", "stored"))
    assert ours == theirs
    assert read_log(tmp_path / "online") == read_log(tmp_path / "stored")
    found, expected = load_sae(tmp_path / "online"), load_sae(tmp_path / "stored")
    assert found.evaluation == expected.evaluation
    assert found.store_identity == expected.store_identity
    assert run(complete(values, "test")) == tmp_path / "online"
    with pytest.raises(Exception, match="holds another run"):
        run(complete(values | {"train": values["train"] | {"seed": 1}}, "test"))


@pytest.mark.parametrize("balance", ["equal", "rows"])
def test_a_harvest_beside_the_training_goes_on_bit_for_bit(
    open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: str
) -> None:
    """The process dies in iteration 11, in the second epoch, after the checkpoint of iteration 8."""
    whole, cut = (describe(tmp_path / name, open_clip_folder, pool_rows=70, balance=balance) for name in ("whole", "cut"))
    run(complete(whole, "test"))
    step = Learner.step

    def step_or_die(self: Learner, x: torch.Tensor) -> Any:
        if self.done == 10:
            raise KeyboardInterrupt
        return step(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", step_or_die)
        with pytest.raises(KeyboardInterrupt):
            run(complete(cut, "test"))
    assert load_sae(tmp_path / "cut").iteration == 8
    run(complete(cut, "test"))
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole"))
    assert ours == theirs
    assert read_log(tmp_path / "cut") == read_log(tmp_path / "whole")


def test_an_epoch_beside_the_training_has_every_training_row_and_no_held_out_one(store: Path, open_clip_folder: Path) -> None:
    opened = open_store(store)
    config = complete(describe(Path("unused"), open_clip_folder), "test")
    with open_harvest(config.harvest) as harvested:
        specs = [spec for name in NAMES for spec in harvested.specs if spec.name == name]
        read = list(harvested.read(range(3)))
        everything = RowSequence(harvested, specs, read, weights=None, holdout=0.2, seed=0)
        blocks = read_epoch(everything)
        for group, name in enumerate(NAMES):
            rows = ~held_out(opened, opened.hook_points[name].modality, 0.2, 0)[opened.item_of(name)]
            expected = opened.read(name, 0, opened.rows(name))[torch.from_numpy(rows)]
            assert torch.equal(torch.cat([block.x[block.group == group] for block in blocks]), expected)
        weighted = RowSequence(harvested, specs, read, weights=[1, 2], holdout=0.2, seed=0)
        counts = np.array([[int((block.group == group).sum()) for group in (0, 1)] for block in read_epoch(weighted)])
        assert (counts[:, 1] == 2 * counts[:, 0]).all()
        assert counts[:, 0].tolist() == [int((block.group == 0).sum()) for block in blocks]
        nothing = RowSequence(harvested, specs, read, weights=None, holdout=1 - 1e-12, seed=0)
        with pytest.raises(StoreError, match="no rows to train on are left"):
            list(nothing.read(Place(0, 0, 0)))


def read_epoch(sequence: RowSequence) -> list[Block]:
    """The blocks of the first epoch."""
    found: list[Block] = []
    for block in sequence.read(Place(0, 0, 0)):
        if block.place.epoch:
            return found
        found.append(block)
    raise AssertionError


class Counted:
    """A sequence whose rows are their own numbers."""

    sizes = (5, 0, 31, 2, 17)

    def read(self, place: Place):
        epoch, first, before = place
        while True:
            for batch in range(first, len(self.sizes)):
                numbers = torch.arange(before, before + self.sizes[batch])
                yield Block(Place(epoch, batch, before), numbers.float()[:, None], numbers % 2)
                before += self.sizes[batch]
            epoch, first = epoch + 1, 0


@pytest.mark.parametrize(("pool_rows", "batch_size"), [(1, 3), (100, 7), (4000, 33)])
def test_a_pool_hands_out_every_row_once_and_goes_on_from_any_batch(pool_rows: int, batch_size: int) -> None:
    def open_stream() -> LiveStream:
        return LiveStream(
            Counted().read, 1, batch_size=batch_size, pool_rows=pool_rows, seed=3, ahead=2, device=torch.device("cpu")
        )

    stream, batches, states = open_stream(), [], []
    iterator = iter(stream)
    for _ in range(60):
        batches.append(next(iterator))
        states.append(stream.state_dict())
    iterator.close()
    rows = torch.cat([batch.x[:, 0] for batch in batches])
    assert len(rows.unique()) == len(rows) == 60 * batch_size
    assert rows.max() < len(rows) + pool_rows
    assert all((batch.group.diff() >= 0).all() and (batch.x[:, 0] % 2 == batch.group).all() for batch in batches)
    for done in (0, 17, 44):
        resumed = open_stream()
        resumed.load_state_dict(json.loads(json.dumps(states[done])))
        again = iter(resumed)
        for expected in batches[done + 1 :]:
            assert torch.equal(next(again).x, expected.x)
        again.close()


def test_what_cannot_be_trained_beside_a_harvest_is_refused(open_clip_folder: Path, tmp_path: Path) -> None:
    values = describe(tmp_path / "out", open_clip_folder, pool_rows=70)
    del values["train"]["rows"]
    with pytest.raises(ConfigError, match="give the budget in rows, or more pool_rows"):
        run(complete(values, "test"))
    with pytest.raises(ConfigError, match=r"train\.hook_points: 'text\.embed' is none of harvest\.hook_points"):
        run(complete(values | {"harvest": values["harvest"] | {"hook_points": ["vision.embed"]}}, "test"))
    with pytest.raises(ConfigError, match="harvest: expected a group of fields"):
        complete({"train": values["train"]}, "test")
    with pytest.raises(ConfigError, match="small whole numbers"):
        reduce_weights({"vision.embed": 2**0.5}, NAMES)
    assert reduce_weights({"vision.embed": 1.5, "text.embed": 0.5}, NAMES) == [3, 1]


def test_an_error_in_a_thread_is_raised_in_its_turn() -> None:
    def count():
        yield 1
        raise ConfigError("broken")

    items = read_ahead(count(), 2)
    assert next(items) == 1
    with pytest.raises(ConfigError, match="broken"):
        next(items)


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SCALE.read_text(encoding="utf-8")
    (config,) = re.findall(r"^```yaml\n(# online\.yaml\n.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^thresher (online .*)$", text, flags=re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "online.yaml").write_text(config)
    # Less of it: the second command still has more rows than its pool, and goes through the harvest several times.
    less = ["harvest.source.n_records=90", "train.rows=1024"]
    for command in commands:
        app([*command.split(), *less], standalone_mode=False)
    assert load_sae(tmp_path / "runs/online").evaluation["r2"] > 0
    assert load_sae(tmp_path / "runs/live").evaluation["r2"] > 0
