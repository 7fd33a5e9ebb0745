"""Laws of the table that says whose the features of a crosscoder are."""

import csv
import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from thresher.cli import app
from thresher.data.stream import StreamConfig
from thresher.train.arch import BatchTopKCrosscoder, build
from thresher.train.arch.crosscoder import BatchTopKCrosscoderSAE
from thresher.train.checkpoint import load_sae, save_sae
from thresher.train.codes import densify
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer
from thresher.train.run import run
from thresher.train.sides import describe_sides, summarize_sides

NAMES = ("a", "b")
WIDTH, D_SAE = 8, 5


def make(shares: list[float]) -> BatchTopKCrosscoderSAE:
    """A crosscoder whose atoms are pairwise orthogonal and have these shares in the first of two hook points."""
    sae = build(BatchTopKCrosscoder(d_sae=D_SAE, k=2.0, widths=(WIDTH, WIDTH)), 2 * WIDTH, 0)
    assert isinstance(sae, BatchTopKCrosscoderSAE)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)))[0][:D_SAE]
    share = torch.tensor(shares)[:, None]
    with torch.no_grad():
        sae.dictionary.copy_(functional.normalize(torch.cat([directions * share, directions * (1 - share)], 1), dim=1))
        sae.encoder.copy_(sae.dictionary)
    return sae


def test_shares_classes_and_cosines_are_those_that_were_planted() -> None:
    sae = make([1.0, 0.95, 0.5, 0.7, 0.0])
    with torch.no_grad():
        sae.encoder[3] = 0
    scale = torch.tensor([2.0, 4.0])
    normalizer = Normalizer(False, torch.zeros(2, WIDTH), scale, (WIDTH, WIDTH))
    x = torch.randn(400, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    table = describe_sides(sae, normalizer, NAMES, [x[:150], x[150:]])
    assert table["belongs_to"].tolist() == ["a", "a", "shared", "dead", "b"]
    torch.testing.assert_close(torch.from_numpy(table["relative_norm/a"]), torch.tensor([1.0, 0.95, 0.5, 0.7, 0.0]))
    assert table["cosine/a|b"][1:4] == pytest.approx([1, 1, 1], abs=1e-5)
    assert table["norm/a"][0] == pytest.approx(1 / 2)
    assert table["norm/b"][4] == pytest.approx(1 / 4)
    dense = densify(sae.encode(normalizer.normalize(x, 0)), D_SAE).detach()
    assert table["fires"].tolist() == (dense > 0).sum(0).tolist()
    assert table["mean_value"][2] == pytest.approx(float(dense[:, 2][dense[:, 2] > 0].mean()))
    found = summarize_sides(table, len(x))
    assert found["features"] == {"a": 2, "b": 1, "shared": 1, "between": 0, "dead": 1}
    assert found["l0"]["b"] == pytest.approx(float((dense[:, [2, 4]] > 0).sum() / len(x)))


def test_the_scaling_is_the_least_squares_fit_of_the_main_part_to_what_other_atoms_leave() -> None:
    """An atom whose second part has shrunk in training but is in the data has a scaling of 1 there; an own one has 0."""
    sae = make([1.0, 1.0, 0.5, 0.5, 0.5])
    normalizer = Normalizer(False, torch.zeros(2, WIDTH), torch.ones(2), (WIDTH, WIDTH))
    z = torch.rand(300, 2, generator=torch.Generator().manual_seed(1))
    first, second = (part.detach() for part in sae.dictionary.split(WIDTH, dim=1))
    # Feature 0 is in both hook points with the same direction, feature 1 in the first only.
    x = torch.cat([z @ first[:2], z[:, :1] @ first[:1]], 1)
    table = describe_sides(sae, normalizer, NAMES, [x])
    assert table["scaling/a"][:2] == pytest.approx([1, 1], abs=1e-3)
    assert table["scaling/b"][:2] == pytest.approx([1, 0], abs=1e-3)
    noisy = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) / 5
    table = describe_sides(sae, normalizer, NAMES, [noisy])
    codes = densify(sae.encode(noisy), D_SAE).detach()
    others = noisy - codes @ sae.dictionary.detach() + codes[:, 2:3] * sae.dictionary.detach()[2]
    fit = torch.linalg.lstsq((codes[:, 2:3] * first[2]).reshape(-1, 1), others[:, WIDTH:].reshape(-1, 1)).solution
    assert second[2].norm() == pytest.approx(first[2].norm())
    assert table["scaling/b"][2] == pytest.approx(float(fit), rel=1e-3)


def test_evaluation_writes_the_table_beside_the_assessment(make_store, tmp_path: Path, capsys) -> None:
    config = TrainConfig(
        store=make_store(300, text_width=10),
        hook_points=("vision.embed", "text.embed"),
        sae=BatchTopKCrosscoder(d_sae=24, k=3.0),
        out=tmp_path / "sae",
        stream=StreamConfig(batch_size=64, holdout=0.3),
        rows=64 * 4,
        device="cpu",
        tensorboard=False,
    )
    run(config)
    assert "the budget is 4 optimizer steps" in capsys.readouterr().err
    done = CliRunner().invoke(app, ["sae", "evaluate", str(config.out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "features of" in done.output
    rows = list(csv.DictReader((config.out / "features.csv").read_text().splitlines()))
    table = pq.read_table(config.out / "features.parquet").to_pylist()
    assert len(rows) == len(table) == 24
    assert not any(name.startswith(("cosine", "scaling")) for name in rows[0])
    for row, other in zip(rows, table, strict=True):
        assert float(row["relative_norm/vision.embed"]) + float(row["relative_norm/text.embed"]) == pytest.approx(1)
        assert float(row["norm/text.embed"]) == other["norm/text.embed"]
    trained = load_sae(config.out)
    save_sae(tmp_path / "moved", dataclasses.replace(trained, config=dataclasses.replace(config, sae=trained.config.sae)))
    done = CliRunner().invoke(app, ["sae", "evaluate", str(tmp_path / "moved"), "--out", str(tmp_path / "new" / "a.json")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "features.csv").read_bytes() == (config.out / "features.csv").read_bytes()
    other = make_store(60, name="other")
    done = CliRunner().invoke(app, ["sae", "evaluate", str(config.out), "--store", str(other), "--device", "cpu"])
    assert done.exit_code == 2
    assert "widths [16, 16], the batch_topk_crosscoder was fitted to [16, 10]" in " ".join(done.output.split())
