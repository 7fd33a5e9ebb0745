"""The laws of comparing analyses: what is equal comes out equal, what does not compare is refused or said."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from thresher.analyze.compare.open import name_folders
from thresher.analyze.compare.run import compare
from thresher.analyze.run import AnalyzeConfig
from thresher.analyze.run import run as analyze
from thresher.cli import app
from thresher.config import validate
from thresher.errors import AnalysisError, ConfigError

FAST = {"n_bootstrap": 20, "figures": "none", "functional": {"images": 0}, "site": {"build": False}}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def copy(
    report: Path, target: Path, change: Callable[[dict[str, Any]], None] | None = None, name: str = "metrics.json"
) -> Path:
    """A copy of an analysis in which one file says something else."""
    shutil.copytree(report.parent, target, ignore=shutil.ignore_patterns("figures", "site"))
    if change is not None:
        values = json.loads((target / name).read_text())
        change(values)
        (target / name).write_text(json.dumps(values))
    return target


@pytest.fixture(scope="module")
def runs(scenes_store: Path, make_sae, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two analyses of one store: a dictionary each, which differ by seed alone."""
    folder = tmp_path_factory.mktemp("compare")
    found: list[Path] = []
    for name, seed in (("first", 0), ("second", 1)):
        fields = {"sae": {"kind": "mp", "d_sae": 64, "k": 6}, "rows": 20_000, "init_seed": seed}
        sae = make_sae(scenes_store, folder / "sae" / name, **fields)
        battery = {"calibration_pairs": 0, "n_derangements": 1}
        values = FAST | {"store": scenes_store, "saes": {"mp": sae}, "out": folder / name / "report", "battery": battery}
        found.append(analyze(validate(AnalyzeConfig, values, "test")).parent)
    return found


@pytest.fixture(scope="module")
def compared(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("out") / "compared"
    result = CliRunner().invoke(app, ["analyze", "compare", *map(str, runs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_numbers_of_all_dictionaries_stand_side_by_side_with_their_intervals(
    runs: list[Path], compared: tuple[Path, str]
) -> None:
    out, printed = compared
    assert "| measure | first/mp | second/mp |" in printed
    rows = read_csv(out / "headline.csv")
    groups = json.loads((runs[1] / "mp" / "groups.json").read_text())
    mine = next(row for row in rows if (row["dictionary"], row["measure"]) == ("second/mp", "margin share, shared self"))
    assert float(mine["value"]) == pytest.approx(groups["margin"]["shared_self"]["value"])
    assert float(mine["low"]) == pytest.approx(groups["margin"]["shared_self"]["low"])
    counts = [row for row in rows if row["measure"].startswith("features, ") and "chance" not in row["measure"]]
    assert sum(float(row["value"]) for row in counts) == 2 * 64
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{form}" for name in ("pareto", "shares", "dictionaries") for form in ("pdf", "png", "csv")
    }


def test_dictionaries_of_one_store_have_stability_and_coverage_beside_chance(compared: tuple[Path, str]) -> None:
    (row,) = read_csv(compared[0] / "dictionaries.csv")
    assert (row["first"], row["second"], row["is_same_store"]) == ("first/mp", "second/mp", "True")
    assert float(row["stability"]) > float(row["stability_null"])
    for side in ("image", "text"):
        assert float(row[f"coverage_{side}"]) > float(row[f"coverage_by_chance_{side}"])


def test_dictionaries_that_differ_by_seed_alone_are_aggregated(compared: tuple[Path, str]) -> None:
    seeds = {row["measure"]: row for row in read_csv(compared[0] / "seeds.csv")}
    values = [float(row["value"]) for row in read_csv(compared[0] / "headline.csv") if row["measure"] == "r2, image"]
    assert float(seeds["r2, image"]["mean"]) == pytest.approx(sum(values) / 2)
    assert (float(seeds["r2, image"]["least"]), seeds["r2, image"]["n_seeds"]) == (pytest.approx(min(values)), "2")


def test_a_copy_compares_as_equal(runs: list[Path], tmp_path: Path) -> None:
    found = compare([runs[0], copy(runs[0] / "report.html", tmp_path / "copy")], tmp_path / "out")
    (row,) = found.dictionaries
    assert row["stability"] == pytest.approx(1)
    assert row["coverage_image"] == pytest.approx(row["coverage_back_text"]) == pytest.approx(1)
    assert not found.cautions


def test_other_sparsity_and_other_items_are_said(runs: list[Path], tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["held_out"]["seed"] += 1
        for one in values["saes"]["mp"]["reconstruction"].values():
            one["l0"]["value"] *= 2

    other = copy(runs[0] / "report.html", tmp_path / "other", change)
    found = compare([runs[0], other], tmp_path / "out")
    assert [caution.id for caution in found.cautions] == ["unequal-l0", "other-items"]
    assert found.dictionaries[0]["coverage_image"] is None
    assert "L0 differs by more than 10 %" in (tmp_path / "out" / "headline.md").read_text()


def test_a_dictionary_that_is_gone_leaves_the_numbers(runs: list[Path], tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["saes"]["mp"]["path"] = str(tmp_path / "nowhere")

    other = copy(runs[0] / "report.html", tmp_path / "other", change, "manifest.json")
    found = compare([runs[0], other], tmp_path / "out")
    assert [caution.id for caution in found.cautions] == ["no-checkpoint"]
    assert found.dictionaries == []
    assert found.table


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("metrics.json", "version", 99, "not an analysis of this version"),
        ("manifest.json", "version", 99, "version 99, expected thresher-analysis-files of version 1"),
        ("metrics.json", "thresholds", {"image_above": 0.8}, r"thresholds.image_above: 0.9 and 0.8"),
    ],
)
def test_what_does_not_compare_is_refused_with_exit_code_2(
    runs: list[Path], tmp_path: Path, name: str, key: str, value: Any, message: str
) -> None:
    def change(values: dict[str, Any]) -> None:
        values[key] = values[key] | value if isinstance(value, dict) else value

    other = copy(runs[0] / "report.html", tmp_path / "other", change, name)
    result = CliRunner().invoke(app, ["analyze", "compare", str(runs[0]), str(other), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_one_analysis_or_one_twice_or_a_foreign_folder_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"name at least two folders"):
        compare(runs[:1], tmp_path / "out")
    with pytest.raises(AnalysisError, match=r"given twice"):
        compare([runs[0], runs[0]], tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other things"):
        compare(runs, tmp_path / "foreign")


def test_analyze_takes_a_configuration_as_before(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["analyze", str(tmp_path / "missing.yaml")])
    assert result.exit_code == 2
    assert "cannot read the configuration" in result.stderr
    shown = CliRunner().invoke(app, ["analyze", "compare", "--help"])
    assert "analyze compare" in shown.stdout
    assert "RUN_A RUN_B" in shown.stdout
    assert "Fields of CONFIG.yaml" in CliRunner().invoke(app, ["analyze", "--help"]).stdout


def test_runs_are_named_by_what_tells_their_paths_apart() -> None:
    assert name_folders([Path("/x/a/report"), Path("/x/b/report")]) == ["a", "b"]
    assert name_folders([Path("/x/a"), Path("/x/b/a")]) == ["x", "b"]


def test_features_of_seeds_stand_beside_those_of_other_trainings_in_the_columns_of_the_documentation(
    runs: list[Path], scenes_report: Path, tmp_path: Path
) -> None:
    compare([*runs, scenes_report.parent], tmp_path / "out")
    lines = read_csv(tmp_path / "out" / "sharedness.csv")
    # Only the two seeds have a seed to be compared with.
    assert {row["dictionary"].rpartition("/")[2] for row in lines} == {"mp"}
    assert len(lines) == 2 * 2 * 64
    for row in lines:
        like, unlike, comparative = (float(row[name]) for name in ("like", "unlike", "comparative"))
        assert comparative == pytest.approx(like**2 - unlike**2)
    text = (Path(__file__).resolve().parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")
    for file in ("dictionaries.csv", "sharedness.csv"):
        named = set(re.findall(r"`([a-z_0-9]+)`", "".join(re.findall(rf"`{file}`: ([^;|]+)", text))))
        assert named <= set(read_csv(tmp_path / "out" / file)[0]), file
    rows = read_csv(tmp_path / "out" / "dictionaries.csv")
    seeds = next(row for row in rows if row["first"].endswith("first-report/mp") or row["first"].endswith("first/mp"))
    assert float(seeds["matched_correlation_image"]) > 0
    assert float(seeds["overlap"]) >= float(seeds["overlap_by_chance"])
