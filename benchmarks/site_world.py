"""A site of a made world, with texts that would do harm were they taken for markup."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.sparse import csr_array

from thresher.analyze.battery.headline import summarize
from thresher.analyze.battery.judge import Settings, judge
from thresher.analyze.battery.steps import StepSums
from thresher.analyze.battery.tabulate import make_table, tabulate_edges, tabulate_features
from thresher.analyze.battery.toy import Toy, draw_toy
from thresher.analyze.config import Battery, Site, Thresholds
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.site.build import Facts, build
from thresher.analyze.site.dashboards import Crossed, Dictionary
from thresher.analyze.site.items import Catalogue
from thresher.analyze.site.places import Places
from thresher.analyze.site.traces import Chunk, Traces, Wanted, trace
from thresher.config import to_dict

HOSTILE = "</script><img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\u2028 & \"quotes\""
SETTINGS = Settings(Thresholds(), Battery(n_derangements=1), Resample(20, 0))
RECORDS = 500


def make_dictionary(name: str, cosine: float, *, seed: int = 0) -> Dictionary:
    """Oracle codes of a made world, judged like any dictionary; the names of features are hostile."""
    toy = Toy(n_records=RECORDS, captions=2, d_in=24, n_shared=30, n_private=8, n_mixed=10, cosine=cosine, rate=0.15, seed=seed)
    world = draw_toy(toy, SETTINGS.resample)
    judged = judge(world.sides, world.embeddings, None, SETTINGS)
    n = len(judged.classes)
    names = {f"name_{side}": [f"{HOSTILE} {side} {feature}" for feature in range(n)] for side in ("image", "text")}
    steps = {
        side: StepSums(10, np.ones((3, n)), np.ones((3, n)), np.zeros(3, int), np.zeros(3, int)) for side in ("image", "text")
    }
    sides, groups = judged.sides, summarize(judged, SETTINGS)
    groups |= {"meaning": "external", "pairs": {"n": len(sides.pairs), "n_images": RECORDS}, "seeds": {"n": 0, "others": []}}
    return Dictionary(
        name,
        make_table(tabulate_features(judged, steps) | names),
        groups,
        {"image": sides.image.codes, "text": sides.text.codes},
        sides.dictionary,
        Crossed(make_table(tabulate_edges(judged, SETTINGS)), sides.pairs),
        steps,
    )


def make_catalogues() -> dict[str, Catalogue]:
    """Images with thumbnails (every seventh without) and captions, some of them equal, all of them hostile."""
    pictures: list[bytes | None] = []
    for index in range(RECORDS):
        data = io.BytesIO()
        Image.new("RGB", (40, 30), (index % 256, 90, 160)).save(data, "PNG")
        pictures.append(None if index % 7 == 0 else data.getvalue())
    keys = [f"{HOSTILE} {index}" for index in range(RECORDS)]
    texts = [f"{HOSTILE} caption {index // 3}" for index in range(2 * RECORDS)]
    images = pa.table({"key": keys, "thumbnail": pa.array(pictures, pa.binary())})
    captions = pa.table({"key": [f"{index}" for index in range(2 * RECORDS)], "text": texts})
    return {"image": Catalogue(images, np.arange(RECORDS)), "text": Catalogue(captions, np.arange(2 * RECORDS))}


def make_facts(names: list[str]) -> Facts:
    """metrics.json as far as the site reads it."""

    def number(value: float) -> dict[str, object]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": RECORDS, "unit": "rows"}

    saes = {}
    for index, name in enumerate(names):
        values = {
            "r2": 0.9 - index / 10,
            "fvu": 0.1 + index / 10,
            "nmse": 0.1,
            "cosine": 0.9,
            "cosine_of_mean": 0.5,
            "l0": 8.0 + index,
        }
        found = {panel: {key: number(value) for key, value in values.items()} for panel in ("image", "text", "pooled")}
        saes[name] = {
            "reconstruction": found,
            "dead": {panel: number(0.1) for panel in found},
            "d_sae": 100,
            "d_in": 24,
            "architecture": {"kind": "topk"},
        }
    panel = {"hook_point": "embed", "n_items": RECORDS, "n_rows": RECORDS, "width": 24}
    results = {
        "store": {"model": HOSTILE, "source": "made", "fingerprint": "0" * 64, "path": "store"},
        "held_out": {"fraction": 0.1, "seed": 0, "records": RECORDS, "panels": {"image": panel, "text": panel}},
        "thresholds": to_dict(SETTINGS.thresholds),
        "battery": to_dict(SETTINGS.battery),
        "calibration": None,
        "n_bootstrap": 20,
        "order": names,
        "saes": saes,
    }
    warnings = [
        {"id": "one", "sae": None, "text": HOSTILE, "numbers": {}},
        {"id": "two", "sae": names[0], "text": HOSTILE, "numbers": {}},
    ]
    return Facts(results, warnings, 0)


def build_world(
    folder: Path, dictionaries: list[Dictionary], site: Site | None = None, catalogues: dict[str, Catalogue] | None = None
) -> Path:
    """The site's first page."""
    facts = make_facts([one.name for one in dictionaries])
    return build(folder, site or Site(items=6, samples=2, pairs=5), facts, dictionaries, catalogues or make_catalogues())


ROWS = {"image": 7, "text": 5}
"""Rows of each item: a class token and 2 x 3 patches, or five tokens."""


def add_rows(one: Dictionary) -> Dictionary:
    """The same dictionary where every item has several rows: a code stands in one of them, half of it in the next."""

    def read(modality: str, wanted: Wanted) -> Traces:
        codes, n_rows = one.codes[modality].tocsr(), ROWS[modality]
        item, feature = np.nonzero(codes.toarray())
        value, first = codes.toarray()[item, feature], (item + feature) % n_rows
        rows = np.concatenate([item * n_rows + first, item * n_rows + (first + 1) % n_rows])
        entries = (np.concatenate([value, value / 2]), (rows, np.concatenate([feature, feature])))
        n_items, n_features = codes.toarray().shape
        by_row = csr_array(entries, shape=(n_items * n_rows, n_features))
        every = np.arange(n_items * n_rows)
        return trace(iter([Chunk(by_row, every // n_rows, every % n_rows)]), wanted)

    return one._replace(ranked={name: abs(codes) for name, codes in one.codes.items()}, tracer=read)


def add_places(catalogues: dict[str, Catalogue]) -> dict[str, Catalogue]:
    """The same items, their rows told apart; token 3 has no text that it stands for."""
    pieces = {0: HOSTILE, 1: " one", 2: "\n", 4: " four"}
    cells = np.array([[-1, -1], *([row, column] for row in range(2) for column in range(3))])
    made: dict[str, Catalogue] = {}
    for name, one in catalogues.items():
        n, n_rows = len(one.items), ROWS[name]
        is_text = name == "text"
        ids = np.arange(n * n_rows) % 5 if is_text else None
        patch = None if is_text else np.tile(cells, (n, 1))
        made[name] = one._replace(places=Places(np.arange(n + 1) * n_rows, ids, patch, pieces if is_text else {}))
    return made
