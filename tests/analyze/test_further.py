"""The laws of what stands beside the verdicts: further columns, examples, probes of concepts, figures that are drawn again."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from thresher.analyze.functional.concepts import PENALTY, fit_logistic
from thresher.analyze.metrics.angle import erase, fit_erasure
from thresher.cli import app


@pytest.fixture(scope="module")
def features(scenes_report: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(scenes_report.parent / "mp" / "features.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def test_further_columns_agree_with_those_of_the_verdicts(features: dict[str, np.ndarray]) -> None:
    alive = features["status"] != "dead"
    tested = np.isfinite(features["rho"])
    assert (features["rho_low"] <= features["rho"] + 1e-9)[tested].all()
    assert (features["rho"] <= features["rho_high"] + 1e-9)[tested].all()
    np.testing.assert_allclose(features["energy_length_image"], np.abs(features["mean_image"]), atol=1e-12)
    np.testing.assert_allclose(features["energy_square_length_text"], features["mean_text"] ** 2, atol=1e-12)
    # Each image is a row of its own, each record has two captions.
    assert np.nanmax(features["rows_per_record_image"]) == 1
    assert 1 <= np.nanmin(features["rows_per_record_text"]) <= np.nanmax(features["rows_per_record_text"]) <= 2
    p = features["mu_count"][alive]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(np.nan_to_num(p * np.log2(p)) + np.nan_to_num((1 - p) * np.log2(1 - p)))
    np.testing.assert_allclose(features["firing_entropy"][alive], entropy, atol=1e-9)
    one_sided = (features["n_fire_text"] == 0) & (features["n_fire_image"] > 0)
    assert (features["modality_auc"][one_sided] > 0.5).all()
    paired = one_sided & (features["n_pair_image"] > 0)
    assert (features["dominance"][paired] == 1).all()
    for name in ("gini_image", "entropy_text", "purity_image", "label_jaccard", "subspace_share"):
        known = features[name][np.isfinite(features[name])]
        assert len(known)
        assert ((known >= -1e-9) & (known <= 1 + 1e-9)).all(), name


def test_examples_are_the_items_of_the_largest_codes_strongest_first(
    scenes_report: Path, features: dict[str, np.ndarray]
) -> None:
    table = pq.read_table(scenes_report.parent / "mp" / "examples.parquet").to_pydict()
    feature, rank = np.array(table["feature"]), np.array(table["rank"])
    code, side = np.abs(table["code"]), np.array(table["modality"])
    assert len(set(zip(feature, side, rank, strict=True))) == len(rank)
    for name in ("image", "text"):
        chosen = side == name
        counts = np.bincount(feature[chosen], minlength=len(features["feature"]))
        np.testing.assert_array_equal(counts, np.minimum(features[f"n_fire_{name}"], 8))
        order = np.lexsort((rank[chosen], feature[chosen]))
        falls = np.diff(code[chosen][order]) <= 1e-12
        assert falls[np.diff(feature[chosen][order]) == 0].all()


def test_the_logistic_probe_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 4)) @ np.diag([1, 2, 0.5, 1]) + 3
    present = x[:, 0] + generator.normal(size=80) > 3
    weights, intercept = fit_logistic(x, present)
    scale = PENALTY * len(x) * x.var(axis=0).mean()
    other = LogisticRegression(C=1 / scale, tol=1e-10, max_iter=1000).fit(x, present)
    np.testing.assert_allclose(weights, other.coef_[0], rtol=1e-4)
    assert intercept == pytest.approx(float(other.intercept_[0]), rel=1e-3)


def test_after_erasure_the_modalities_have_one_mean() -> None:
    generator = np.random.default_rng(0)
    image, text = generator.normal(size=(50, 5)) + 1, generator.normal(size=(60, 5)) @ np.diag([1, 2, 1, 1, 3])
    erasure, middle = fit_erasure(image, text), (image.mean(axis=0) + text.mean(axis=0)) / 2
    means = [erase(one, erasure, middle).mean(axis=0) for one in (image, text)]
    np.testing.assert_allclose(means[0], means[1], atol=1e-9)


def test_figures_of_a_finished_analysis_are_drawn_again_and_its_manifest_follows(scenes_report: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(scenes_report.parent, copy, ignore=shutil.ignore_patterns("site", "03-*", "07-*", "09-*", "1*"))
    target = copy / "figures" / "06-partners.csv"
    before = target.read_bytes()
    target.write_text("changed")
    result = CliRunner().invoke(app, ["analyze", "figures", str(copy), "--which", "few"])
    assert result.exit_code == 0, result.output
    assert target.read_bytes() == before
    files = json.loads((copy / "manifest.json").read_text())["files"]
    assert "figures/10-ablation.png" not in files
    for name in files:
        assert hashlib.sha256((copy / name).read_bytes()).hexdigest() == files[name], name
    (copy / "manifest.json").unlink()
    refused = CliRunner().invoke(app, ["analyze", "figures", str(copy)])
    assert refused.exit_code != 0
    assert "no finished analysis" in refused.output
