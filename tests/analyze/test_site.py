"""The laws of the site's data: safe, equal for equal analyses, complete, and what they say of items and pairs is true."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from site_world import HOSTILE, build_world, make_catalogues, make_dictionary

from thresher.analyze.config import Site
from thresher.analyze.site.build import choose
from thresher.analyze.site.choose import N_BANDS, choose_items
from thresher.analyze.site.dashboards import Dictionary
from thresher.analyze.site.explain import N_TERMS, explain_pairs
from thresher.analyze.site.items import Book, encode_picture
from thresher.analyze.site.layout import find_nearest, map_atoms
from thresher.analyze.site.shards import IMAGES_PER_SHARD, PER_SHARD, encode, round_number
from thresher.errors import ConfigError


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    return make_dictionary("one", 0.8)


@pytest.fixture(scope="module")
def folder(dictionary: Dictionary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("site") / "site", [dictionary]).parent


def read_shard(path: Path):
    """What a shard hands to the page."""
    name, value = re.fullmatch(r'THRESHER\.put\(("[^"]*"),(.*)\);\n', path.read_text("ascii"), re.DOTALL).groups()
    assert (
        json.loads(name) == path.relative_to(next(one for one in path.parents if one.name == "data")).with_suffix("").as_posix()
    )
    return json.loads(value)


def read_all(folder: Path, kind: str) -> list:
    return [entry for path in sorted((folder / "data" / kind).glob("*.js")) for entry in read_shard(path)]


@given(st.text(max_size=40) | st.sampled_from([HOSTILE]))
@settings(deadline=None, max_examples=60)
def test_a_text_comes_back_as_it_was_and_is_never_markup(text: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return
    encoded = encode([text])
    assert json.loads(encoded) == [text]
    assert encoded.isascii()
    assert not set(encoded) & set("<>")


def test_undefined_numbers_become_null_and_others_keep_five_digits() -> None:
    assert encode([float("nan"), float("inf"), np.float64(1 / 3), 2.0, np.int64(7), True]) == "[null,null,0.33333,2,7,true]"
    assert round_number(123456.0) == 123460


def test_equal_analyses_give_equal_files(folder: Path, dictionary: Dictionary, tmp_path: Path) -> None:
    again = build_world(tmp_path / "again", [dictionary]).parent
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("n_rows", "n_top", "n_samples"), [(1, 1, 0), (7, 3, 2), (130, 4, 3), (130, 200, 3)])
def test_the_strongest_come_first_and_samples_lie_in_their_quarter(n_rows: int, n_top: int, n_samples: int) -> None:
    generator = np.random.default_rng(n_rows)
    codes = generator.choice([-2.0, 0.0, 1.0, 3.0], (n_rows, 5)) * generator.choice([1.0, 1.5], (n_rows, 5))
    same = np.arange(n_rows) // 2
    for feature, chosen in enumerate(choose_items(csr_array(codes), same, n_top, n_samples)):
        ranked = sorted(np.flatnonzero(codes[:, feature]).tolist(), key=lambda row: (-abs(codes[row, feature]), row))
        first = list({same[row]: row for row in reversed(ranked)}.values())
        expected = [row for row in ranked if row in set(first)]
        assert chosen.n == len(expected)
        assert chosen.top.tolist() == expected[:n_top]
        np.testing.assert_array_equal(chosen.top_codes, codes[chosen.top, feature])
        assert bool(chosen.bands) == (len(expected) > n_top and n_samples > 0)
        for band, items in enumerate(chosen.bands):
            places = [expected.index(row) for row in items.tolist()]
            bounds = len(expected) * band / N_BANDS - 1, len(expected) * (band + 1) / N_BANDS
            assert len(places) <= n_samples
            assert all(bounds[0] <= place < bounds[1] for place in places)


def test_terms_of_a_pair_add_up_to_the_similarity_of_its_reconstructions(dictionary: Dictionary) -> None:
    books = tuple(Book(one, np.arange(len(one.items))) for one in make_catalogues().values())
    image_codes, text_codes, pairs = dictionary.codes["image"], dictionary.codes["text"], dictionary.crossed.pairs
    found = explain_pairs((image_codes, text_codes), dictionary.atoms, pairs, books, 40, 0)
    assert len(found["images"]) == 40
    x, y = image_codes @ dictionary.atoms, text_codes @ dictionary.atoms
    complete = 0
    for one in found["images"]:
        image = books[0].positions[one["image"]]
        assert {books[1].positions[caption["text"]] for caption in one["captions"]} == set(
            pairs[pairs[:, 0] == image, 1].tolist()
        )
        for caption in one["captions"]:
            text = books[1].positions[caption["text"]]
            assert caption["total"] == pytest.approx(x[image] @ y[text], abs=1e-9)
            assert caption["norms"] == pytest.approx([np.linalg.norm(x[image]), np.linalg.norm(y[text])])
            terms = caption["terms"]
            assert len(terms) == min(N_TERMS, caption["n_terms"])
            assert all(term == pytest.approx(z * w * cosine) for _, _, z, w, cosine, term in terms)
            sizes = [abs(term[5]) for term in terms]
            assert sizes == sorted(sizes, reverse=True)
            if len(terms) == caption["n_terms"]:
                complete += 1
                assert sum(term[5] for term in terms) == pytest.approx(caption["total"], abs=1e-9)
    assert complete
    assert found["chance"] == pytest.approx(float((x @ y.T).mean()))


@pytest.mark.parametrize(("n_atoms", "n"), [(1, 3), (2, 3), (7, 3), (33, 8), (1100, 4)])
def test_nearest_atoms_are_those_of_the_largest_cosine(n_atoms: int, n: int) -> None:
    generator = np.random.default_rng(n_atoms)
    atoms = generator.normal(size=(n_atoms, 6))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    alive = generator.random(n_atoms) < 0.8
    alive[0] = True
    near, cosine = find_nearest(atoms, alive, n)
    similar = np.where(alive[None], atoms @ atoms.T, -np.inf)
    np.fill_diagonal(similar, -np.inf)
    assert near.shape == (n_atoms, max(0, min(n, alive.sum() - 1)))
    np.testing.assert_allclose(cosine, -np.sort(-similar, axis=1)[:, : near.shape[1]], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(similar, near, axis=1), cosine, atol=1e-6)


def test_a_map_without_the_gap_does_not_part_atoms_along_it() -> None:
    generator = np.random.default_rng(0)
    gap = np.eye(8)[0]
    sides = np.repeat([1.0, -1.0], 40)
    atoms = 0.3 * generator.normal(size=(80, 8)) + 2 * sides[:, None] * gap
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    alive = np.arange(80) != 5
    found = map_atoms(atoms, 3 * gap, alive, with_umap=False)
    assert found["features"].tolist() == np.flatnonzero(alive).tolist()
    with_gap, without = (
        np.abs(np.corrcoef(found["layouts"][name]["x"], sides[alive])[0, 1]) for name in ("pca_atoms", "pca_without_gap")
    )
    assert with_gap > 0.99
    assert without < 0.4
    np.testing.assert_array_less(0, found["layouts"]["pca_atoms"]["shares"])


@pytest.mark.slow
def test_umap_is_the_same_every_time() -> None:
    pytest.importorskip("umap")
    atoms = np.random.default_rng(0).normal(size=(60, 8))
    first, second = (map_atoms(atoms, atoms[0], np.ones(60, bool), with_umap=True)["layouts"]["umap_atoms"] for _ in range(2))
    np.testing.assert_array_equal(first["x"], second["x"])


def test_every_feature_has_a_page_and_every_item_on_it_is_there(folder: Path, dictionary: Dictionary) -> None:
    features, images, texts = read_all(folder, "one"), read_all(folder, "images"), read_all(folder, "texts")
    features = [one for one in features if isinstance(one, dict) and "row" in one]
    columns = read_shard(folder / "data" / "one" / "table.js")["all"]
    assert columns == dictionary.features.column_names
    assert len(features) == len(dictionary.atoms)
    for place, feature in enumerate(features):
        assert feature["row"][columns.index("feature")] == place
        for side, known in (("image", images), ("text", texts)):
            numbers = feature[side]["top"][0] + [number for band in feature[side]["bands"] for number in band[0]]
            assert all(0 <= number < len(known) for number in numbers)
            assert sum(feature[side]["histogram"][1]) == np.count_nonzero(dictionary.codes[side][:, [place]].toarray())
    assert all(len(read_shard(path)) <= IMAGES_PER_SHARD for path in (folder / "data" / "images").glob("*.js"))
    assert all(len(read_shard(path)) <= PER_SHARD for path in (folder / "data" / "texts").glob("*.js"))
    assert len(texts) == len(set(texts))
    assert {uri[:22] for _, uri in images} == {"", "data:image/png;base64,"}


def test_partners_are_the_edges_seen_from_both_ends(folder: Path, dictionary: Dictionary) -> None:
    features = [one for one in read_all(folder, "one") if isinstance(one, dict) and "row" in one]
    edges = dictionary.crossed.edges.to_pylist()
    assert sum(len(feature["partners"][0]) for feature in features) == len(edges)
    for edge in edges:
        seen = [one for one in features[edge["i"]]["partners"][0] if one[0] == edge["j"]]
        back = [one for one in features[edge["j"]]["partners"][1] if one[0] == edge["i"]]
        assert len(seen) == len(back) == 1
        assert seen[0][1] == pytest.approx(edge["rho"], rel=1e-4)
        assert seen[0][4] == edge["count"]


def test_large_pictures_are_made_smaller_and_small_ones_stay() -> None:
    data = make_catalogues()["image"].table["thumbnail"][1].as_py()
    assert encode_picture(data, 40).startswith("data:image/png;")
    assert encode_picture(data, 16).startswith("data:image/webp;")
    assert encode_picture(None, 16) == ""


def test_fewer_images_are_shown_when_they_would_take_more_than_the_budget(dictionary: Dictionary) -> None:
    same = {name: one.same() for name, one in make_catalogues().items()}
    sizes = {"image": np.full(len(same["image"]), 40_000), "text": np.zeros(len(same["text"]), int)}
    rich, poor = (choose(Site(items=12, budget=budget), [dictionary], same, sizes)["one"] for budget in (150, 12))
    assert max(len(one.top) for one in rich["image"]) == 12
    shown = {int(row) for one in poor["image"] for row in np.concatenate([one.top, *one.bands])}
    assert len(shown) * 40_000 <= 12_000_000
    assert 1 <= max(len(one.top) for one in poor["image"]) < 12
    assert max(len(one.top) for one in poor["text"]) == max(len(one.top) for one in poor["image"])


@pytest.mark.parametrize("field", ["items", "samples", "thumbnail", "budget", "traces", "nearest", "pairs"])
def test_nonsense_is_refused_with_its_value(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"site\.{field}=-1"):
        Site(**{field: -1})


def test_an_analysis_lists_its_site_and_links_it(scenes_report: Path) -> None:
    out = scenes_report.parent
    files = json.loads((out / "manifest.json").read_text("utf-8"))["files"]
    on_disk = {path.relative_to(out).as_posix() for path in (out / "site").rglob("*") if path.is_file()}
    assert on_disk
    assert on_disk <= set(files)
    assert 'href="site/index.html"' in scenes_report.read_text("utf-8")
    run = read_shard(out / "site" / "data" / "run.js")
    assert set(run["order"]) == {"topk", "mp"}
