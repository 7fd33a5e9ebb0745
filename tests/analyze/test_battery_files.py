"""The laws of the files of an analysis: they are what docs/analysis.md says, agree with each other; bad input is refused."""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from thresher.analyze.battery.classes import CLASSES
from thresher.analyze.run import AnalyzeConfig, load_results, load_summary, run
from thresher.analyze.statistics.file import load_sums
from thresher.config import validate
from thresher.data.store import open_store
from thresher.errors import AnalysisError, ConfigError

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "analysis.md"
SAES = ("topk", "mp")


def configure(store: Path, saes: dict[str, Path], out: Path, **fields: Any) -> AnalyzeConfig:
    battery = {"calibration_pairs": 0, "n_derangements": 1} | fields.pop("battery", {})
    values = {
        "store": store,
        "saes": saes,
        "out": out,
        "n_bootstrap": 20,
        "battery": battery,
        "functional": {"images": 0},
        "figures": "none",
        "site": {"build": False},
    }
    return validate(AnalyzeConfig, values | fields, "test")


def read_columns(title: str) -> list[str]:
    """The columns that the documentation promises for a table."""
    section = DOCS.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def read_groups(report: Path, name: str) -> dict[str, Any]:
    return json.loads((report.parent / name / "groups.json").read_text())


def test_the_tables_have_the_columns_that_the_documentation_promises(scenes_report: Path) -> None:
    expanded = {"energy_<class>": [f"energy_{name.replace('-', '_')}" for name in CLASSES]}
    for name, title in (("features", "features.parquet"), ("edges", "edges.parquet"), ("steps", "steps.parquet")):
        promised = [column for one in read_columns(title) for column in expanded.get(one, [one])]
        found = pq.read_schema(scenes_report.parent / "mp" / f"{name}.parquet").names
        assert sorted(found) == sorted(promised), name
    assert not (scenes_report.parent / "topk" / "steps.parquet").exists()
    assert set(read_columns("groups.json")) >= set(read_groups(scenes_report, "mp"))


def test_classes_edges_and_headline_agree_with_the_table_of_features(scenes_report: Path) -> None:
    for name in SAES:
        features = pq.read_table(scenes_report.parent / name / "features.parquet").to_pydict()
        groups = read_groups(scenes_report, name)
        counts = {kind: features["class"].count(kind) for kind in CLASSES}
        assert counts == {kind: one["n"] for kind, one in groups["classes"].items()} == groups["counts"]["with_all"]
        assert counts["shared"] > 0
        for column in ("margin_row", "margin_column", "gap_share"):
            assert sum(features[column]) == pytest.approx(1, abs=1e-6)
        edges = pq.read_table(scenes_report.parent / name / "edges.parquet").to_pydict()
        assert [*zip(edges["i"], edges["j"], strict=True)] == sorted(zip(edges["i"], edges["j"], strict=True))
        assert min(edges["rho"]) > 0
        bridged = {n for n, kind in enumerate(features["class"]) if kind.startswith("bridged")}
        ends = {
            end for i, j, kind in zip(edges["i"], edges["j"], edges["class"], strict=True) if kind == "bridge" for end in (i, j)
        }
        assert bridged <= ends
        for feature, kind in enumerate(features["class"]):
            if kind == "shared":
                assert features["gate_activation"][feature] == "bimodal"
                assert "fail" not in (features["gate_pairing"][feature], features["gate_meaning"][feature])
        assert groups["meaning"] == "words"
        parts = [groups["margin"][part]["value"] for part in ("shared_self", "shared_cross", "bridged", "rest")]
        assert sum(parts) == pytest.approx(1)


def test_trained_dictionaries_of_the_scenes_world_have_shared_features_that_track_shared_concepts(scenes_report: Path) -> None:
    truth = read_groups(scenes_report, "topk")["truth"]
    assert truth["classes"]["shared"]["precision"]["value"] > 0.8
    assert truth["classes"]["shared"]["precision"]["n"] > 5
    groups = read_groups(scenes_report, "topk")
    assert groups["classes"]["shared"]["expected_false"] < 2
    assert set(groups["calibration"]["by_cosine"]) == {"1", "0.8", "0.5", "0"}


def test_each_step_of_a_pursuit_has_its_energy_and_leaves_less(scenes_report: Path) -> None:
    table = pq.read_table(scenes_report.parent / "mp" / "steps.parquet").to_pydict()
    assert table["step"] == [step for step in range(12) for _ in range(2)]
    for side in (0, 1):
        norm = np.array(table["residual_norm"][side::2])
        assert (np.diff(norm) <= 1e-6).all()
        assert norm[0] <= table["input_norm"][side] + 1e-6
    assert len({*table["input_auc"]}) == 1
    assert min(table["overlap"]) >= 0
    assert max(table["overlap"]) <= 1
    assert sum(table["gap"][::2]) == pytest.approx(1)
    classes = [name for name in table if name.startswith("energy_")]
    for row in range(len(table["step"])):
        assert sum(table[name][row] for name in classes) == pytest.approx(1)
    assert max(table["residual_auc"]) <= 1
    features = pq.read_table(scenes_report.parent / "mp" / "features.parquet").to_pydict()
    steps = [value for value in features["step_image"] if value is not None]
    assert 0 <= min(steps) <= max(steps) <= 11


def test_the_tables_of_the_claims_can_be_made_from_these_files(
    scenes_report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["claims.py", str(scenes_report.parent)])
    runpy.run_path(str(DOCS.parent.parent / "benchmarks" / "claims.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "Steps of mp" in printed
    n_shared = read_groups(scenes_report, "mp")["classes"]["shared"]["n"]
    line = next(line for line in printed.splitlines() if line.startswith("| n shared "))
    assert str(n_shared) in [cell.strip() for cell in line.split("|")]


def test_the_manifest_names_every_file_with_its_digest_and_warnings_have_names(scenes_report: Path) -> None:
    out = scenes_report.parent
    manifest = json.loads((out / "manifest.json").read_text())
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {*manifest["files"], "manifest.json", "config.yaml", "provenance.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert manifest["columns"]["features.parquet"] == pq.read_schema(out / "mp" / "features.parquet").names
    warnings = json.loads((out / "warnings.json").read_text())
    assert all(set(one) == {"id", "sae", "text", "numbers"} for one in warnings)
    assert "meaning-by-words" in {one["id"] for one in warnings}
    texts = [one["text"] if one["sae"] is None else f"{one['sae']}: {one['text']}" for one in warnings]
    assert texts == load_results(out)["warnings"]


def test_the_sums_on_disk_are_of_this_split_and_of_no_other(scenes_report: Path) -> None:
    origin = json.loads((scenes_report.parent / "mp" / "stats.json").read_text())["origin"]
    features, pairs = load_sums(scenes_report.parent / "mp", origin)
    table = pq.read_table(scenes_report.parent / "mp" / "features.parquet").to_pydict()
    assert features["image"].fires.tolist() == table["n_fire_image"]
    assert pairs is not None
    assert pairs.cofires.tolist() == table["n_pair_both"]
    with pytest.raises(AnalysisError, match="sums of something else"):
        load_sums(scenes_report.parent / "mp", origin | {"seed": 7})


def test_the_summary_says_how_many_are_shared_and_how_many_by_chance(scenes_report: Path) -> None:
    rows = {row["measure"]: row["topk"] for row in load_summary(scenes_report.parent)}
    n = read_groups(scenes_report, "topk")["classes"]["shared"]["n"]
    assert re.fullmatch(rf"{n} \(\d+\.\d\)", rows["shared, all gates (by chance)"])
    assert '<h2 id="battery">' in scenes_report.read_text()


def test_a_store_without_pairs_has_scores_and_says_why_it_has_no_more(make_store, make_sae, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 130, is_paired=False)
    sae = make_sae(store, tmp_path / "sae", rows=3_000)
    results = load_results(run(configure(store, {"one": sae}, tmp_path / "out", site={"items": 3})).parent)
    assert "modality" in results["saes"]["one"]
    assert "battery" not in results["saes"]["one"]
    assert "no-pairs" in {one["id"] for one in json.loads((tmp_path / "out" / "warnings.json").read_text())}
    assert not any((tmp_path / "out" / "one" / name).exists() for name in ("edges.parquet", "groups.json"))
    table = pq.read_table(tmp_path / "out" / "one" / "features.parquet")
    assert "class" not in table.column_names
    n_rows = {name: panel["n_rows"] for name, panel in results["held_out"]["panels"].items()}
    for row in table.to_pylist():
        assert row["n_fire"] == row["n_fire_image"] + row["n_fire_text"]
        assert row["rate"] == pytest.approx(row["n_fire"] / sum(n_rows.values()))
        assert all(row[f"rate_{name}"] == pytest.approx(row[f"n_fire_{name}"] / n) for name, n in n_rows.items())
    assert '"is_judged":false' in (tmp_path / "out" / "site" / "data" / "run.js").read_text()


def test_external_embeddings_judge_meaning_and_those_of_other_items_are_refused(
    scenes_store: Path, scenes_saes: dict[str, Path], tmp_path: Path
) -> None:
    store, generator = open_store(scenes_store), np.random.default_rng(0)
    names = {name: str(tmp_path / f"{name}.npy") for name in ("image", "text")}
    for name in ("image", "text"):
        np.save(names[name], generator.normal(size=(store.items(name).num_rows, 8)))
    saes = {"topk": scenes_saes["topk"]}
    found = run(configure(scenes_store, saes, tmp_path / "out", battery={"external": names}))
    # Random vectors say that nothing means the same, so nothing is shared any more.
    groups = read_groups(found, "topk")
    assert groups["meaning"] == "external"
    assert groups["classes"]["shared"]["n"] < groups["counts"]["without_meaning"]["shared"] / 4
    np.save(names["image"], np.ones((5, 8)))
    with pytest.raises(AnalysisError, match=r"image.npy: shape \[5, 8\], expected \[700, width\]"):
        run(configure(scenes_store, saes, tmp_path / "again", battery={"external": names}))
    other = {"store": str(scenes_store), "image": "vision.embd", "text": "text.embed"}
    with pytest.raises(AnalysisError, match=r"no hook point 'vision.embd' of images; it has vision.embed"):
        run(configure(scenes_store, saes, tmp_path / "again", battery={"external": other}))


def test_other_seeds_are_found_and_dictionaries_of_another_kind_are_no_seeds(
    scenes_store: Path, scenes_saes: dict[str, Path], make_sae, tmp_path: Path
) -> None:
    twin = make_sae(scenes_store, tmp_path / "twin", init_seed=5)
    saes = {"topk": scenes_saes["topk"], "twin": twin, "mp": scenes_saes["mp"]}
    report = run(configure(scenes_store, saes, tmp_path / "out", limit=200))
    groups = read_groups(report, "topk")
    assert groups["seeds"]["others"] == ["twin"]
    assert groups["seeds"]["shares"]["margin.shared_self"]["n"] == 2
    features = pq.read_table(report.parent / "topk" / "features.parquet").to_pydict()
    found, null = ([one for one in features[name] if one is not None] for name in ("stability", "stability_null"))
    assert np.mean(found) > np.mean(null)
    assert read_groups(report, "mp")["seeds"]["n"] == 0
    wrong = {"seeds": {"topk": [str(scenes_saes["mp"])]}}
    with pytest.raises(AnalysisError, match=r"differs from it not by seed alone but in sae"):
        run(configure(scenes_store, {"topk": scenes_saes["topk"]}, tmp_path / "again", battery=wrong))


def test_no_dictionary_is_named_like_a_folder_of_the_results(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the name 'figures' is that of a folder"):
        configure(tmp_path, {"figures": tmp_path}, tmp_path)
    with pytest.raises(ConfigError, match=r"battery.seeds: no dictionary 'two'"):
        configure(tmp_path, {"one": tmp_path}, tmp_path, battery={"seeds": {"two": []}})
