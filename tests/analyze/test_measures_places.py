"""Every measure of docs/measures.md stands where the documentation says, and every public measure is called by the product."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    line for line in (ROOT / "docs" / "measures.md").read_text(encoding="utf-8").splitlines() if re.match(r"\| [A-L]\d", line)
]
IDS = {
    f"{letter}{n}"
    for letter, most in zip("ABCDEFGHIL", (8, 4, 5, 12, 8, 5, 8, 7, 7, 6), strict=True)
    for n in range(1, most + 1)
}
OF_THE_RUN = ("metrics.json", "space.json")
COMPARED = ("dictionaries.csv", "sharedness.csv")
"""Tried in test_compare.py."""
OF_LANGUAGE_MODELS = {("metrics.json", "splice")}
"""Tried in test_language_model.py."""


def list_places() -> list[tuple[str, str]]:
    """(file, column or dotted key) of every measure."""
    places: list[tuple[str, str]] = []
    for line in LINES:
        file = ""
        for name in re.findall(r"`([^`]+)`", line.split(" | ")[3]):
            if re.search(r"\.(parquet|json|csv)$", name):
                file = name
            elif file:
                places.append((file, name))
    return places


def test_every_measure_of_the_catalogue_has_a_line() -> None:
    assert {one for line in LINES for one in line.split("|")[1].strip().split(", ")} == IDS


def test_every_measure_stands_where_the_documentation_says(scenes_report: Path) -> None:
    missing: list[tuple[str, str]] = []
    for file, name in list_places():
        if file in COMPARED or (file, name) in OF_LANGUAGE_MODELS:
            continue
        folder = scenes_report.parent if file in OF_THE_RUN else scenes_report.parent / "mp"
        if file == "curves.parquet":
            found = name in pq.read_table(folder / file)["curve"].to_pylist()
        elif file.endswith(".parquet"):
            found = name in pq.read_schema(folder / file).names
        else:
            content = json.loads((folder / file).read_text())
            found = has_key(content["saes"]["mp"] if file == "metrics.json" else content, name)
        if not found:
            missing.append((file, name))
    assert missing == []


def has_key(found: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True


def test_every_public_measure_is_called_by_the_product_and_not_by_tests_alone() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in list_sources()}
    called: set[tuple[str, str]] = set()
    for path, tree in trees.items():
        called |= find_references(path.stem, tree)
    lonely = [
        f"{path.stem}.{node.name}"
        for path, tree in trees.items()
        if path.parent.name in ("metrics", "statistics") and "analyze" in path.parts
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (path.stem, node.name) not in called
    ]
    assert lonely == []


def list_sources() -> list[Path]:
    folders = ("analyze", "benchmarks")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if not path.parent.is_symlink()]


def find_references(module: str, tree: ast.Module) -> set[tuple[str, str]]:
    """(module, function) of the measures that the code of a file uses outside of their own definition."""
    names, modules = {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for one in node.names:
                names[one.asname or one.name] = (node.module.rpartition(".")[2], one.name)
                modules[one.asname or one.name] = one.name
    found: set[tuple[str, str]] = set()
    for statement in tree.body:
        own = getattr(statement, "name", "")
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id != own:
                found.add(names.get(node.id, (module, node.id)))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.add((modules.get(node.value.id, node.value.id), node.attr))
    return found
