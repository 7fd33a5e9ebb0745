"""The harvest: a source through a model into a store, resumable at any point."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image

from thresher.data.records import Concept, Modality, Source
from thresher.data.sources import InMemory, open_source
from thresher.data.store import (
    Batch,
    HookPointSpec,
    Share,
    StoreWriter,
    format_bytes,
    is_finished,
    refuse_foreign_store,
    write_beside,
)
from thresher.devices import find_device
from thresher.errors import ConfigError, ModelError, SourceError
from thresher.harvest.adapters import Adapter, open_adapter
from thresher.harvest.adapters.base import HookPoint
from thresher.harvest.decoding import DecodingProcesses, check_picklable
from thresher.harvest.forward import Reader, split_status
from thresher.harvest.outliers import find_bounds
from thresher.harvest.prepare import Prepared, Preparer, prepare_ahead
from thresher.harvest.ranks import Work, write_share
from thresher.harvest.rows import name_space, select_tokens
from thresher.harvest.settings import HarvestConfig
from thresher.progress import log, progress
from thresher.runs import describe_run
from thresher.team import Team, open_team

VERSION = 2
"""Part of a harvest's identity; raise it when the same settings would give other bytes."""

__all__ = ["Harvest", "HarvestConfig", "open_harvest", "run"]


def run(config: HarvestConfig, *, source: Source | None = None) -> str | Path:
    """Harvest into `config.out` and return it; goes on where it was stopped, returns at once when it is finished.

    `source` gives the records of a configuration whose source is `in-memory`: `MemorySource(examples)`, or any `Source`.
    Processes that are launched together share the work, see `thresher.harvest.ranks`.

    Raises ConfigError (`out` holds other things), SourceError (missing, empty, unreadable), ModelError (cannot be loaded,
    unknown hook point, values that are not finite), StoreError (another harvest's store, no space left), ThresherError
    (another process of the launch has ended). What is committed survives all of them.
    """
    refuse_foreign_store(config.out)
    opened = _open(config, source)

    def open_writer(share: Share | None) -> StoreWriter:
        return StoreWriter(
            config.out,
            opened.identity,
            opened.specs,
            opened.concepts,
            items_per_shard=config.items_per_shard,
            profile=config.profile,
            portable_dtype=config.portable_dtype,
            share=share,
        )

    with open_team() as team:
        profile, portable = config.profile, config.portable_dtype
        if team.agree(lambda: is_finished(config.out, opened.identity, profile, portable_dtype=portable)):
            log(f"harvest: {config.out} is complete")
            return config.out
        with _decoder(config, opened.adapter, opened.prepare) as prepare:
            work = Work(config, opened.make_reader(), prepare, sorted({spec.space for spec in opened.specs}))
            with write_share(team, work, open_writer) if team.n_ranks > 1 else open_writer(None) as writer:
                if team.is_first:
                    write_beside(config.out, describe_run(config, opened.inputs))
                done = _fill(writer, work, team)
    log(f"harvest: {config.out}: {done}")
    return config.out


class Harvest(NamedTuple):
    """A harvest that hands its batches to the caller."""

    specs: Sequence[HookPointSpec]
    identity: Mapping[str, Any]
    """What decides its rows, as in the store that it would write."""
    n_batches: int
    read: Callable[[Sequence[int]], Generator[Batch, None, None]]
    """The batches of these numbers in order, each the same whenever it is read. To be closed by who has not read them all."""


@contextmanager
def open_harvest(config: HarvestConfig, *, source: Source | None = None) -> Generator[Harvest, None, None]:
    """A harvest whose batches are not written anywhere (`config.out` is not looked at). Raises what `run` raises."""
    opened = _open(config, source)
    with _decoder(config, opened.adapter, opened.prepare) as prepare:
        reader = opened.make_reader()

        def read(batches: Sequence[int]) -> Generator[Batch, None, None]:
            return reader.read(prepare_ahead(prepare, batches, config.workers))

        yield Harvest(opened.specs, opened.identity, prepare.n_batches, read)


class _Opened(NamedTuple):
    """Model and source of a harvest, checked."""

    config: HarvestConfig
    adapter: Adapter
    prepare: Preparer
    hook_points: Sequence[HookPoint]
    specs: Sequence[HookPointSpec]
    bounds: Mapping[str, float]
    identity: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Fingerprints of what goes in."""
    concepts: Sequence[Concept]

    def make_reader(self) -> Reader:
        """What reads the model."""
        return Reader(self.config, self.adapter, self.hook_points, self.bounds)


def _open(config: HarvestConfig, source: Source | None) -> _Opened:
    source = _open_source(config, source)
    if len(source) == 0:
        raise SourceError(f"source {config.source.kind}: no records; the source is empty")
    adapter = open_adapter(config.model, find_device(config.device))
    hook_points = _resolve(config, source, adapter)
    modalities: list[Modality] = [known for known in source.modalities if any(point.modality == known for point in hook_points)]
    prepare = Preparer(config, source, adapter, modalities)
    bounds = find_bounds(config.outliers, [point.name for point in hook_points])
    identity = _identify(config, source, adapter, hook_points, prepare.n_records) | _identify_rows(config, bounds)
    spaces = {point.name: name_space(point, config.pool) for point in hook_points}
    specs = [HookPointSpec(point.name, point.modality, spaces[point.name], point.width, config.dtype) for point in hook_points]
    inputs = {"source": source.fingerprint, "model": adapter.identity["weights"]}
    return _Opened(config, adapter, prepare, hook_points, specs, bounds, identity, inputs, source.concepts)


def _open_source(config: HarvestConfig, given: Source | None) -> Source:
    if given is None:
        return open_source(config.source)
    if not isinstance(config.source, InMemory):
        raise ConfigError(f"source: records are given, but source.kind is {config.source.kind!r}; say in-memory")
    if not isinstance(cast(object, given), Source):
        raise SourceError(f"source: {type(given).__name__}, expected a Source; wrap what you hold: MemorySource(examples)")
    return given


@contextmanager
def _decoder(config: HarvestConfig, adapter: Adapter, prepare: Preparer) -> Generator[Preparer, None, None]:
    """The preparer that decodes where the configuration says, while the block runs."""
    if config.decode == "threads":
        yield prepare
        return
    transform = adapter.image_transform
    if transform is not None:
        check_picklable(transform)
    with DecodingProcesses(config.workers) as processes:
        yield prepare.decode_in(processes, transform)


def _resolve(config: HarvestConfig, source: Source, adapter: Adapter) -> tuple[HookPoint, ...]:
    """The hook points, after checking that their towers have the positions asked for."""
    modalities: list[Modality] = [known for known in adapter.modalities if known in source.modalities]
    if not modalities:
        raise ConfigError(
            f"the source has {' and '.join(source.modalities)}, the model reads {' and '.join(adapter.modalities)}: "
            "nothing in common"
        )
    hook_points = adapter.resolve(config.hook_points, modalities)
    kinds = {(point.modality, point.level) for point in hook_points}
    if ("image", "tokens") in kinds:
        select_tokens(adapter.prepare_images([Image.new("RGB", (64, 64))]).layout, config.image_rows)
    if config.text_passes == "packed" and ("text", "items") in kinds:
        raise ModelError("text_passes=packed: a hook point with a row per text has none for texts that share a sequence")
    if ("text", "tokens") in kinds:
        if config.text_rows == "image" and not adapter.reads_pairs:
            raise ModelError("text_rows=image: this model reads texts without images; use all, text, content, last or eot")
        if not adapter.reads_pairs:
            select_tokens(adapter.prepare_texts(["a"]).layout, config.text_rows)
    return hook_points


def _identify(
    config: HarvestConfig, source: Source, adapter: Adapter, hook_points: Sequence[HookPoint], n_records: int
) -> dict[str, Any]:
    """Everything that decides the bytes of the store, but the device and the versions of libraries."""
    return {
        "harvest": VERSION,
        "model": dict(adapter.identity),
        "source": {"kind": config.source.kind, "fingerprint": source.fingerprint, "n_records": n_records},
        "hook_points": [point.name for point in hook_points],
        "rows": {"image": config.image_rows, "text": config.text_rows},
        "dtype": config.dtype,
        "autocast": config.autocast,
        "batch_size": config.batch_size,
        "order": "source" if config.order == "source" else f"shuffled by seed {config.seed}",
        "thumbnail": config.thumbnail,
        "items_per_shard": config.items_per_shard,
    }


def _identify_rows(config: HarvestConfig, bounds: Mapping[str, float]) -> dict[str, Any]:
    """What decides rows beside the policies: only what is asked for, so that a harvest without it stays the same."""
    outliers = {"outliers": {"action": config.outliers.action, "bounds": dict(bounds)}} if config.outliers else {}
    subset = {"positions_per_item": f"{config.positions_per_item} by seed {config.seed}"} if config.positions_per_item else {}
    pool = {"pool": config.pool} if config.pool != "none" else {}
    passes = {"text_passes": config.text_passes} if config.text_passes != "source" else {}
    passes |= {"packed_length": config.packed_length} if config.text_passes == "packed" else {}
    compiled = {"compile": True} if config.compile else {}
    return outliers | subset | pool | passes | compiled


def _fill(writer: StoreWriter, work: Work, team: Team) -> str:
    """Write what is missing; gives what all processes together have written."""
    config, prepare = work.config, work.prepare
    batches = writer.missing(prepare.n_batches)
    starts = team.gather(batches[0] if batches else prepare.n_batches)
    first = min(starts)
    if first:
        log(f"harvest: resuming {config.out} at record {first * config.batch_size} of {prepare.n_records}")
    # At its end a process takes batches that the next one takes too: they count once.
    stop = min(starts[team.rank + 1 :], default=prepare.n_batches)
    counts: Counter[str] = Counter()
    problem = ""
    n_left = sum(min(config.batch_size, prepare.n_records - batch * config.batch_size) for batch in batches)
    made = work.reader.read(_watch(writer, prepare_ahead(prepare, batches, config.workers)))
    with progress(f"harvest{team.label}", n_left, "records") as advance, closing(made):
        for batch in made:
            writer.write(batch)
            counts += _count(batch) if batch.index < stop else Counter()
            advance(min(config.batch_size, prepare.n_records - batch.index * config.batch_size))
            problem = problem or _find_problem(batch)
        total = sum(team.gather(counts), Counter[str]())
        if not first:
            _check_rows(work, total, problem)
        writer.finish()
    return _describe(total) + (" since it was resumed" if first else "")


def _find_problem(batch: Batch) -> str:
    """What is told of the first item that is not all right; empty when there is none."""
    return next((item.status for items in batch.items.values() for item in items if item.status != "ok"), "")


def _check_rows(work: Work, total: Mapping[str, int], problem: str) -> None:
    """Raise SourceError when nothing at all would be stored; tell where nothing is."""
    empty = [space for space in work.spaces if not total[f"rows of {space}"]]
    if len(empty) == len(work.spaces):
        raise SourceError(
            f"{work.config.out}: no item gives a row ({problem or 'there are no such items'}); the store was not finished; "
            "mend the source, delete the store, and harvest again"
        )
    for space in empty:
        log(f"harvest: {work.config.out}: no rows in {space}" + (f" ({problem})" if problem else ""))


def _watch(writer: StoreWriter, batches: Generator[Prepared, None, None]) -> Generator[Prepared, None, None]:
    """The batches, as long as the disk takes what is made of them: none is computed for one that has failed."""
    with closing(batches):
        for batch in batches:
            writer.raise_error()
            yield batch


def _count(batch: Batch) -> Counter[str]:
    counts: Counter[str] = Counter()
    for modality, items in batch.items.items():
        counts[modality] += len(items)
        counts.update(item.status.partition(":")[0] for item in items)
        for item in items:
            status, n_rows = split_status(item.status)
            counts[f"{status} rows"] += n_rows
    for space, rows in batch.rows.items():
        counts[f"rows of {space}"] += len(rows.item)
        counts["rows"] += sum(len(values) for values in rows.activations.values())
        counts["bytes"] += sum(values.nbytes for values in rows.activations.values())
    return counts


def _describe(counts: Mapping[str, int]) -> str:
    items: list[Modality] = ["image", "text"]
    parts = [f"{counts[modality]} {modality} items" for modality in items if counts[modality]]
    parts += [f"{counts['rows']} rows", format_bytes(counts["bytes"])]
    parts += [f"{counts[status]} {status}" for status in ("unreadable", "truncated") if counts[status]]
    changed = ("nonfinite", "outlier", "clipped")
    parts += [f"{counts[status]} {status} ({counts[f'{status} rows']} rows)" for status in changed if counts[status]]
    return ", ".join(parts)
