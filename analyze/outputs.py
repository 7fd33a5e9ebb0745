"""The files of an analysis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from thresher import __version__
from thresher.analyze.battery.study import FEATURES, write_finding
from thresher.analyze.context import Context, Outcome
from thresher.analyze.functional.run import write_tests
from thresher.analyze.plates import draw_figures
from thresher.analyze.plots.draw import draw_run
from thresher.analyze.report import Page, write_report
from thresher.analyze.results import plain
from thresher.analyze.single import write_single
from thresher.analyze.site.build import Facts
from thresher.analyze.site.build import build as build_site
from thresher.analyze.site.gather import gather_catalogues, gather_dictionaries
from thresher.analyze.site.places import find_frame
from thresher.analyze.survey.space import survey_space
from thresher.analyze.survey.survey import SPACE, write_survey
from thresher.analyze.tables import write_rows
from thresher.analyze.warn import Caution
from thresher.config import to_dict
from thresher.files import write_atomic
from thresher.runs import CONFIG, PROVENANCE, canonical_json, fingerprint_file

METRICS, REPORT, WARNINGS, MANIFEST = "metrics.json", "report.html", "warnings.json", "manifest.json"
SITE = "site"
FORMAT = "thresher-analysis"
VERSION = 1
FILES = "thresher-analysis-files"


def collect(context: Context, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What metrics.json holds, but for the warnings."""
    inputs, config = context.inputs, context.config
    panels = {
        name: {
            "hook_point": panel.hook_point,
            "n_items": len(panel.items),
            "n_rows": len(panel.rows),
            "width": inputs.store.hook_points[panel.hook_point].width,
        }
        for name, panel in context.panels.items()
    }
    identity = inputs.store.identity
    results: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "store": {
            "path": str(inputs.store.path),
            "fingerprint": inputs.store.fingerprint,
            "model": _name(identity.get("model")),
            "source": _name(identity.get("source")),
        },
        "held_out": {
            "fraction": inputs.holdout,
            "seed": inputs.seed,
            "records": next(iter(context.panels.values())).n_records,
            "panels": panels,
        },
        "thresholds": to_dict(config.thresholds),
        "battery": to_dict(config.battery),
        "calibration": None if context.study is None else plain(context.study.calibration),
        "n_bootstrap": config.n_bootstrap,
        "order": list(outcomes),
        "saes": {name: outcome.metrics for name, outcome in outcomes.items()},
    }
    return results


def write(
    context: Context,
    results: Mapping[str, Any],
    outcomes: Mapping[str, Outcome],
    warnings: Sequence[Caution],
    origin: Mapping[str, str],
) -> Path:
    """Write everything and return the path of the report."""
    out = context.config.out
    concepts = [row for outcome in outcomes.values() for row in outcome.concepts]
    write_atomic(out / METRICS, [canonical_json(results)])
    write_atomic(out / WARNINGS, [canonical_json([plain(warning) for warning in warnings])])
    (out / "features").mkdir(exist_ok=True)
    for name, outcome in outcomes.items():
        if outcome.features is not None:
            pq.write_table(outcome.features, out / "features" / f"{name}.parquet")
        if outcome.finding is not None:
            made_from = {"store": origin["store"], "sae": origin[f"saes.{name}"]} | dict(results["held_out"])
            write_finding(out / name, outcome.finding, made_from)
        if outcome.single is not None:
            write_single(out / name, outcome.single)
        if outcome.surveyed is not None:
            write_survey(out / name, outcome.surveyed)
        if outcome.functional is not None:
            write_tests(out / name, outcome.functional)
    space = survey_space(context.inputs.store, context.panels, context.config.seed)
    if space is not None:
        write_atomic(out / SPACE, [canonical_json(space)])
    if concepts:
        write_rows(out / "concepts.csv", concepts)
    histograms = {name: outcome.modality.histograms for name, outcome in outcomes.items() if outcome.modality is not None}
    figures = draw_figures(out / "figures", results, histograms, concepts)
    draw_run(out, context.config.figures)
    cards = {name: outcome.cards for name, outcome in outcomes.items() if outcome.cards}
    site = _write_site(context, results, outcomes, warnings)
    write_report(out / REPORT, Page(results, figures, cards, concepts, site))
    write_atomic(out / MANIFEST, [canonical_json(_describe_files(context, results, outcomes, origin))])
    return out / REPORT


def _write_site(
    context: Context, results: Mapping[str, Any], outcomes: Mapping[str, Outcome], warnings: Sequence[Caution]
) -> str | None:
    """The site of the dictionaries that there is something to show of, as a link from the report; None where there are none."""
    config, dictionaries = context.config, gather_dictionaries(context, outcomes)
    if not config.site.build or not dictionaries:
        return None
    catalogues = gather_catalogues(context)
    frame = find_frame(context.inputs.store.identity.get("model"))
    facts = Facts(results, [plain(warning) for warning in warnings], config.seed, frame)
    return build_site(config.out / SITE, config.site, facts, dictionaries, catalogues).relative_to(config.out).as_posix()


def _describe_files(
    context: Context, results: Mapping[str, Any], outcomes: Mapping[str, Outcome], origin: Mapping[str, str]
) -> dict[str, Any]:
    out, study = context.config.out, context.study
    columns = {
        file: table.column_names
        for outcome in outcomes.values()
        if outcome.finding is not None
        for file, table in outcome.finding.tables.items()
    }
    singles = [one.single for one in outcomes.values() if one.single is not None]
    columns |= {FEATURES: singles[0].features.column_names} if singles else {}
    # What says what the whole was made from is written last, and tells of itself.
    left_out = {MANIFEST, CONFIG, PROVENANCE}
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    judge = None if study is None or study.embeddings is None else study.embeddings.source
    return {
        "format": FILES,
        "version": VERSION,
        "thresher": __version__,
        "store": results["store"],
        "held_out": results["held_out"],
        "pairs": None if study is None else {"n": len(study.pairs), "n_images": len(np.unique(study.pairs[:, 0]))},
        "saes": {name: _describe_sae(name, results["saes"][name], context, origin) for name in outcomes},
        "settings": to_dict(context.config),
        "meaning": judge,
        "columns": columns,
        "files": {name: fingerprint_file(out / name) for name in files if name not in left_out},
    }


def _describe_sae(name: str, found: Mapping[str, Any], context: Context, origin: Mapping[str, str]) -> dict[str, Any]:
    training = context.inputs.saes[name].config
    told = {key: found[key] for key in ("path", "architecture", "d_in", "d_sae")}
    return told | {"digest": origin[f"saes.{name}"], "seed": training.seed, "dictionary_seed": training.dictionary_seed}


def _name(identity: Any) -> str:
    """A model or a source in a word or two."""
    if not isinstance(identity, Mapping):
        return "unknown"
    kind, name = identity.get("kind"), identity.get("name")
    return " ".join(str(part) for part in (kind, name) if part)
