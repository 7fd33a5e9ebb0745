"""Laws of a sweep: members end as if trained alone, also when it is killed or grows, and its tables compare fairly."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from architectures import list_over_batches, list_over_rows
from typer.testing import CliRunner

from thresher.cli import app
from thresher.config import dump_config
from thresher.data.stream import StreamConfig
from thresher.errors import CheckpointError, ConfigError
from thresher.train import run as single
from thresher.train.arch import (
    BatchTopK,
    BatchTopKCrosscoder,
    MatchingPursuit,
    Relu,
    TopK,
)
from thresher.train.checkpoint import load_sae
from thresher.train.classical import KMeans
from thresher.train.config import TrainConfig
from thresher.train.optimizer import OptimizerConfig
from thresher.train.sweep import member, together
from thresher.train.sweep.config import GridConfig, MemberConfig, SearchConfig, SweepConfig
from thresher.train.sweep.outcome import read_outcome
from thresher.train.sweep.run import read_table, run

FILES = ("config.json", "model.safetensors")
NAMES = ("vision.embed", "text.embed")
MP, TOPK, RELU = MatchingPursuit(d_sae=32, k=2), TopK(d_sae=32, k=3), Relu(d_sae=32, l0=3.0)
MakeStore = Callable[..., Path]


def configure(store: Path, out: Path, iterations: int = 30, **fields) -> SweepConfig:
    base = TrainConfig(
        store=store,
        hook_points=NAMES,
        sae=MP,
        out=out,
        stream=StreamConfig(batch_size=64, holdout=0.2),
        rows=64 * iterations,
        log_every=7,
        evaluate_every=10,
        checkpoint_every=10,
        device="cpu",
        tensorboard=False,
    )
    return SweepConfig(out=out, base=base, **fields)


def contents(folder: Path) -> list[bytes]:
    """The checkpoint's bytes, with its own folder taken out of the configuration."""
    return [(folder / name).read_bytes().replace(str(folder).encode(), b"OUT") for name in FILES]


def members(out: Path) -> dict[str, list[bytes]]:
    return {folder.name: contents(folder) for folder in sorted((out / "members").iterdir())}


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_members_end_bit_for_bit_as_if_each_were_trained_alone(make_store: MakeStore, tmp_path: Path) -> None:
    """Every architecture that is trained in steps, two seeds of one of them, and a member with an optimizer of its own."""
    saes = [*list_over_rows(32, 12), *list_over_batches(32)]
    named = {f"{index}-{sae.kind}": MemberConfig(sae=sae) for index, sae in enumerate(saes)}
    named["own"] = MemberConfig(sae=TOPK, optimizer=OptimizerConfig(lr=0.01, ema=0.9, clip=None))
    settings = configure(make_store(), tmp_path / "sweep", 12, members=named, seeds=(5,))
    run(settings)
    for name, chosen in named.items():
        alone = dataclasses.replace(
            settings.base,
            sae=chosen.sae,
            optimizer=chosen.optimizer or settings.base.optimizer,
            init_seed=5,
            out=tmp_path / "alone" / name,
        )
        single.run(alone)
        assert contents(settings.out / "members" / f"{name}-seed=5") == contents(alone.out), name


def test_seeds_differ_in_the_dictionary_they_start_from_only(make_store: MakeStore, tmp_path: Path) -> None:
    settings = configure(make_store(), tmp_path / "sweep", 2, architectures={"mp": MP}, seeds=(0, 1))
    run(settings)
    first, second = (load_sae(settings.out / "members" / f"mp-seed={seed}") for seed in (0, 1))
    assert not torch.equal(first.sae.dictionary, second.sae.dictionary)
    assert torch.equal(first.normalizer.mean, second.normalizer.mean)
    assert (first.config.seed, first.config.init_seed, second.config.seed, second.config.init_seed) == (0, 0, 0, 1)


KILLED = """
import os, signal, sys
from pathlib import Path
from thresher.train import session
from thresher.train.sweep.run import load, run
save, done = session.save_state, [0]
def die(*arguments):
    done[0] += 1
    if done[0] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    save(*arguments)
session.save_state = die
run(load(Path(sys.argv[1])))
"""
"""A sweep of three that is killed at its second checkpoint when one member is saved and two are not."""


def test_a_sweep_killed_among_its_checkpoints_goes_on_bit_for_bit(make_store: MakeStore, tmp_path: Path, python: Path) -> None:
    store, three = make_store(), {"mp": MP, "topk": TOPK, "relu": RELU}
    whole, killed = (configure(store, tmp_path / name, architectures=three) for name in ("whole", "killed"))
    run(whole)
    text = dump_config(killed).replace(f"  out: {killed.out}\n", "")
    (tmp_path / "sweep.yaml").write_text(text)
    done = subprocess.run([python, "-c", KILLED, str(tmp_path / "sweep.yaml")], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    stopped = [load_sae(killed.out / "members" / f"{name}-seed=0").iteration for name in three]
    assert stopped == [20, 10, 10]
    run(killed)
    assert members(killed.out) == members(whole.out)
    assert all(read_outcome(folder) is not None for folder in (killed.out / "members").iterdir())


def test_ctrl_c_saves_all_members_and_the_sweep_goes_on_bit_for_bit(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, two = make_store(), {"mp": MP, "topk": TOPK}
    whole, stopped = (configure(store, tmp_path / name, architectures=two) for name in ("whole", "stopped"))
    run(whole)
    with monkeypatch.context() as patch:
        step, done = torch.optim.Adam.step, [0]

        def interrupt(*arguments, **named):
            done[0] += 1
            if done[0] == 25:
                os.kill(os.getpid(), signal.SIGINT)
            return step(*arguments, **named)

        patch.setattr(torch.optim.Adam, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    assert [load_sae(stopped.out / "members" / f"{name}-seed=0").iteration for name in two] == [13, 13]
    run(stopped)
    assert members(stopped.out) == members(whole.out)


def test_members_added_later_come_out_as_if_there_from_the_start(make_store: MakeStore, tmp_path: Path) -> None:
    """A new architecture and a new seed, with a search. What was finished is not touched."""
    store = make_store()
    less = {"architectures": {"batch": BatchTopK()}, "grid": GridConfig(l0=(2.0,), d_sae=(32,), lr=(0.001, 0.01))}
    more = {
        "architectures": {"relu": Relu(), **less["architectures"]},
        "grid": GridConfig(l0=(2.0,), d_sae=(32,), lr=(0.001, 0.01)),
    }
    search = SearchConfig(rungs=(0.5,), l0_tries=2)
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    run(configure(store, grown, 10, search=search, **less))
    before = {path: path.stat().st_mtime_ns for path in (grown / "members").rglob("*") if path.is_file()}
    run(configure(store, grown, 10, search=search, seeds=(0, 1), **more))
    run(configure(store, whole, 10, search=search, seeds=(0, 1), **more))
    assert len(before) > 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert members(grown) == members(whole)
    assert len(members(grown)) == 2 * 2
    timed = {"seconds", "folder"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows(grown, "members.csv")] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows(whole, "members.csv")
    ]


def test_a_batch_is_read_and_normalised_once_for_all_members(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, set[int]] = {}
    kept = []
    take = member.Member.take

    def note(self, x, position):
        kept.append(x)
        seen.setdefault(self.done, set()).add(id(x))
        return take(self, x, position)

    monkeypatch.setattr(member.Member, "take", note)
    run(configure(make_store(), tmp_path / "sweep", 5, architectures={"mp": MP, "topk": TOPK, "relu": RELU}))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert all(len(ids) == 1 for ids in seen.values())
    assert len(kept) == 15


def test_a_member_that_diverges_is_reported_and_the_others_end_as_without_it(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    fierce = MemberConfig(sae=RELU, optimizer=OptimizerConfig(lr=1e30, clip=None, warmup=0.0))
    calm = {"mp": MemberConfig(sae=MP)}
    settings = configure(store, tmp_path / "both", members={"fierce": fierce, **calm}, seeds=(0, 1))
    run(settings)
    run(configure(store, tmp_path / "calm", members=calm, seeds=(0, 1)))
    both = members_of(settings.out, "mp")
    assert both == members_of(tmp_path / "calm", "mp")
    table = {row["group"]: row for row in read_table(settings.out)}
    assert table["fierce"]["note"] == "DIVERGED: 2 of 2"
    assert table["fierce"]["R2 vision.embed"] == "-"
    assert table["mp"]["note"] == ""
    found = [row for row in rows(settings.out, "members.csv") if row["group"] == "fierce"]
    assert all("stopped being finite at iteration" in row["diverged"] and row["l0"] == "" for row in found)
    before = (settings.out / "members" / "fierce-seed=0" / "cost.json").stat().st_mtime_ns
    run(settings)
    assert (settings.out / "members" / "fierce-seed=0" / "cost.json").stat().st_mtime_ns == before


def members_of(out: Path, name: str) -> list[list[bytes]]:
    return [contents(folder) for folder in sorted((out / "members").glob(f"{name}-*"))]


def test_off_target_members_are_marked_and_corrected_ones_are_reported_instead(make_store: MakeStore, tmp_path: Path) -> None:
    """A penalty that hardly moves ends far from the wanted L0; one full training more brings it nearer."""
    stiff = Relu(d_sae=32, l1=3.0, l0_rate=1e-9)
    fields = {"architectures": {"stiff": stiff}, "grid": GridConfig(l0=(4.0,))}
    store = make_store()
    left, corrected = (
        configure(store, tmp_path / name, 40, corrections=n, **fields) for name, n in (("left", 0), ("corrected", 2))
    )
    for settings in (left, corrected):
        run(settings)
    (first,), (last,) = rows(left.out, "members.csv"), rows(corrected.out, "members.csv")
    assert first["off_target"] == "True"
    assert read_table(left.out)[0]["note"] == "OFF TARGET: 1 of 1"
    assert "OFF TARGET: 1 of 1" in (left.out / "table.md").read_text()
    assert abs(float(last["l0"]) / 4 - 1) < abs(float(first["l0"]) / 4 - 1)
    assert Path(last["folder"]).parent.parent.name == "corrected"
    assert load_sae(last["folder"]).evaluation["l0"] == float(last["l0"])
    # What the tries that were left out took is not forgotten.
    assert float(rows(corrected.out, "table.csv")[0]["search_seconds"]) > 0


def test_the_search_keeps_the_learning_rate_that_explains_most(make_store: MakeStore, tmp_path: Path) -> None:
    """Two of three rates are hopelessly small; two go on from the first rung, one from the second."""
    grid = GridConfig(lr=(1e-7, 0.01, 1e-6))
    settings = configure(make_store(), tmp_path / "sweep", 20, architectures={"mp": MP}, grid=grid)
    settings = dataclasses.replace(settings, search=SearchConfig(rungs=(0.4, 0.8)))
    run(settings)
    found = rows(settings.out, "search.csv")
    assert [row["rung"] for row in found] == ["1"] * 3 + ["2"] * 2
    best = max((row for row in found if row["rung"] == "2"), key=lambda row: float(row["r2"]))
    assert best["lr"] == "0.01"
    assert rows(settings.out, "table.csv")[0]["lr"] == "0.01"
    assert load_sae(settings.out / "members" / "mp-seed=0").config.optimizer.lr == 0.01
    assert all(float(row["seconds"]) > 0 for row in found)
    assert read_table(settings.out)[0]["note"] == "lr at the edge of its list"


def test_the_tables_hold_what_the_members_reached(make_store: MakeStore, tmp_path: Path) -> None:
    settings = configure(make_store(), tmp_path / "sweep", architectures={"mp": MP, "topk": TOPK}, seeds=(0, 1, 2))
    path = tmp_path / "sweep.yaml"
    path.write_text(dump_config(settings).replace(f"  out: {settings.out}\n", ""))
    done = CliRunner().invoke(app, ["sweep", str(path)])
    assert done.exit_code == 0, done.output
    assert str(settings.out / "table.md") in done.output
    found = rows(settings.out, "members.csv")
    assert pq.read_table(settings.out / "members.parquet").to_pylist()[0]["member"] == found[0]["member"] == "mp-seed=0"
    for row in found:
        trained = load_sae(row["folder"])
        assert trained.is_finished
        assert float(row["r2/vision.embed"]) == trained.evaluation["hook_points"]["vision.embed"]["r2"]
        sizes = sum(tensor.nbytes for tensor in trained.sae.state_dict().values())
        assert int(row["parameter_bytes"]) == sizes
        assert int(row["state_bytes"]) > sizes
        assert float(row["seconds"]) > 0
    summary = {row["group"]: row for row in rows(settings.out, "table.csv")}
    for name in ("mp", "topk"):
        values = torch.tensor([float(row["r2/text.embed"]) for row in found if row["group"] == name], dtype=torch.float64)
        mean, high = (float(summary[name][f"r2/text.embed{end}"]) for end in ("", "/high"))
        assert mean == pytest.approx(values.mean().item())
        # Student's t with two degrees of freedom: 4.303.
        assert high - mean == pytest.approx(4.302653 * values.std().item() / 3**0.5, rel=1e-5)
    curves = rows(settings.out, "curve.csv")
    assert [row["iteration"] for row in curves if row["member"] == "mp-seed=1"] == ["0", "10", "20", "30"]
    shown = {row["group"]: row for row in read_table(settings.out)}
    assert all(shown[name]["dead"].split(" ")[0] == f"{float(summary[name]['dead']):.3f}" for name in shown)
    result = json.loads((settings.out / "sweep.json").read_bytes())
    assert result["equal_time_seconds"] == min(float(row["seconds"]) for row in found)
    assert "+-" in (settings.out / "table.md").read_text()


def test_what_is_fitted_once_and_what_reads_hook_points_side_by_side_is_compared_too(
    make_store: MakeStore, tmp_path: Path
) -> None:
    """k-means beside an SAE and a crosscoder, each as trained alone."""
    named = {"kmeans": KMeans(d_sae=32, k=2), "cross": BatchTopKCrosscoder(d_sae=32, k=3.0), "mp": MP}
    members = {name: MemberConfig(sae=sae) for name, sae in named.items()}
    settings = configure(make_store(), tmp_path / "sweep", 5, members=members)
    run(settings)
    for name, sae in named.items():
        alone = dataclasses.replace(settings.base, sae=sae, init_seed=0, out=tmp_path / "alone" / name)
        single.run(alone)
        assert contents(settings.out / "members" / f"{name}-seed=0")[1] == contents(alone.out)[1], name
    table = {row["group"]: row for row in rows(settings.out, "table.csv")}
    assert all(float(row["seconds"]) > 0 and row["r2/vision.embed"] != "" for row in table.values())


def test_what_cannot_be_swept_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    settings = configure(store, tmp_path / "sweep", 2, architectures={"mp": MP})
    run(settings)
    other = dataclasses.replace(settings, architectures={"mp": MatchingPursuit(d_sae=32, k=3)})
    with pytest.raises(CheckpointError, match=r"mp-seed=0: holds another run: sae\.k is 2 there, 3 here"):
        run(other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"holds other things \(thesis\.tex\)"):
        run(dataclasses.replace(settings, out=tmp_path / "full"))
    small = configure(store, tmp_path / "small", architectures={"mp": MP}, grid=GridConfig(l0=(50.0,), d_sae=(32,)))
    with pytest.raises(ConfigError, match="mp-l0=50-d_sae=32: cannot be set to an L0 of 50"):
        run(small)


def test_a_damaged_cost_file_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    settings = configure(make_store(), tmp_path / "sweep", 2, architectures={"mp": MP})
    run(settings)
    cost = settings.out / "members" / "mp-seed=0" / "cost.json"
    cost.write_text("{")
    with pytest.raises(CheckpointError, match=r"cost\.json: damaged"):
        run(settings)


def test_a_pass_that_is_already_done_opens_no_stream(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configure(make_store(), tmp_path / "sweep", 2, architectures={"mp": MP})
    run(settings)
    monkeypatch.setattr(together, "_train", lambda *_: pytest.fail("trains again"))
    run(settings)
