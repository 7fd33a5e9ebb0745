"""The laws of functional tests as part of an analysis: files, columns, labels, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from thresher.analyze.metrics.fidelity import rank_partners
from thresher.analyze.run import AnalyzeConfig, load_results, load_summary, run
from thresher.config import validate
from thresher.data.store import open_store
from thresher.data.stream import held_out, read_held_out
from thresher.errors import AnalysisError, ConfigError
from thresher.train.checkpoint import load_sae

SAES = ("topk", "mp")


def configure(store: Path, sae: Path, out: Path, **fields: Any) -> AnalyzeConfig:
    battery = {"calibration_pairs": 0, "n_derangements": 0}
    values = {"store": store, "saes": {"topk": sae}, "out": out, "n_bootstrap": 20, "battery": battery, "figures": "none"}
    return validate(AnalyzeConfig, values | {"site": {"build": False}} | fields, "test")


def find_numbers(value: Any):
    """Every reported number."""
    if isinstance(value, dict):
        if {"value", "n", "unit"} <= set(value):
            yield value
        else:
            for one in value.values():
                yield from find_numbers(one)


def test_recall_is_that_of_the_held_out_pairs(scenes_store: Path, scenes_saes: dict[str, Path], scenes_report: Path) -> None:
    store, trained = open_store(scenes_store), load_sae(scenes_saes["topk"])
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    record: dict[str, np.ndarray] = {}
    for name, hook_point in (("image", "vision.embed"), ("text", "text.embed")):
        x, _ = read_held_out(store, hook_point, fraction=0.4, seed=0, limit=None)
        x_hat = trained.decode(trained.encode(x, hook_point), hook_point)
        rows[name] = x.double().numpy(), x_hat.double().numpy()
        is_held_out = held_out(store, name, 0.4, 0)
        record[name] = store.items(name)["record"].to_numpy()[np.flatnonzero(is_held_out)]
    found = json.loads((scenes_report.parent / "topk" / "functional.json").read_text())
    for kind, place in (("raw", 0), ("reconstructed", 1)):
        ranks = rank_partners(rows["image"][place], rows["text"][place], record["image"], record["text"])
        for k in (1, 5, 10):
            told = found["baselines"][kind][f"image_to_text_r{k}"]
            # Reconstructions in another order of sums: a near tie may fall the other way.
            assert told["value"] == pytest.approx((ranks <= k).mean(), abs=0.004)
            assert told["n"] == len(ranks)
    assert found["baselines"]["raw"]["image_to_text_r1"]["value"] > 0.5
    whole, sets = found["baselines"]["reconstructed"], found["sets"]
    assert sets["shared"]["without"]["image_to_text_r1"]["high"] < whole["image_to_text_r1"]["low"]
    assert found["baselines"]["raw"]["zero_shot"]["value"] > 0.5


def test_every_number_has_an_n_a_unit_and_a_line_of_the_table(scenes_report: Path) -> None:
    for name in SAES:
        found = json.loads((scenes_report.parent / name / "functional.json").read_text())
        numbers = list(find_numbers(found))
        assert len(numbers) > 500
        for one in numbers:
            assert set(one) == {"value", "low", "high", "n", "unit"}
            if one["low"] is not None:
                assert one["low"] <= one["high"]
        with (scenes_report.parent / name / "functional.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(numbers)
        assert len({line["measure"] for line in lines}) == len(lines)
    assert found["tree"]["image"]["precedence_true"]["n"] > 0
    assert "precedence_true" not in json.loads((scenes_report.parent / "topk" / "functional.json").read_text())["tree"]["image"]


def test_the_summary_has_recall_after_and_before_reconstruction(scenes_report: Path) -> None:
    rows = {row["measure"]: row for row in load_summary(scenes_report.parent)}
    told = load_results(scenes_report.parent)["saes"]["topk"]["functional"]
    found = f"{told['reconstructed']['image_to_text_r1']['value']:.3f} ({told['raw']['image_to_text_r1']['value']:.3f})"
    assert rows["R@1, image to text (raw)"]["topk"] == found
    assert rows["zero-shot (raw)"]["mp"] != "-"


def test_without_a_vocabulary_or_a_judge_nothing_has_a_name(scenes_report: Path) -> None:
    table = pq.read_table(scenes_report.parent / "mp" / "features.parquet")
    for column in ("name_atom", "name_image", "name_text", "name_agreement", "judge_name", "judge_score"):
        assert table[column].null_count == table.num_rows


def test_names_labels_and_classes_from_files_are_used_and_those_that_do_not_fit_refused(
    scenes_store: Path, scenes_saes: dict[str, Path], tmp_path: Path
) -> None:
    store, sae = open_store(scenes_store), scenes_saes["topk"]
    keys = store.items("image")["key"].to_pylist()
    vectors = np.random.default_rng(0).normal(size=(6, 48))
    image = store.read("vision.embed", 0, len(keys)).double().numpy()
    label = (image @ vectors.T).argmax(axis=1)
    np.save(tmp_path / "words.npy", vectors)
    (tmp_path / "words.txt").write_text("\n".join(f"word{index}" for index in range(6)))
    lines = [f"{key},word{value}" for key, value in zip(keys[:650], label, strict=False)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label", *lines]))
    words = {"embeddings": tmp_path / "words.npy", "words": tmp_path / "words.txt"}
    functional = {"images": 60, "draws": 0, "steered": 0, "labels": tmp_path / "labels.csv", "classes": words}
    naming = {"vocabulary": words, "least_z": 0, "least_cosine": -1}
    report = run(configure(scenes_store, sae, tmp_path / "out", functional=functional, naming=naming))
    found = json.loads((report.parent / "topk" / "functional.json").read_text())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = (image @ unit.T).argmax(axis=1) == label
    assert found["baselines"]["raw"]["zero_shot"]["value"] == pytest.approx(expected.mean(), abs=0.2)
    assert found["judged"]["images"]["value"] == 60
    assert "same_energy" not in found["sets"]["shared"]
    assert set(found["names"]["shared"]) >= {"named_by_image", "agreement", "agreement_by_chance"}
    names = pq.read_table(report.parent / "topk" / "features.parquet")["name_atom"].to_pylist()
    assert set(names) <= {f"word{index}" for index in range(6)}
    np.save(tmp_path / "words.npy", vectors[:, :40])
    with pytest.raises(AnalysisError, match="embeddings of width 40, the dictionary works at width 48"):
        run(configure(scenes_store, sae, tmp_path / "again", naming=naming))
    assert not (tmp_path / "again").exists()
    np.save(tmp_path / "labels.npy", np.zeros(5, dtype=int))
    with pytest.raises(AnalysisError, match=r"int64 of shape \[5\], expected whole numbers \[700\]"):
        run(configure(scenes_store, sae, tmp_path / "again", functional={"images": 30, "labels": tmp_path / "labels.npy"}))


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for wrong, told in (
        ({"functional": {"images": -1}}, "images=-1"),
        ({"functional": {"logit_scale": 0}}, "logit_scale=0"),
        ({"functional": {"classes": {"store": "a"}}}, "give functional.labels too"),
        ({"judge": {"url": "localhost:1"}}, "expected http"),
        ({"judge": {"url": "http://localhost"}}, "name the model"),
        ({"naming": {"vocabulary": {}}}, "give either `store`"),
    ):
        with pytest.raises(ConfigError, match=told):
            configure(tmp_path, tmp_path, tmp_path, **wrong)
