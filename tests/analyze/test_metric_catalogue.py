"""The catalogue of measures names functions that exist."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")
FUNCTIONS = [line.split(" | ")[2] for line in TEXT.splitlines() if re.match(r"\| [A-L]\d", line)]
NAMES = sorted(set(re.findall(r"`([a-z_]+\.[a-z_0-9]+)`", " ".join(FUNCTIONS))))


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_of_the_catalogue_exists_and_says_what_it_gives(name: str) -> None:
    module, function = name.split(".")
    found = getattr(importlib.import_module(f"thresher.analyze.metrics.{module}"), function)
    assert len(inspect.getdoc(found) or "") > 60
