"""The laws of the analysis as a stage: from a store and checkpoints to files, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from thresher.analyze.panels import open_panels, split_rows
from thresher.analyze.run import AnalyzeConfig, load_results, load_summary, run
from thresher.config import validate
from thresher.data.store import open_store
from thresher.data.stream import read_held_out
from thresher.errors import AnalysisError, CheckpointError, ConfigError, StoreError
from thresher.train.checkpoint import load_sae


def configure(store: Path, saes: dict[str, Path], out: Path, **fields: Any) -> AnalyzeConfig:
    values = {"store": store, "saes": saes, "out": out, "n_bootstrap": 20, "functional": {"images": 0}, "figures": "none"}
    values |= {"site": {"build": False}, "battery": {"calibration_pairs": 0, "n_derangements": 1}}
    return validate(AnalyzeConfig, values | fields, "test")


def find_estimates(value: Any):
    """Every reported number in metrics.json."""
    if isinstance(value, dict):
        if {"value", "n", "unit"} <= set(value):
            yield value
        for one in value.values():
            yield from find_estimates(one)


def test_r2_and_l0_are_those_of_the_held_out_rows(
    scenes_store: Path, scenes_saes: dict[str, Path], scenes_report: Path
) -> None:
    found = load_results(scenes_report.parent)["saes"]["topk"]["reconstruction"]
    trained = load_sae(scenes_saes["topk"])
    pooled = []
    for modality, hook_point in (("image", "vision.embed"), ("text", "text.embed")):
        x, _ = read_held_out(open_store(scenes_store), hook_point, fraction=0.4, seed=0, limit=None)
        x_hat = trained.decode(trained.encode(x, hook_point), hook_point)
        pooled.append((x.double(), x_hat.double()))
        expected = 1 - float(((x - x_hat).double() ** 2).sum() / ((x - x.mean(0)).double() ** 2).sum())
        assert found[modality]["r2"]["value"] == pytest.approx(expected, rel=1e-5)
        assert found[modality]["r2"]["n"] == len(x)
        assert found[modality]["r2"]["low"] < expected < found[modality]["r2"]["high"]
        assert found[modality]["l0"]["value"] == pytest.approx(12, abs=0.1)
    x = np.concatenate([one for one, _ in pooled])
    error = np.concatenate([one - other for one, other in pooled])
    expected = 1 - np.square(error).sum() / np.square(x - x.mean(0)).sum()
    assert found["pooled"]["r2"]["value"] == pytest.approx(expected, rel=1e-5)


def test_every_number_has_its_n_and_unit_and_lies_in_its_interval(scenes_report: Path) -> None:
    found = list(find_estimates(load_results(scenes_report.parent)))
    assert len(found) > 60
    for one in found:
        assert isinstance(one["n"], int)
        assert one["unit"]
        if one.get("low") is not None:
            assert one["low"] <= one["high"]


def test_chunks_change_no_number(scenes_store: Path, scenes_saes: dict[str, Path], scenes_report: Path, tmp_path: Path) -> None:
    one = {"mp": scenes_saes["mp"]}
    run(configure(scenes_store, one, tmp_path, n_bootstrap=40, chunk_rows=37, functional={}, battery={}))
    whole, parts = (list(find_estimates(load_results(folder)["saes"]["mp"])) for folder in (scenes_report.parent, tmp_path))
    assert len(whole) == len(parts) > 60
    for one, other in zip(whole, parts, strict=True):
        for key in ("value", "low", "high", "n"):
            assert (one.get(key) is None) == (other.get(key) is None)
            assert (one.get(key) or 0) == pytest.approx(other.get(key) or 0, rel=1e-6), (one, other)


def test_the_table_of_features_has_all_of_them_and_agrees_with_the_counts(scenes_report: Path) -> None:
    results = load_results(scenes_report.parent)
    for name, found in results["saes"].items():
        table = pq.read_table(scenes_report.parent / "features" / f"{name}.parquet").to_pydict()
        assert table["feature"] == list(range(128))
        counts = {kind: table["class"].count(kind) for kind in found["modality"]["classes"]}
        assert counts == found["modality"]["classes"]
        assert sum(concept is not None for concept in table["concept"]) == found["truth"]["matched"]["value"]
        alive = [mu for mu in table["mu_energy"] if mu is not None]
        assert all(0 <= mu <= 1 for mu in alive)
        assert sum(table["gap_share"]) == pytest.approx(1)


def test_the_dictionaries_of_a_world_with_private_concepts_have_all_three_classes(scenes_report: Path) -> None:
    found = load_results(scenes_report.parent)["saes"]["topk"]
    for kind in ("shared", "image", "text"):
        assert found["modality"]["classes"][kind] > 0
        assert found["truth"]["classes"][kind]["precision"]["n"] > 0
    shared = found["truth"]["classes"]["shared"]
    assert shared["precision"]["value"] > shared["precision_by_chance"]
    assert found["truth"]["matched"]["by_chance"] < 1


def test_the_table_of_concepts_has_every_concept_once_per_dictionary(scenes_store: Path, scenes_report: Path) -> None:
    with (scenes_report.parent / "concepts.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [concept.name for concept in open_store(scenes_store).concepts]
    for sae in ("topk", "mp"):
        assert [row["concept"] for row in rows if row["sae"] == sae] == names
    recovered = [row for row in rows if row["recovered"] == "True"]
    assert recovered
    assert all(row["class"] == row["visibility"] for row in recovered)


def test_the_summary_is_text_in_the_order_of_the_configuration(scenes_report: Path) -> None:
    rows = load_summary(scenes_report.parent)
    assert {tuple(row) for row in rows} == {("measure", "topk", "mp")}
    assert all(isinstance(cell, str) for row in rows for cell in row.values())
    assert {"L0", "R2 image", "R2 text", "recall, shared (n concepts)"} <= {row["measure"] for row in rows}


def test_an_analysis_says_what_it_was_made_from(scenes_store: Path, scenes_report: Path) -> None:
    provenance = json.loads((scenes_report.parent / "provenance.json").read_text())
    assert provenance["inputs"]["store"] == open_store(scenes_store).fingerprint
    assert set(provenance["inputs"]) == {"store", "saes.topk", "saes.mp"}
    assert (scenes_report.parent / "config.yaml").is_file()


def test_equal_runs_give_equal_files(scenes_store: Path, scenes_saes: dict[str, Path], tmp_path: Path) -> None:
    config = configure(scenes_store, {"topk": scenes_saes["topk"]}, tmp_path / "out", limit=150, site={}, battery={})
    first = {path.name: path.read_bytes() for path in run(config).parent.rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "out")
    second = {path.name: path.read_bytes() for path in run(config).parent.rglob("*") if path.is_file()}
    assert [name for name in first if first[name] != second[name]] == []
    assert json.loads(first["metrics.json"])["held_out"]["records"] == 150


def test_a_store_of_one_modality_has_reconstruction_and_no_modality(make_store, make_sae, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 150, modalities=("text",))
    sae = make_sae(store, tmp_path / "sae", ("text.embed",), rows=5_000)
    results = load_results(run(configure(store, {"one": sae}, tmp_path / "out")).parent)
    assert set(results["saes"]["one"]["reconstruction"]) == {"text"}
    assert not {"modality", "truth", "splice"} & set(results["saes"]["one"])
    assert "R2" in [row["measure"] for row in load_summary(tmp_path / "out")]
    assert not (tmp_path / "out" / "concepts.csv").exists()


def test_a_source_without_ground_truth_is_analyzed_without_and_says_so(
    make_store, make_sae, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store", 150, states_concepts=False)
    sae = make_sae(store, tmp_path / "sae", rows=5_000)
    results = load_results(run(configure(store, {"one": sae}, tmp_path / "out")).parent)
    assert "modality" in results["saes"]["one"]
    assert "truth" not in results["saes"]["one"]
    assert "no ground truth" in capfd.readouterr().err
    assert any("no ground truth" in warning for warning in results["warnings"])


def test_a_checkpoint_of_another_store_is_refused(make_store, scenes_saes: dict[str, Path], tmp_path: Path) -> None:
    other = make_store(tmp_path / "store", 70)
    with pytest.raises(AnalysisError, match="was trained on the store"):
        run(configure(other, scenes_saes, tmp_path / "out"))


def test_an_unknown_hook_point_is_refused_with_the_nearest_names(
    scenes_store: Path, scenes_saes: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(AnalysisError, match=r"no hook point 'vision.embd'; nearest: vision.embed"):
        run(configure(scenes_store, scenes_saes, tmp_path, image="vision.embd"))
    with pytest.raises(AnalysisError, match="reads texts"):
        run(configure(scenes_store, scenes_saes, tmp_path, image="text.embed"))


def test_a_hook_point_that_a_dictionary_was_not_trained_on_is_refused(
    scenes_store: Path, scenes_saes: dict[str, Path], make_sae, tmp_path: Path
) -> None:
    texts = make_sae(scenes_store, tmp_path / "sae", ("text.embed",), rows=2_000)
    saes = scenes_saes | {"texts": texts}
    with pytest.raises(AnalysisError, match=r"no hook point in common .*texts: none"):
        run(configure(scenes_store, saes, tmp_path / "out"))
    with pytest.raises(AnalysisError, match=r"texts was trained on text.embed"):
        run(configure(scenes_store, saes, tmp_path / "out", image="vision.embed"))


def test_dictionaries_that_held_out_different_records_are_not_compared(
    scenes_store: Path, scenes_saes: dict[str, Path], make_sae, tmp_path: Path
) -> None:
    other = make_sae(scenes_store, tmp_path / "sae", rows=2_000, seed=1)
    with pytest.raises(AnalysisError, match=r"held out different records .*seed=1"):
        run(configure(scenes_store, scenes_saes | {"other": other}, tmp_path / "out"))


def test_without_held_out_items_there_is_nothing_to_measure(scenes_store: Path) -> None:
    with pytest.raises(AnalysisError, match=r"no held-out rows at text\.embed"):
        open_panels(open_store(scenes_store), ["text.embed"], 0.0, 0, None)


@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 10_000])
def test_chunks_never_cut_a_record_and_hold_every_row_once(scenes_store: Path, chunk_rows: int) -> None:
    panel = open_panels(open_store(scenes_store), ["vision.embed", "text.embed"], 0.4, 0, None)["text"]
    parts = list(split_rows(panel, chunk_rows))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(panel.rows)))
    records = [set(panel.record[panel.item[part]]) for part in parts]
    assert sum(len(found) for found in records) == len(set.union(*records))
    assert all(part.stop - part.start <= max(chunk_rows, 2) for part in parts)


def test_what_is_missing_is_named(scenes_store: Path, scenes_saes: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        run(configure(tmp_path / "nowhere", scenes_saes, tmp_path / "out"))
    with pytest.raises(CheckpointError, match="nothing"):
        run(configure(scenes_store, {"one": tmp_path / "nothing"}, tmp_path / "out"))
    with pytest.raises(AnalysisError, match=r"metrics.json is missing"):
        load_summary(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(AnalysisError, match="not an analysis of this version"):
        load_results(tmp_path)


def test_an_output_folder_that_cannot_be_written_is_named(
    scenes_store: Path, scenes_saes: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AnalysisError, match="choose another `out`"):
        run(configure(scenes_store, scenes_saes, tmp_path / "file" / "out", limit=60))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"saes": {}}, "at least one checkpoint"),
        ({"saes": {"a/b": "x"}}, "becomes a file name"),
        ({"n_bootstrap": 3}, "n_bootstrap=3"),
        ({"limit": 0}, "limit=0"),
        ({"thresholds": {"image_above": 0.1, "text_below": 0.2}}, "text_below=0.2"),
        ({"thresholds": {"alpha": 0}}, "alpha=0"),
        ({"thresholds": {"rare_below": 0}}, "rare_below=0"),
        ({"gallery": {"items": -1}}, "items=-1"),
        ({"splice": {"documents": -1}}, "documents=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(AnalyzeConfig, {"store": "s", "saes": {"a": "b"}, "out": "o"} | fields, "test")


def test_an_unusable_device_is_refused(scenes_store: Path, scenes_saes: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='abacus'"):
        run(configure(scenes_store, scenes_saes, tmp_path, device="abacus"))
