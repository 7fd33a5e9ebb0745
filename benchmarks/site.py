"""Size of the site of a large dictionary, the time to write it, and the time a browser needs to open its pages.

Codes, tables and thumbnails are made up; what is measured does not depend on what they say. `python benchmarks/site.py 16384`.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.sparse import csr_array
from site_browser import CHROMIUM, launch
from site_world import make_dictionary, make_facts

from thresher.analyze.config import Site
from thresher.analyze.site.build import build
from thresher.analyze.site.dashboards import Crossed, Dictionary
from thresher.analyze.site.items import Catalogue
from thresher.analyze.site.places import Places
from thresher.analyze.site.traces import Traces, Wanted

VIEWS = ("#/overview", "#/features/large", "#/feature/large/1", "#/bridge/large", "#/map/large", "#/pairs/large", "#/compare")
K = 32
N_ROWS = {"image": 257, "text": 40}
N_TOKENS = 30_000


def main() -> None:
    """Build and open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("d_sae", type=int, nargs="?", default=16_384)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--thumbnail", type=int, default=128)
    parser.add_argument("--seconds", type=int, default=60, help="patience with a page")
    parser.add_argument("--rows", action="store_true", help="items of 257 patches and 40 tokens")
    asked = parser.parse_args()
    dictionary, catalogues = make_large(asked.d_sae, asked.images), make_items(asked.images, asked.thumbnail)
    if asked.rows:
        dictionary, catalogues = dictionary._replace(tracer=draw_traces), add_places(catalogues)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        index = build(Path(folder) / "site", Site(), make_facts(["large"]), [dictionary], catalogues)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"d_sae {asked.d_sae}, {asked.images} images, {2 * asked.images} texts: written in {wall:.1f} s ({cpu:.1f} s CPU)"
        )
        sizes: dict[str, int] = {}
        for path in (path for path in index.parent.rglob("*") if path.is_file()):
            kind = path.relative_to(index.parent).parts[1] if path.parent != index.parent else "pages"
            sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
        print(
            f"{sum(sizes.values()) / 1e6:.1f} MB: "
            + ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sorted(sizes.items()))
        )
        visit(index, asked.seconds)


def make_large(d_sae: int, n_images: int) -> Dictionary:
    """A judged small dictionary's rows repeated, with random codes of Zipfian frequency."""
    generator = np.random.default_rng(0)
    small = make_dictionary("large", 0.8)
    rows = np.arange(d_sae) % len(small.atoms)
    assert small.crossed is not None
    table = small.features.take(pa.array(rows)).set_column(0, "feature", pa.array(np.arange(d_sae)))
    n_edges = 16 * d_sae
    edges = small.crossed.edges
    edges = edges.take(pa.array(np.arange(n_edges) % edges.num_rows))
    for place, name in enumerate(("i", "j")):
        edges = edges.set_column(place, name, pa.array(generator.integers(0, d_sae, n_edges)))
    edges = edges.set_column(edges.column_names.index("rho"), "rho", pa.array(generator.random(n_edges)))
    atoms = generator.normal(size=(d_sae, 512))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    image, text = (draw_codes(generator, n, d_sae) for n in (n_images, 2 * n_images))
    pairs = np.stack([np.repeat(np.arange(n_images), 2), np.arange(2 * n_images)], axis=1)
    return Dictionary("large", table, small.groups, {"image": image, "text": text}, atoms, Crossed(edges, pairs), None)


def draw_codes(generator: np.random.Generator, n_rows: int, d_sae: int) -> csr_array:
    """K positive codes per row; feature i is drawn in proportion to 1 / sqrt(i)."""
    share = 1 / np.sqrt(np.arange(1, d_sae + 1))
    features = generator.choice(d_sae, size=n_rows * K, p=share / share.sum())
    codes = csr_array((generator.gamma(2.0, size=n_rows * K), features, np.arange(0, n_rows * K + 1, K)), shape=(n_rows, d_sae))
    codes.sum_duplicates()
    return codes


def make_items(n_images: int, side: int) -> dict[str, Catalogue]:
    """Thumbnails that compress like photographs (smoothed noise; 64 different ones), and two captions each."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        noise = Image.fromarray(generator.integers(0, 256, (side // 6, side // 6, 3), dtype=np.uint8)).resize((side, side))
        data = io.BytesIO()
        noise.save(data, "WEBP", quality=80)
        pictures.append(data.getvalue())
    print(f"thumbnails of {np.mean([len(one) for one in pictures]):.0f} bytes")
    thumbnails = pa.array([pictures[index % 64] for index in range(n_images)], pa.binary())
    images = pa.table({"key": [f"image-{index}" for index in range(n_images)], "thumbnail": thumbnails})
    captions = [f"a caption of about sixty letters, as people write them, {index}" for index in range(2 * n_images)]
    texts = pa.table({"key": [str(index) for index in range(2 * n_images)], "text": captions})
    return {"image": Catalogue(images, np.arange(n_images)), "text": Catalogue(texts, np.arange(2 * n_images))}


def draw_traces(modality: str, wanted: Wanted) -> Traces:
    """About six active rows in every item."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 12, len(wanted.item))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    place = generator.integers(0, N_ROWS[modality] // 12, starts[-1]) + 1
    first = np.repeat(np.concatenate([[0], np.cumsum(place)])[starts[:-1]], lengths)
    return Traces(starts, np.cumsum(place) - first - 1, generator.gamma(2.0, size=starts[-1]))


def add_places(catalogues: dict[str, Catalogue]) -> dict[str, Catalogue]:
    """A class token and 16 x 16 patches per image, 40 tokens per text."""
    cells = np.array([[-1, -1], *([row, column] for row in range(16) for column in range(16))], np.int16)
    made: dict[str, Catalogue] = {}
    for name, one in catalogues.items():
        n, n_rows = len(one.items), N_ROWS[name]
        is_text = name == "text"
        ids = np.random.default_rng(0).integers(0, N_TOKENS, n * n_rows) if is_text else None
        patch = None if is_text else np.tile(cells, (n, 1))
        pieces = {token: f" token{token}" for token in range(N_TOKENS)}
        made[name] = one._replace(places=Places(np.arange(n + 1) * n_rows, ids, patch, pieces))
    return made


def visit(index: Path, seconds: int) -> None:
    """Seconds from a fresh page to each view drawn."""
    if CHROMIUM is None:
        print("no Chromium: pages were not opened")
        return
    with launch() as browser:
        for view in VIEWS:
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            begun = time.perf_counter()
            page.goto(index.as_uri() + view)
            page.wait_for_selector("#main[data-ready]", timeout=1000 * seconds)
            print(f"{view}: {time.perf_counter() - begun:.2f} s")
            page.context.close()


if __name__ == "__main__":
    main()
