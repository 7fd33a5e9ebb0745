"""A store whose activations are made of known concepts, and dictionaries trained on it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from thresher.analyze.run import AnalyzeConfig
from thresher.analyze.run import run as analyze
from thresher.analyze.truth import close_upward
from thresher.config import validate
from thresher.data.sources.scenes.settings import Scenes
from thresher.data.sources.scenes.source import ScenesSource
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter
from thresher.train.config import TrainConfig
from thresher.train.run import run as train

WIDTH = 48


def write_scenes_store(
    path: Path,
    n_records: int,
    *,
    captions: int = 2,
    modalities: tuple[str, ...] = ("image", "text"),
    states_concepts: bool = True,
    is_paired: bool = True,
) -> Path:
    """Activations as sums of directions of the concepts that are there, a gap between the modalities, and noise.

    A shared concept has one direction for both modalities. Hook points `vision.embed` and `text.embed`.
    """
    source = ScenesSource(Scenes(n_records=n_records, image_size=24, captions_per_image=captions))
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(len(source.concepts) + 2, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def activate(concepts: list[tuple[int, ...]], gap: int) -> torch.Tensor:
        present = close_upward(concepts, source.concepts) * generator.uniform(0.7, 1.3, (len(concepts), len(source.concepts)))
        x = present @ directions[:-2] + directions[gap] + 0.03 * generator.normal(size=(len(concepts), WIDTH))
        return torch.from_numpy(x).float()

    concepts = source.concepts if states_concepts else ()
    towers = {"image": ("vision.embed", -1), "text": ("text.embed", -2)}
    specs = [HookPointSpec(towers[name][0], name, f"{name}.items", WIDTH, "float32") for name in modalities]
    identity = {"model": {"kind": "made", "name": "of concepts"}, "source": {"kind": "scenes"}}
    with StoreWriter(path, identity, specs, concepts) as writer:
        for index in range(-(-n_records // 64)):
            records = list(source.records(index * 64, min((index + 1) * 64, n_records)))
            items, rows = {}, {}
            for name in modalities:
                items[name] = list(_items(name, index * 64, records))
                x = activate([item.concepts for item in items[name]], towers[name][1])
                items[name] = [item if concepts else item._replace(concepts=()) for item in items[name]]
                every = torch.arange(len(items[name]))
                rows[f"{name}.items"] = Rows(every, torch.full_like(every, -1, dtype=torch.int32), None, {towers[name][0]: x})
            pairs = [(i // captions, i) for i in range(len(records) * captions)] if len(modalities) == 2 and is_paired else []
            writer.write(Batch(index, items, pairs, rows))
        writer.finish()
    return path


def _items(modality: str, first: int, records: list):
    for offset, record in enumerate(records):
        if modality == "image":
            data = io.BytesIO()
            record.image.save(data, "PNG")
            yield Item(record.key, first + offset, "ok", None, data.getvalue(), record.image_concepts)
            continue
        for number, text in enumerate(record.texts):
            yield Item(f"{record.key}#{number}", first + offset, "ok", text.text, None, text.concepts)


def train_sae(store: Path, out: Path, hook_points: tuple[str, ...] = ("vision.embed", "text.embed"), **fields) -> Path:
    """A dictionary of 128 atoms, trained for a second or two."""
    values = {
        "store": str(store),
        "out": str(out),
        "hook_points": list(hook_points),
        "stream": {"batch_size": 512, "holdout": 0.4},
        "optimizer": {"lr": 3e-3},
        "rows": 60_000,
        "device": "cpu",
        "sae": {"kind": "topk", "d_sae": 128, "k": 12},
    } | fields
    return train(validate(TrainConfig, values, "test"))


@pytest.fixture(scope="session")
def scenes_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 records of an image and two captions each."""
    return write_scenes_store(tmp_path_factory.mktemp("analyze") / "store", 700)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Path]:
    """`write_scenes_store`, for tests that need another store."""
    return write_scenes_store


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., Path]:
    """`train_sae`, for tests that need another dictionary."""
    return train_sae


@pytest.fixture(scope="session")
def scenes_saes(scenes_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A TopK and a matching-pursuit dictionary."""
    folder = tmp_path_factory.mktemp("saes")
    topk = train_sae(scenes_store, folder / "topk")
    pursuit = train_sae(scenes_store, folder / "mp", sae={"kind": "mp", "d_sae": 128, "k": 12})
    return {"topk": topk, "mp": pursuit}


@pytest.fixture(scope="session")
def scenes_report(scenes_store: Path, scenes_saes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an analysis of both dictionaries."""
    values = {"store": scenes_store, "saes": scenes_saes, "out": tmp_path_factory.mktemp("report"), "n_bootstrap": 40}
    return analyze(validate(AnalyzeConfig, values, "test"))
