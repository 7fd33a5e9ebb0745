"""Laws of a plan: which runs and units follow from it, and what is done but once."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from thresher.batch.plan import load_plan
from thresher.errors import ConfigError

BASE: dict[str, Any] = {
    "harvest": {
        "model": {"kind": "open-clip", "name": "scenes"},
        "source": {"kind": "scenes", "n_records": 64},
        "hook_points": ["vision.embed", "text.embed"],
    },
    "train": {
        "mp": {"hook_points": ["vision.embed", "text.embed"], "sae": {"kind": "mp", "d_sae": 16, "k": 2}},
        "topk": {"hook_points": ["vision.embed", "text.embed"], "sae": {"kind": "topk", "d_sae": 16, "k": 2}},
    },
    "analyze": {},
}


def write(folder: Path, **plan: Any) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump(BASE, sort_keys=False))
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"out": str(folder / "batch"), "base": "run.yaml"} | plan, sort_keys=False))
    return path


def stages(plan: Any) -> list[str]:
    return sorted(unit.stage for unit in plan.units.values())


def test_a_plan_without_variation_is_one_run(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    assert list(plan.runs) == ["run"]
    assert stages(plan) == ["analyze", "harvest", "train", "train"]


def test_there_is_a_run_for_every_combination_and_equal_stages_are_one(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, grid={"harvest.dtype": ["float32", "float16"], "train.topk.sae.k": [2, 3]}))
    assert list(plan.runs) == ["dtype=float32-k=2", "dtype=float32-k=3", "dtype=float16-k=2", "dtype=float16-k=3"]
    # mp does not depend on the k of topk: one training for each store.
    assert stages(plan) == ["analyze"] * 4 + ["harvest"] * 2 + ["train"] * (2 + 4)


def test_what_does_not_decide_the_store_does_not_make_another(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, runs={"one": {"harvest.workers": 1}, "two": {"harvest.workers": 5}}))
    assert stages(plan) == ["analyze", "analyze", "harvest", "train", "train"]


def test_a_unit_stands_after_those_that_it_needs(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, grid={"match_l0": ["mp", None], "harvest.limit": [10, 20]}))
    seen: set[str] = set()
    for name, unit in plan.units.items():
        assert set(unit.needs) <= seen
        seen.add(name)
    matched = [unit for unit in plan.units.values() if unit.match_l0]
    assert len(matched) == 2
    assert all(unit.match_l0 in unit.needs and "topk" in unit.name for unit in matched)


def test_folders_follow_from_the_plan(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, runs={"a": {}}))
    run, out = plan.runs["a"], tmp_path / "batch"
    assert run.analyze.out == out / "reports/a"
    assert Path(run.harvest.out).parent == out / "stores"
    assert run.train["mp"].store == run.harvest.out == run.analyze.store
    assert run.analyze.saes == {name: training.out for name, training in run.train.items()}


def test_a_base_can_stand_in_the_plan_itself(tmp_path: Path) -> None:
    assert load_plan(write(tmp_path, base=BASE)).units == load_plan(write(tmp_path)).units


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"grid": {"train.topk.sae.k": []}}, "grid.train.topk.sae.k: name at least one value"),
        ({"grid": {"train.topk.sae.kk": [1]}}, r"run kk=1: .*(.|\n)*did you mean 'k'"),
        ({"runs": {"a": {"harvest.out": "x"}}}, "run a: harvest.out: the folders of a batch follow from its `out`"),
        ({"runs": {"a": {"train.mp.store": "x"}}}, "train.mp.store: the folders of a batch"),
        ({"retries": -1}, "retries=-1: at least 0"),
        ({"base": "none.yaml"}, "none.yaml: cannot read the configuration"),
        ({"grid": {"seed": [1], "harvest.seed": [1]}}, "seed: unknown field"),
    ],
)
def test_nonsense_is_refused_with_the_run_it_is_in(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_plan(write(tmp_path, **changes))
    assert not (tmp_path / "batch").exists()


def test_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    grid = {"train.mp.sae.k": [2, 2]}
    with pytest.raises(ConfigError, match="two runs are called 'k=2'"):
        load_plan(write(tmp_path, grid=grid))


def test_the_plan_of_the_manual_does_what_the_manual_says(tmp_path: Path) -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs/scale.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", manual, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "plan.yaml").write_text(next(block for block in blocks if block.startswith("# plan.yaml")))
    plan = load_plan(tmp_path / "plan.yaml")
    assert (len(plan.runs), stages(plan)) == (4, ["analyze"] * 4 + ["harvest"] * 2 + ["train"] * 8)
