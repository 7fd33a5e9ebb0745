"""Laws of writing and reading, for whatever a harvest can produce."""

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from memory import MEMORY

from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter, moments, open_store, verify_store
from thresher.data.store.layout import chunk_rows, plan_layout
from thresher.data.store.schema import TORCH_DTYPE
from thresher.errors import StoreError
from thresher.testing.store import HOOK_POINTS, IDENTITY, make_batch, tree

SPACES = {"image.tokens": "image", "image.items": "image", "text.tokens": "text", "text.items": "text"}


class Case(NamedTuple):
    hook_points: list[HookPointSpec]
    batches: list[Batch]
    items_per_shard: int | None
    stops: list[int]
    """Numbers of batches after which the writer is abandoned and a new one goes on."""


@st.composite
def plans(draw):
    """Plain values that `build` makes a case of (checked types may not be made inside a strategy: beartype draws numbers)."""
    spaces = draw(st.lists(st.sampled_from(sorted(SPACES)), min_size=1, max_size=5))
    hook_points = [(space, draw(st.integers(1, 9)), draw(st.sampled_from(sorted(TORCH_DTYPE)))) for space in spaces]
    sizes = draw(st.lists(st.integers(1, 4), max_size=6))
    lengths = [{space: draw_lengths(draw, size) for space in sorted(set(spaces))} for size in sizes]
    stops = sorted(draw(st.lists(st.integers(0, len(sizes)), max_size=3)))
    return hook_points, sizes, lengths, draw(st.one_of(st.none(), st.integers(1, 9))), stops


def draw_lengths(draw, size):
    """Rows of each item of a batch in a space; None leaves the space out."""
    return draw(st.one_of(st.none(), st.lists(st.integers(0, 11), min_size=size, max_size=size)))


def build(plan) -> Case:
    described, sizes, lengths, items_per_shard, stops = plan
    hook_points = [
        HookPointSpec(f"hook.{i}", SPACES[space], space, width, dtype) for i, (space, width, dtype) in enumerate(described)
    ]
    modalities = sorted({spec.modality for spec in hook_points})
    batches = []
    for index, size in enumerate(sizes):
        items = {modality: [make_item(modality, index, i) for i in range(size)] for modality in modalities}
        pairs = [(i, i) for i in range(size)] if len(modalities) == 2 else []
        used = {space: of_items for space, of_items in lengths[index].items() if of_items is not None}
        rows = {space: make_rows(space, of_items, hook_points, seed=index) for space, of_items in used.items()}
        batches.append(Batch(index, items, pairs, rows))
    return Case(hook_points, batches, items_per_shard, stops)


def make_item(modality, batch, i):
    text = f"text {i}" if modality == "text" else None
    return Item(f"{batch}/{i}", 10 * batch + i, "ok", text, b"x" * i if modality == "image" else None, tuple(range(i)))


def make_rows(space, lengths, hook_points, seed):
    n, generator = sum(lengths), torch.Generator().manual_seed(seed)
    activations = {
        spec.name: (1e3 * torch.randn(n, spec.width, generator=generator)).to(TORCH_DTYPE[spec.dtype])
        for spec in hook_points
        if spec.space == space
    }
    item = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    token_id = torch.randint(0, 99, (n,), generator=generator).int() if space == "text.tokens" else None
    return Rows(item, torch.arange(n).int(), token_id, activations)


def write(case: Case, path: Path, stops: list[int]) -> None:
    for stop in [*stops, None]:
        with StoreWriter(path, IDENTITY, case.hook_points, (), items_per_shard=case.items_per_shard) as writer:
            for batch in case.batches[writer.next_batch : stop]:
                writer.write(batch)
            if stop is None:
                writer.finish()


def check_content(case: Case, path: Path) -> None:
    store = open_store(path)
    for spec in case.hook_points:
        parts = [batch.rows[spec.space] for batch in case.batches if spec.space in batch.rows]
        before = np.cumsum([0, *(len(batch.items[spec.modality]) for batch in case.batches)])
        items = [batch.rows[spec.space].item + before[batch.index] for batch in case.batches if spec.space in batch.rows]
        n = sum(len(part.item) for part in parts)
        assert store.rows(spec.name) == n
        found = store.read(spec.name, 0, n)
        assert found.dtype == TORCH_DTYPE[spec.dtype]
        if n:
            assert torch.equal(found, torch.cat([part.activations[spec.name] for part in parts]))
            assert store.item_of(spec.name).tolist() == torch.cat(items).tolist()
            assert store.position_of(spec.name).tolist() == torch.cat([part.position for part in parts]).tolist()
        assert store.moments(spec.name).count == n
        if n and spec.space == "text.tokens":
            assert store.token_id_of(spec.name).tolist() == torch.cat([part.token_id for part in parts]).tolist()
    n_pairs = sum(len(batch.pairs) for batch in case.batches)
    assert store.pairs().shape == (n_pairs, 2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans())
@example(plan=([("image.items", 3, "float32")], [], [], None, [0]))
def test_whatever_is_written_is_read_and_interruptions_leave_no_trace(plan):
    case = build(plan)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        write(case, whole, [])
        write(case, broken, case.stops)
        check_content(case, whole)
        assert verify_store(whole, level="checksums") == []
        assert tree(whole) == tree(broken)


@given(row_bytes=st.integers(1, 1 << 24))
def test_a_chunk_is_the_largest_power_of_two_of_rows_in_4_mib(row_bytes):
    rows = chunk_rows(row_bytes)
    assert rows & (rows - 1) == 0
    assert rows == 1 or rows * row_bytes <= 4 << 20
    assert 2 * rows * row_bytes > 4 << 20


def test_chunk_sizes_are_those_of_the_format():
    found = {width: chunk_rows(2 * width) for width in (64, 768, 1024, 4096, 8192)}
    assert found == {64: 32768, 768: 2048, 1024: 2048, 4096: 512, 8192: 256}


def test_shards_of_all_spaces_hold_about_as_many_records():
    layout = plan_layout(HOOK_POINTS, make_batch(0, records=60), 100)
    rows = make_batch(0, records=60).rows
    records = {space: n / (len(rows[space].item) / 60) for space, n in layout.shard_rows.items()}
    assert all(100 / 2**0.5 <= n <= 100 * 2**0.5 for n in records.values())


def test_the_largest_shard_is_about_256_mib_and_small_rows_commit_after_8192_records():
    wide = [
        HookPointSpec("text.5", "text", "text.tokens", 4096, "bfloat16"),
        HookPointSpec("text.6", "text", "text.tokens", 64, "float32"),
    ]
    assert plan_layout(wide, None, None).shard_rows == {"text.tokens": 8192}
    lengths = [256] * 4
    batch = Batch(
        0,
        {"text": [make_item("text", 0, i) for i in range(4)]},
        [],
        {"text.tokens": make_rows("text.tokens", lengths, wide, 0)},
    )
    assert plan_layout(wide, batch, None).shard_rows == {"text.tokens": (256 << 20) // 8192}


WRONG = {
    "width": (lambda rows: rows._replace(activations={"hook": torch.zeros(3, 5)}), r"hook: torch.float32 \[3, 5\]"),
    "dtype": (lambda rows: rows._replace(activations={"hook": torch.zeros(3, 4).half()}), "torch.float16"),
    "rows": (lambda rows: rows._replace(activations={"hook": torch.zeros(2, 4)}), r"\[2, 4\] on cpu, expected"),
    "hook point": (lambda rows: rows._replace(activations={"hock": torch.zeros(3, 4)}), r"hook points \['hock'\], expected"),
    "item": (lambda rows: rows._replace(item=torch.tensor([0, 1, 2])), "item 0 to 2: the batch has 2 items"),
    "position": (lambda rows: rows._replace(position=torch.zeros(3)), "position: torch.float32"),
    "token ids": (lambda rows: rows._replace(token_id=torch.zeros(3).int()), "token ids given"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_batch_that_does_not_fit_the_hook_points_is_refused_and_named(wrong, tmp_path):
    spec = HookPointSpec("hook", "image", "image.tokens", 4, "float32")
    rows = Rows(torch.tensor([0, 1, 1]), torch.arange(3).int(), None, {"hook": torch.zeros(3, 4)})
    items = {"image": [make_item("image", 0, 0), make_item("image", 0, 1)]}
    change, message = WRONG[wrong]
    with StoreWriter(tmp_path / "store", IDENTITY, [spec], ()) as writer:
        with pytest.raises(StoreError, match=message):
            writer.write(Batch(0, items, [], {"image.tokens": change(rows)}))
        writer.write(Batch(0, items, [], {"image.tokens": rows}))
        writer.finish()
    assert open_store(tmp_path / "store").rows("hook") == 3


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(0, {"image": [make_item("image", 0, 0)] * 2}, [], {}), "two have the same key"),
        (Batch(0, {"image": [make_item("image", 0, 0)]}, [(0, 0)], {}), r"pair \(0, 0\): the batch has 1 images and 0 texts"),
        (
            Batch(0, {}, [], {"text.tokens": make_rows("text.tokens", [], [], 0)}),
            "row space 'text.tokens': the store has image.tokens",
        ),
    ],
)
def test_items_pairs_and_spaces_that_do_not_fit_are_refused(batch, message, tmp_path):
    spec = HookPointSpec("hook", "image", "image.tokens", 4, "float32")
    with StoreWriter(tmp_path / "store", IDENTITY, [spec], ()) as writer, pytest.raises(StoreError, match=message):
        writer.write(batch)


@pytest.mark.parametrize(
    ("hook_points", "message"),
    [
        ([], "give at least one"),
        ([HOOK_POINTS[0]] * 2, "each once"),
        ([HOOK_POINTS[0]._replace(width=0)], "a width >= 1"),
        ([HOOK_POINTS[0]._replace(space="../up")], "is no name of a row space"),
        ([HOOK_POINTS[0], HOOK_POINTS[1]._replace(modality="text")], "two modalities"),
    ],
)
def test_hook_points_that_no_store_can_hold_are_refused(hook_points, message, tmp_path):
    with pytest.raises(StoreError, match=message):
        StoreWriter(tmp_path / "store", IDENTITY, hook_points, ())


def test_rows_outside_the_store_are_refused(tmp_path):
    with StoreWriter(tmp_path / "store", IDENTITY, HOOK_POINTS, ()) as writer:
        writer.write(make_batch(0))
        writer.finish()
    store = open_store(tmp_path / "store")
    n = store.rows("vision.3")
    with pytest.raises(StoreError, match=f"it has {n}"):
        store.read("vision.3", 0, n + 1)
    with pytest.raises(StoreError, match=f"it has {n}"):
        store.read_rows("vision.3", np.array([-1]))
    with pytest.raises(StoreError, match=r"no hook point 'vision.9'; the store has vision.3"):
        store.rows("vision.9")
    with pytest.raises(StoreError, match="have no token ids"):
        store.token_id_of("vision.3")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 12))
def test_moments_of_blocks_add_up_to_the_same_bits_in_every_order(seed, n):
    chance = np.random.default_rng(seed)
    states = []
    for _ in range(n):
        state = moments.empty_state(5)
        scale = 10.0 ** chance.integers(-6, 6)
        moments.add_rows(
            state, (scale * chance.standard_normal((chance.integers(1, 40), 5))).astype(np.float32), moments.Scratch(5)
        )
        states.append(state)
    orders = [states, states[::-1], [states[i] for i in chance.permutation(n)]]
    dumped = {moments.dump_states({"hook": moments.add_states(order, 5)}) for order in orders}
    assert len(dumped) == 1
    total = moments.load_states(dumped.pop(), ["hook"])["hook"]
    exact = [math.fsum(float(state["sum"][column]) for state in states) for column in range(5)]
    assert total["sum"].tolist() == exact
