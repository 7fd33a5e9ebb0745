"""The laws of what the site shows inside of items: rows of tokens and patches, what they stand for, and their codes."""

import base64
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from site_world import ROWS, add_places, add_rows, build_world, make_catalogues, make_dictionary

from thresher.analyze.config import Site
from thresher.analyze.site.build import choose, name_by_tokens
from thresher.analyze.site.choose import choose_items
from thresher.analyze.site.dashboards import Dictionary
from thresher.analyze.site.items import Catalogue, measure_items
from thresher.analyze.site.places import Places, find_frame
from thresher.analyze.site.traces import STEPS, Chunk, Wanted, pack, pack_traces, trace
from thresher.harvest.spelling import decode_tokens


@pytest.fixture(scope="module")
def one() -> Dictionary:
    """A dictionary whose items have several rows."""
    return add_rows(make_dictionary("one", 0.8))


def unpack(text: str) -> dict[int, int]:
    """What rows.js makes of it: row -> step."""
    found, place = {}, -1
    data = base64.b64decode(text)
    for gap, step in zip(data[::2], data[1::2], strict=True):
        if gap == 255:
            place += 255
            continue
        place += gap + 1
        found[place] = step - 256 if step > 127 else step
    return found


@given(st.dictionaries(st.integers(0, 2000), st.floats(-1, 1), max_size=20))
@settings(deadline=None, max_examples=60)
def test_packed_codes_come_back_to_half_a_step(codes: dict[int, float]) -> None:
    places = np.array(sorted(codes), dtype=np.int64)
    found = unpack(pack(places, np.array([codes[place] for place in places.tolist()], dtype=np.float64)))
    assert list(found) == places.tolist()
    assert all(abs(step / STEPS - codes[place]) <= 0.5 / STEPS + 1e-9 for place, step in found.items())


@pytest.mark.parametrize("chunk", [1, 7, 33, 130])
def test_traces_are_the_codes_of_the_wanted_pairs_row_by_row(chunk: int) -> None:
    generator = np.random.default_rng(chunk)
    lengths = generator.integers(1, 9, 20)
    item = np.repeat(np.arange(20), lengths)
    place = np.arange(len(item)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    codes = generator.normal(size=(len(item), 6)) * (generator.random((len(item), 6)) < 0.4)
    starts = range(0, len(item), chunk)
    chunks = (
        Chunk(csr_array(codes[start : start + chunk]), item[start : start + chunk], place[start : start + chunk])
        for start in starts
    )
    pairs = np.unravel_index(generator.permutation(20 * 6)[:50], (20, 6))
    found = trace(chunks, Wanted(*pairs))
    for number, (one, feature) in enumerate(zip(*pairs, strict=True)):
        part = slice(found.starts[number], found.starts[number + 1])
        own = codes[item == one, feature]
        np.testing.assert_array_equal(found.place[part], np.flatnonzero(own))
        np.testing.assert_array_equal(found.value[part], own[own != 0])


def test_cells_that_follow_each_other_are_told_by_the_rows_before_them() -> None:
    grid = [[row, column] for row in range(2) for column in range(3)]
    patch = np.array([[-1, -1], *grid, *grid[::-1], [-1, -1], [-1, -1]])
    places = Places(np.array([0, 7, 13, 14, 15]), np.arange(15), patch, {})
    ids, shape, cells = places.describe(0)
    assert (ids.tolist(), shape.tolist(), cells) == (list(range(7)), [2, 3], 1)
    assert places.describe(1)[2].tolist() == [5, 4, 3, 2, 1, 0]
    assert places.describe(2)[1:] == [None, None]
    assert places.count_rows().tolist() == [7, 6, 1, 1]


def test_the_strongest_row_of_every_shown_item_has_its_code(one: Dictionary) -> None:
    same = {name: catalogue.same() for name, catalogue in make_catalogues().items()}
    for name in ("image", "text"):
        chosen = choose_items(one.shown(name), same[name], 5, 2)
        packed = pack_traces(one.tracer, name, chosen, 10**7)
        for feature, (found, shown) in enumerate(zip(packed, chosen, strict=True)):
            items = np.concatenate([shown.top, *shown.bands]).astype(int)
            assert len(found.traces) == len(found.peaks) == len(items)
            for item, text, peak in zip(items.tolist(), found.traces, found.peaks, strict=True):
                steps = unpack(text)
                assert peak == (item + feature) % ROWS[name]
                assert abs(steps[peak]) == max(abs(step) for step in steps.values())
                code = one.codes[name][item, feature]
                assert steps[peak] / STEPS * found.largest == pytest.approx(code, abs=0.51 * found.largest / STEPS)
            if len(items):
                assert found.largest == pytest.approx(abs(shown.top_codes[0]))


def test_fewer_items_have_activations_when_all_would_take_more_than_the_budget(one: Dictionary) -> None:
    chosen = choose_items(one.shown("text"), np.arange(1000), 5, 2)
    rich, poor, none = (pack_traces(one.tracer, "text", chosen, budget) for budget in (10**7, 3_000, 0))
    assert sum(len(text) for found in poor for text in found.traces) <= 3_000
    assert 0 < max(len(found.traces) for found in poor) < max(len(found.traces) for found in rich)
    assert not any(found.traces for found in none)


def test_fewer_texts_are_shown_when_their_tokens_take_more_than_the_budget(one: Dictionary) -> None:
    catalogues = make_catalogues()
    long = Places(np.arange(1001) * 2_000, np.zeros(2_000_000, np.int64), None, {})
    sizes = {"image": np.zeros(500, np.int64), "text": measure_items(catalogues["text"]._replace(places=long))}
    same = {name: catalogue.same() for name, catalogue in catalogues.items()}
    found = choose(Site(items=12, traces=1), [one], same, sizes)["one"]
    assert max(len(feature.top) for feature in found["text"]) < 12


def test_a_feature_is_named_by_the_commonest_tokens_it_is_strongest_on(one: Dictionary) -> None:
    places = add_places(make_catalogues())["text"].places
    chosen = choose_items(one.shown("text"), np.arange(1000), 5, 0)
    names = name_by_tokens(pack_traces(one.tracer, "text", chosen, 10**7), chosen, places)
    for feature, (name, shown) in enumerate(zip(names, chosen, strict=True)):
        ids = [int(places.token_id[item * 5 + (item + feature) % 5]) for item in shown.top.tolist()]
        assert (name is None) == (not ids)
        if ids:
            best = max(ids.count(token) for token in ids)
            said = {0: "x", 1: "one", 2: "'\\n'", 3: "[3]", 4: "four"}
            first = next(token for token in ids if ids.count(token) == best)
            assert name.startswith(said[first]) or first == 0


@pytest.mark.parametrize(
    ("preprocessing", "share"),
    [
        ({"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}}, 0.875),
        ({"resize_mode": "shortest", "size": [224, 224]}, 1.0),
        ({"resize_mode": "squash"}, None),
        ({"do_center_crop": False, "size": {"height": 32, "width": 32}}, None),
        (None, None),
    ],
)
def test_the_part_of_a_picture_that_the_model_saw(preprocessing, share) -> None:
    assert find_frame({"preprocessing": preprocessing}) == share


def test_without_a_tokenizer_tokens_have_no_text_and_the_reason_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert decode_tokens({"kind": "hf-causal-lm", "name": "/no/such/model"}, [1, 2]) == {}
    assert decode_tokens({}, [1]) == {}
    assert decode_tokens(None, []) == {}
    assert "tokens are shown by their ids" in capsys.readouterr().err


def test_every_shown_item_says_what_its_rows_are(one: Dictionary, tmp_path: Path) -> None:
    data = build_world(tmp_path / "site", [one], catalogues=add_places(make_catalogues())).parent / "data"
    run = (data / "run.js").read_text()
    for kind, row in (("image", "[null,[2,3],1]"), ("text", "[[0,1,2,3,4],null,null]")):
        told = "".join(path.read_text() for path in sorted((data / f"rows-{kind}").glob("*.js")))
        n_items = re.search(rf'"n_items":{{[^}}]*"{kind}":(\d+)', run)
        assert n_items is not None
        assert told.count(row) == int(n_items.group(1)) > 0


def test_items_whose_text_is_not_stored_are_different() -> None:
    table = pa.table({"key": ["a", "b", "c", "d"], "text": [None, "", "said", "said"]})
    assert Catalogue(table, np.arange(4)).same().tolist() == [0, 1, 2, 2]
