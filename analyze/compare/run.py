"""Compare finished analyses: tables, cautions and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from thresher.analyze.cautions import Caution
from thresher.analyze.compare.dictionaries import compare_dictionaries, name_kinds, open_checkpoints
from thresher.analyze.compare.headline import aggregate_seeds, is_main, list_headline, make_markdown, tabulate
from thresher.analyze.compare.open import find_cautions, list_entries, open_runs
from thresher.analyze.compare.plots import draw_comparison
from thresher.analyze.results import plain
from thresher.analyze.tables import write_rows
from thresher.errors import AnalysisError
from thresher.files import write_atomic
from thresher.progress import log
from thresher.runs import canonical_json, refuse_foreign

HEADLINE, MARKDOWN, SEEDS, DICTIONARIES, SHAREDNESS, WARNINGS = (
    "headline.csv",
    "headline.md",
    "seeds.csv",
    "dictionaries.csv",
    "sharedness.csv",
    "warnings.json",
)

SHOWN = (
    "first",
    "second",
    "stability",
    "stability_null",
    "coverage_image",
    "coverage_by_chance_image",
    "coverage_text",
    "coverage_by_chance_text",
)
"""Columns of dictionaries.csv that the printed table has."""


class Comparison(NamedTuple):
    """What a comparison found."""

    table: list[dict[str, str]]
    """Measures as lines, dictionaries as columns."""
    dictionaries: list[dict[str, Any]]
    sharedness: list[dict[str, Any]]
    """One line per feature of dictionaries that have seeds and others to compare with."""
    seeds: list[dict[str, Any]]
    cautions: list[Caution]


def compare(folders: Sequence[Path], out: Path, seed: int = 0) -> Comparison:
    """Compare finished analyses and write the result to `out`; `seed` decides nulls.

    Raises AnalysisError: no analyses of this version, or of other rules, or `out` cannot be written; ConfigError: `out` holds
    other things.
    """
    refuse_foreign(out, [HEADLINE])
    runs = open_runs(folders)
    entries = list_entries(runs)
    rows = [row for entry in entries for row in list_headline(entry)]
    opened = open_checkpoints(entries)
    kinds = name_kinds(entries, opened.saes)
    pairs, features, further = compare_dictionaries(entries, opened.saes, kinds, seed)
    cautions = [*find_cautions(runs), *opened.cautions, *further]
    found = Comparison(tabulate(rows), pairs, features, aggregate_seeds(rows, kinds), cautions)
    for caution in cautions:
        log(f"compare: {caution.sentence}")
    try:
        _write(out, found, rows)
        draw_comparison(out / "figures", entries, rows, pairs, kinds)
    except OSError as error:
        raise AnalysisError(f"{out}: cannot write the comparison ({error.strerror}); choose another --out") from error
    return found


def _write(out: Path, found: Comparison, rows: Sequence[Mapping[str, Any]]) -> None:
    write_rows(out / HEADLINE, rows)
    shown = {
        "Headline": [row for row in found.table if is_main(row["measure"])],
        "Dictionaries of equal width": [{key: row[key] for key in SHOWN} for row in found.dictionaries],
        "Seeds": [row for row in found.seeds if is_main(row["measure"])],
    }
    notes = [caution.sentence for caution in found.cautions]
    write_atomic(out / MARKDOWN, [make_markdown(shown, notes).encode()])
    write_rows(out / SEEDS, found.seeds)
    write_rows(out / DICTIONARIES, found.dictionaries)
    write_rows(out / SHAREDNESS, found.sharedness)
    write_atomic(out / WARNINGS, [canonical_json([plain(caution) for caution in found.cautions])])
