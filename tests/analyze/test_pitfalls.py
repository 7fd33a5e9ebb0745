"""The laws of the warnings about published mistakes: each is given where it applies, and only there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thresher.analyze.inputs import Inputs
from thresher.analyze.pitfalls import warn_about_all, warn_about_numbers, warn_about_rows
from thresher.analyze.survey.copies import count_merged

ROOT = Path(__file__).resolve().parents[2]


def describe(**fields: Any) -> dict[str, Any]:
    """The part of metrics.json of a dictionary that nothing is wrong with."""
    fine = {"r2": {"value": 0.8}, "r2_scalar_mean": {"value": 0.8}}
    return {"reconstruction": {"image": fine}, "dead": {"both": {"value": 0.0}}, "d_sae": 64, "silent": {"image": 0.0}} | fields


RESULTS = {"held_out": {"panels": {"image": {"n_rows": 500, "n_items": 500, "hook_point": "vision.embed"}}}}
RATIOS = {"alignment_ratio": {"value": 0.5}, "alignment_ratio_raw": {"value": 2.0}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"dead": {"both": {"value": 0.4}}}, ["dead-by-few-rows"]),
        ({"dead": {"both": {"value": 0.4}}, "d_sae": 16}, []),
        ({"silent": {"image": 0.2}}, ["silent-items"]),
        ({"battery": {"crossmodal": {"bridge": RATIOS}}}, ["uncentred-bridge"]),
    ],
)
def test_a_dictionary_is_warned_of_where_it_applies(fields: dict[str, Any], expected: list[str]) -> None:
    found = list(warn_about_numbers("mp", describe(**fields), RESULTS))
    assert [one.id for one in found] == expected
    assert all(one.sentence.startswith("mp: ") for one in found)


def gather(*fields: dict[str, Any]) -> dict[str, Any]:
    """Results of several dictionaries."""
    return {"saes": {str(place): describe(**one) for place, one in enumerate(fields)}}


def alive(n: int) -> dict[str, Any]:
    return {"modality": {"share": {"shared": {"n": n}}}}


def test_numbers_of_living_features_that_differ_are_said() -> None:
    assert [one.id for one in warn_about_all(gather(alive(50), alive(100)))] == ["unequal-alive"]
    assert list(warn_about_all(gather(alive(90), alive(100)))) == []


def test_the_other_r2_and_small_searches_are_said_once_of_all_dictionaries() -> None:
    def differ(r2: float) -> dict[str, Any]:
        return {"reconstruction": {"image": {"r2": {"value": r2}, "r2_scalar_mean": {"value": 0.9}}}}

    found = list(warn_about_all(gather(differ(0.5), differ(0.1), {})))
    assert [(one.id, one.sae, one.numbers["sae"]) for one in found] == [("scalar-mean-r2", None, "1")]
    small, large = ({"functional": {"raw": {"image_to_text_r1": {"n": n}}}} for n in (40, 5000))
    assert [one.id for one in warn_about_all(gather(small))] == ["few-candidates"]
    assert list(warn_about_all(gather(large))) == []


class _Store:
    """Two thirds of the images have the row of another one."""

    def item_of(self, hook_point: str) -> np.ndarray:
        return np.arange(30)

    def read_rows(self, hook_point: str, rows: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.repeat(np.eye(10), 3, axis=0)[rows])


def test_images_that_are_repeated_and_modalities_of_unequal_rows_are_said() -> None:
    panels = {"image": {"n_rows": 30, "n_items": 30, "hook_point": "vision.embed"}, "text": {"n_rows": 90, "n_items": 90}}
    inputs = Inputs(*([_Store()] + [None] * (len(Inputs._fields) - 1)))
    found = list(warn_about_rows(inputs, {"held_out": {"panels": panels}}))
    assert [one.id for one in found] == ["unequal-rows", "repeated-images"]
    assert found[1].numbers == {"n": 20, "of": 30}


def test_copies_of_an_atom_count_once_and_only_within_their_class() -> None:
    atoms = np.eye(4)[[0, 0, 1, 1, 2]]
    classes = np.array(["shared", "shared", "shared", "modality-specific", "dead"])
    merged = count_merged(atoms, classes)
    assert (merged["shared"], merged["modality-specific"], merged["rare"]) == (2, 1, 0)
    assert "dead" not in merged


def test_every_warning_is_named_in_the_documentation() -> None:
    text = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8").split("## warnings.json")[1].split("\n## ")[0]
    promised = {one for one in re.findall(r"`([a-z0-9-]+)`", text) if "-" in one}
    given: set[str] = set()
    for path in [*(ROOT / "analyze").glob("*.py"), ROOT / "analyze" / "battery" / "cautions.py"]:
        given |= set(re.findall(r'Caution\(\s*f?"([a-z0-9{}_-]+)"', path.read_text(encoding="utf-8")))
    patterns = {one for one in given if "{" in one}
    assert given - patterns <= promised
    made = {re.sub(r"\{[a-z_]+\}", "[a-z]+", one) for one in patterns}
    assert all(one in given or any(re.fullmatch(pattern, one) for pattern in made) for one in promised)
