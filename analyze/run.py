"""The analysis: a store and its dictionaries in, numbers, tables, figures and a report out."""

import contextlib
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from thresher.analyze.battery.study import compare_seeds, examine, prepare
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.context import Context, Outcome
from thresher.analyze.derived import read_thumbnails
from thresher.analyze.evaluate import (
    ModalityResult,
    count_dense,
    evaluate_dead,
    evaluate_modality,
    evaluate_reconstruction,
)
from thresher.analyze.evidence import count_items, make_evidence, read_presence
from thresher.analyze.families import describe_families
from thresher.analyze.functional.run import add_tests, fingerprint_files, read_words_of
from thresher.analyze.functional.summary import summarize_tests
from thresher.analyze.functional.words import Words
from thresher.analyze.gallery import choose_features, make_cards
from thresher.analyze.inputs import Inputs, open_inputs
from thresher.analyze.language import measure_splice
from thresher.analyze.measure import Measured, measure
from thresher.analyze.metrics.association import count_together, f1
from thresher.analyze.metrics.modality import count_rare
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.outputs import FILES, FORMAT, MANIFEST, METRICS, REPORT, VERSION, collect, write
from thresher.analyze.panels import open_panels
from thresher.analyze.probe import count_decodable, probe_concepts
from thresher.analyze.results import (
    describe_battery,
    describe_modality,
    describe_truth,
    plain,
    summary_table,
    tabulate_concepts,
    tabulate_features,
)
from thresher.analyze.single import describe_single
from thresher.analyze.site.layout import require_umap
from thresher.analyze.survey.survey import add_columns, survey
from thresher.analyze.truth import Evidence, Rule, TruthScore, find_scorable, score_truth
from thresher.analyze.warn import find_warnings
from thresher.config import to_dict
from thresher.errors import AnalysisError
from thresher.progress import log, progress
from thresher.runs import PROVENANCE, fingerprint_file, is_made_from, refuse_foreign, write_provenance
from thresher.train.checkpoint import MODEL, TrainedSAE

__all__ = ["AnalyzeConfig", "load_results", "load_summary", "run", "summary_table"]


def run(config: AnalyzeConfig) -> Path:
    """Analyze into `config.out` and return the path of `report.html`.

    Returns at once when the folder holds this very analysis. Raises StoreError, CheckpointError, AnalysisError (they do not
    belong together, nothing held out, `out` cannot be written) and ConfigError (`out` holds other things).
    """
    # A store has a file of that name too.
    refuse_foreign(config.out, [METRICS, MANIFEST] if _read_manifest(config.out) else [METRICS])
    inputs = open_inputs(config)
    origin = _fingerprint_inputs(config, inputs)
    if is_made_from(config.out, config, origin) and (config.out / REPORT).exists():
        log(f"analyze: {config.out} is complete; delete the folder to analyze again")
        return config.out / REPORT
    if config.site.layout == "umap":
        require_umap()
    words = read_words_of(config, inputs)
    _start(config.out)
    with _open_scratch(config.out) as scratch:
        return _run(config, inputs, origin, words, Path(scratch))


def _open_scratch(out: Path) -> TemporaryDirectory[str]:
    """A folder for codes beside the results; what a killed analysis left there goes."""
    for stale in out.parent.glob(f".{out.name}.codes-*"):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        return TemporaryDirectory(prefix=f".{out.name}.codes-", dir=out.parent)
    except OSError as error:
        raise AnalysisError(f"{out.parent}: no folder can be made there ({error.strerror}); choose another `out`") from error


def _run(config: AnalyzeConfig, inputs: Inputs, origin: Mapping[str, str], words: Words | None, scratch: Path) -> Path:
    panels = open_panels(inputs.store, list(inputs.hook_points.values()), inputs.holdout, inputs.seed, config.limit)
    resample = Resample(config.n_bootstrap, config.seed)
    presence = read_presence(inputs.store, panels, resample, config.seed)
    probed = probe_concepts(inputs.store, panels, presence, config.chunk_rows) if presence else None
    study = prepare(config, inputs, panels, resample)
    context = Context(config, inputs, panels, presence, probed, resample, study, words, scratch)
    n_rows = sum(len(panel.rows) for panel in panels.values())
    outcomes: dict[str, Outcome] = {}
    with progress("analyze", n_rows * len(inputs.saes), "rows") as advance:
        for name, trained in inputs.saes.items():
            outcomes[name] = _analyze(context, name, trained, advance)
            outcomes[name].metrics["digest"] = origin[f"saes.{name}"]
    compare_seeds({name: one.finding.groups for name, one in outcomes.items() if one.finding is not None})
    for name, splice in measure_splice(config, inputs, panels).items():
        outcomes[name].metrics["splice"] = plain(splice)
    results = collect(context, outcomes)
    warnings = find_warnings(inputs, results, config)
    results["warnings"] = [warning.sentence for warning in warnings]
    for sentence in results["warnings"]:
        log(f"analyze: {sentence}")
    _clear(config.out)
    try:
        report = write(context, results, outcomes, warnings, origin)
    except OSError as error:
        raise AnalysisError(f"{config.out}: cannot write the results ({error.strerror}); choose another `out`") from error
    write_provenance(config.out, config, origin)
    return report


def _fingerprint_inputs(config: AnalyzeConfig, inputs: Inputs) -> dict[str, str]:
    digests = {name: fingerprint_file(folder / MODEL) for name, folder in config.saes.items()}
    found = {"store": inputs.store.fingerprint} | {f"saes.{name}": digest for name, digest in digests.items()}
    return found | fingerprint_files(config)


def _start(out: Path) -> None:
    """Make the folder, before any work; what stands in it stays until there is something to replace it with."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnalysisError(f"{out}: cannot be made a folder ({error.strerror}); choose another `out`") from error


def _clear(out: Path) -> None:
    """Take an earlier analysis away; from here on the folder is no analysis of anything until the end."""
    try:
        (out / PROVENANCE).unlink(missing_ok=True)
        for name in _read_manifest(out):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise AnalysisError(f"{out}: what is in it cannot be replaced ({error.strerror}); choose another `out`") from error


def _read_manifest(out: Path) -> list[str]:
    """Files that an earlier analysis wrote there: of other dictionaries perhaps, which this one would not replace."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((out / MANIFEST).read_bytes())
        if isinstance(found, dict) and found.get("format") == FILES and isinstance(found.get("files"), dict):
            paths = {name: PurePosixPath(name) for name in found["files"]}
            return [name for name, path in paths.items() if not path.is_absolute() and ".." not in path.parts]
    return []


def load_results(folder: Path) -> dict[str, Any]:
    """What `metrics.json` of a finished analysis holds. Raises AnalysisError when it is not there or not ours."""
    path = folder / METRICS
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AnalysisError(
            f"{folder}: no finished analysis: {METRICS} is missing; run `thresher analyze` into it first"
        ) from error
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error}); run the analysis again") from error
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise AnalysisError(f"{path}: not an analysis of this version; run the analysis again")
    return found


def load_summary(folder: Path) -> list[dict[str, str]]:
    """The headline table of a finished analysis: one dict per measure, header -> cell."""
    return summary_table(load_results(folder))


def _scratch(context: Context, name: str, part: str) -> Path | None:
    return None if context.scratch is None else context.scratch / name / part


def _analyze(context: Context, name: str, trained: TrainedSAE, advance: Any) -> Outcome:
    config, store = context.config, context.inputs.store
    folders = {modality: _scratch(context, name, modality) for modality in context.panels}
    measured = {
        modality: measure(trained, store, panel, context.resample, config.chunk_rows, advance, folders[modality])
        for modality, panel in context.panels.items()
    }
    metrics: dict[str, Any] = {
        "path": str(config.saes[name]),
        "architecture": to_dict(trained.config.sae),
        "d_in": trained.d_in,
        "d_sae": trained.sae.d_sae,
        "iteration": trained.iteration,
        "is_finished": trained.is_finished,
        "reconstruction": plain(evaluate_reconstruction(measured)),
        "dead": plain(evaluate_dead(measured)),
        "dense": count_dense(measured),
        "silent": {name: float((np.diff(one.codes.indptr) == 0).mean()) for name, one in measured.items()},
    }
    items = {modality: one.items for modality, one in measured.items()}
    if len(measured) < 2:
        single = describe_single(context, name, trained, measured)
        metrics["single"] = plain(single.groups)
        surveyed = survey(context, trained, measured, None)
        return Outcome(metrics, None, None, [], [], surveyed=surveyed, single=single, items=items)
    dictionary = trained.sae.dictionary.detach().double().cpu().numpy()
    result = evaluate_modality(measured, context.resample, dictionary, config.thresholds)
    metrics["modality"] = describe_modality(result)
    metrics["modality"]["rare"] = count_rare(result.n_fires.sum(axis=0), config.thresholds.rare_below)
    outcome = _score(context, name, metrics, result, measured)
    surveyed = survey(context, trained, measured, outcome.finding)
    if outcome.finding is None:
        single = describe_single(context, name, trained, measured, result)
        metrics["single"] = plain(single.groups)
        outcome = outcome._replace(single=single)
    return outcome._replace(surveyed=surveyed, finding=add_columns(outcome.finding, surveyed), items=items)


def _score(
    context: Context,
    name: str,
    metrics: dict[str, Any],
    result: ModalityResult,
    measured: Mapping[str, Measured],
) -> Outcome:
    """Add what needs ground truth, tabulate the features, choose those to show."""
    config, store, concepts = context.config, context.inputs.store, context.inputs.store.concepts
    items = {modality: one.items for modality, one in measured.items()}
    score, rows = None, []
    if context.probed is not None:
        evidence = {modality: make_evidence(one, items[modality]) for modality, one in context.presence.items()}
        score = _score_truth(config, evidence, concepts, result.classes)
        families = describe_families(evidence["image"], evidence["text"], concepts, score.tracking, score.matches)
        metrics["truth"] = describe_truth(score, result.classes, concepts, families)
        metrics["truth"]["decodable"] = _count_decodable(context, score)
        n_items = count_items(context.presence)
        rows = tabulate_concepts(name, score, _f1(evidence), context.probed, result.classes, concepts, n_items)
    finding, tested = None, None
    if context.study is not None:
        finding = examine(
            context.study, name, context.inputs, context.panels, measured, score, _scratch(context, name, "battery")
        )
        metrics["battery"] = describe_battery(finding.groups)
        finding, tested = add_tests(context, name, finding, score)
        metrics |= {} if tested is None else {"functional": summarize_tests(tested)}
    chosen = choose_features(result, config.gallery, config.thresholds.rare_below)
    tables = {"image": store.items("image", ["key"]), "text": store.items("text", ["key", "text"])}
    read = functools.partial(read_thumbnails, store)
    cards = make_cards(chosen, result, score, concepts, items, context.panels, tables, config.gallery.items, read)
    return Outcome(metrics, result, tabulate_features(result, score, concepts), cards, rows, finding, functional=tested)


def _score_truth(config: AnalyzeConfig, evidence: Mapping[str, Evidence], concepts: Any, classes: np.ndarray) -> TruthScore:
    rule = Rule(config.thresholds.min_score, config.thresholds.alpha, config.thresholds.min_items)
    shuffles = [config.seed + 1 + index for index in range(config.n_shuffles)]
    return score_truth(evidence["image"], evidence["text"], concepts, classes, rule, shuffles)


def _count_decodable(context: Context, score: TruthScore) -> dict[str, Any]:
    concepts, least = context.inputs.store.concepts, context.config.thresholds.min_score
    assert context.probed is not None, "there is ground truth"
    scorable = find_scorable(score.tracking, np.array([concept.visibility for concept in concepts]))
    found = count_decodable(context.probed, concepts, scorable, least)
    return {name: {"value": value, "n": n, "unit": "concepts"} for name, (value, n) in found.items()}


def _f1(evidence: Mapping[str, Evidence]) -> np.ndarray:
    counts = [count_together(one.fired, one.present, one.weights[:1]) for one in (evidence["image"], evidence["text"])]
    return np.stack([f1(one)[0] for one in counts])
