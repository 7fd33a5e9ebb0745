"""Which rows: policies by kind, random subsets, averages, outliers, passes by length."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thresher.data.store import TokenKind
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters.base import HookPoint, Layout
from thresher.harvest.outliers import Outliers, clip_rows, find_bounds, find_outliers
from thresher.harvest.passes import plan_passes, plan_passes_by_length
from thresher.harvest.rows import (
    RowIndex,
    Subset,
    average,
    describe_rows,
    draw_subset,
    find_order,
    name_space,
    select_means,
    select_tokens,
)

PAD, TEXT, SPECIAL, PATCH, CLS, REGISTER, IMAGE = (
    TokenKind[name] for name in ("PADDING", "TEXT", "SPECIAL", "PATCH", "CLS", "REGISTER", "IMAGE")
)
VISION = [[CLS, REGISTER, REGISTER, PATCH, PATCH, PATCH, PATCH], [CLS, REGISTER, REGISTER, PATCH, PATCH, PAD, PAD]]
MIXED = [[SPECIAL, IMAGE, IMAGE, TEXT, TEXT, SPECIAL], [SPECIAL, TEXT, SPECIAL, PAD, PAD, PAD], [PAD] * 6]


def make_layout(kinds: list[list[TokenKind]], summary: list[int] | None = None, unattended: bool = False) -> Layout:
    kind = torch.tensor([[int(kind) for kind in row] for row in kinds], dtype=torch.int8)
    grid = torch.full((*kind.shape, 2), -1, dtype=torch.int16)
    for item, row in enumerate(kinds):
        places = [place for place, kind in enumerate(row) if kind in (PATCH, IMAGE)]
        for number, place in enumerate(places):
            grid[item, place] = torch.tensor([number // 2, number % 2])
    found = None if summary is None else torch.tensor(summary)
    hidden = kind == PAD if unattended else None
    return Layout(kind, found, None, (False,) * len(kinds), grid, hidden)


def pairs_of(rows: RowIndex) -> list[tuple[int, int]]:
    return list(zip(rows.item.tolist(), rows.position.tolist(), strict=True))


@pytest.mark.parametrize(
    ("kinds", "policy", "expected"),
    [
        (VISION, "all", [(0, p) for p in range(7)] + [(1, p) for p in range(5)]),
        (VISION, "cls", [(0, 0), (1, 0)]),
        (VISION, "registers", [(0, 1), (0, 2), (1, 1), (1, 2)]),
        (VISION, "patches", [(0, 3), (0, 4), (0, 5), (0, 6), (1, 3), (1, 4)]),
        (MIXED, "all", [(0, p) for p in range(6)] + [(1, p) for p in range(3)]),
        (MIXED, "content", [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]),
        (MIXED, "text", [(0, 3), (0, 4), (1, 1)]),
        (MIXED, "image", [(0, 1), (0, 2)]),
        (MIXED, "last", [(0, 5), (1, 2)]),
    ],
)
def test_policies_keep_the_positions_of_their_kind(kinds, policy, expected) -> None:
    assert pairs_of(select_tokens(make_layout(kinds), policy)) == expected


def test_the_attention_mask_decides_whether_padding_is_kept() -> None:
    n = len(VISION[0])
    hidden, open_ = (select_tokens(make_layout(VISION, unattended=hides), "attended") for hides in (True, False))
    assert pairs_of(hidden) == pairs_of(select_tokens(make_layout(VISION), "all"))
    assert pairs_of(open_) == [(item, place) for item in range(2) for place in range(n)]
    assert pairs_of(select_tokens(make_layout(MIXED), "attended")) == [(item, p) for item in range(2) for p in range(6)]


def test_the_models_own_summary_is_kept_where_it_is() -> None:
    assert pairs_of(select_tokens(make_layout(MIXED, summary=[5, 4, 0]), "eot")) == [(0, 5), (1, 4)]
    with pytest.raises(ModelError, match="text_rows=eot: this model has no position that stands for a text"):
        select_tokens(make_layout(MIXED), "eot")


@pytest.mark.parametrize("policy", ["cls", "registers", "patches"])
def test_what_an_image_tower_lacks_is_refused_with_what_it_has(policy) -> None:
    kinds = [[kind for kind in VISION[0] if kind != {"cls": CLS, "registers": REGISTER, "patches": PATCH}[policy]]]
    with pytest.raises(ModelError, match=f"image_rows={policy}: this model has no .*; use one of all, "):
        select_tokens(make_layout(kinds), policy)


def test_rows_are_described_by_kind_and_place() -> None:
    layout = make_layout(VISION)
    rows = select_tokens(layout, "all")
    columns = describe_rows(layout, rows, has_patches=True)
    assert columns["kind"].tolist() == [int(kind) for row in VISION for kind in row if kind != PAD]
    assert columns["kind"].dtype == torch.int8
    assert columns["patch_row"].tolist() == [-1, -1, -1, 0, 0, 1, 1, -1, -1, -1, 0, 0]
    assert columns["patch_column"].tolist() == [-1, -1, -1, 0, 1, 0, 1, -1, -1, -1, 0, 1]
    assert set(describe_rows(layout, rows, has_patches=False)) == {"kind"}
    assert describe_rows(layout._replace(grid=None), rows, has_patches=True)["patch_row"].unique().tolist() == [-1]


# Random subsets


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Lengths of items and a split of them into batches."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    cuts = sorted(draw(st.sets(st.integers(1, len(lengths)), max_size=4)) | {len(lengths)})
    return lengths, [list(range(start, stop)) for start, stop in zip([0, *cuts], cuts, strict=False)]


def draw_positions(lengths: list[int], batch: list[int], subset: Subset) -> dict[int, list[int]]:
    width = max(1, *(lengths[item] for item in batch)) + len(batch) % 3
    layout = make_layout([[TEXT] * lengths[item] + [PAD] * (width - lengths[item]) for item in batch])
    rows = draw_subset(select_tokens(layout, "all"), [f"item {item}" for item in batch], subset)
    found: dict[int, list[int]] = {item: [] for item in batch}
    for place, position in pairs_of(rows):
        found[batch[place]].append(position)
    assert pairs_of(rows) == sorted(pairs_of(rows))
    return found


@given(batches(), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_a_subset_is_the_same_whatever_the_batching(split, n: int, seed: int) -> None:
    lengths, parts = split
    together = draw_positions(lengths, list(range(len(lengths))), Subset(n, seed))
    apart = {item: kept for part in parts for item, kept in draw_positions(lengths, part, Subset(n, seed)).items()}
    assert together == apart
    assert [len(together[item]) for item in range(len(lengths))] == [min(n, length) for length in lengths]


def test_subsets_are_uniform_and_follow_the_seed() -> None:
    lengths = [10] * 3000
    batch = list(range(len(lengths)))
    first, second = (draw_positions(lengths, batch, Subset(3, seed)) for seed in (0, 1))
    counts = np.bincount([position for kept in first.values() for position in kept], minlength=10)
    assert counts.sum() == 9000
    # Each position is kept by 900 items, with a standard deviation of 25.
    assert np.abs(counts - 900).max() < 4.5 * math.sqrt(3000 * 0.3 * 0.7)
    n_equal = sum(first[item] == second[item] for item in batch)
    assert n_equal < 3000 * 3 / 120
    overlap = np.mean([len(set(first[item]) & set(second[item])) for item in batch])
    assert abs(overlap - 0.9) < 0.06


# Means


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_means_are_those_of_each_item_alone(lengths: list[int], width: int) -> None:
    item = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    values = torch.randn(len(item), width, generator=torch.Generator().manual_seed(sum(lengths)))
    means = average(values, torch.tensor([length for length in lengths if length], dtype=torch.int64))
    present = [number for number, length in enumerate(lengths) if length]
    assert means.shape == (len(present), width)
    for row, number in enumerate(present):
        alone = values[item == number]
        torch.testing.assert_close(means[row], alone.mean(dim=0))
        assert torch.equal(means[row], average(alone, torch.tensor([len(alone)]))[0])
    found = select_means(RowIndex(item, item, is_everything=False))
    assert (found.rows.item.tolist(), found.rows.position.tolist()) == (present, [-1] * len(present))
    assert found.lengths.tolist() == [length for length in lengths if length]


def test_means_of_half_precision_are_added_up_in_float32() -> None:
    values = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    values[0] = 3.0
    assert average(values, torch.tensor([4096])).item() == 1.0 + 2 / 4096


def test_only_tokens_that_are_averaged_have_a_space_of_their_own() -> None:
    token, item = (HookPoint("x", "image", level, 3, is_overwritten=False) for level in ("tokens", "items"))
    assert [name_space(point, pool) for point in (token, item) for pool in ("none", "mean")] == [
        "image.tokens",
        "image.means",
        "image.items",
        "image.items",
    ]


# Order and passes


@given(st.lists(st.integers(0, 5), max_size=20))
@settings(deadline=None)
def test_rows_come_back_into_the_order_of_their_items(items: list[int]) -> None:
    item = torch.tensor(items, dtype=torch.int64)
    order = find_order(item)
    assert (order is None) == (items == sorted(items))
    if order is not None:
        assert item[order].tolist() == sorted(items)
        assert all(a < b for a, b in itertools.pairwise(order) if item[a] == item[b])


@given(st.lists(st.text(max_size=200), max_size=30), st.integers(1, 7))
@settings(deadline=None)
def test_passes_hold_every_text_once_and_alike_lengths(texts: list[str], size: int) -> None:
    for plan in (plan_passes, plan_passes_by_length):
        passes = plan(texts, size)
        assert sorted(place for group in passes for place in group) == list(range(len(texts)))
        assert all(0 < len(group) <= size for group in passes)
    for group in plan_passes_by_length(texts, size):
        lengths = [max(32, len(texts[place].encode())) for place in group]
        assert max(lengths) <= 2 * min(lengths)
        assert lengths == sorted(lengths)
    assert plan_passes(texts, size) == [list(range(len(texts)))[s : s + size] for s in range(0, len(texts), size)]


# Outliers


@given(st.integers(1, 40), st.integers(1, 5), st.floats(0.1, 4))
@settings(deadline=None, max_examples=40)
def test_an_outlier_is_one_whatever_stands_beside_it(n: int, width: int, bound: float) -> None:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(n))
    above = find_outliers(x, bound)
    assert above.tolist() == [bool(find_outliers(row[None], bound)[0]) for row in x]
    assert above.tolist() == (x.double().norm(dim=1) > bound).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clipping_keeps_direction_and_leaves_the_others(dtype: torch.dtype) -> None:
    x = (torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    above = find_outliers(x, 6.0)
    assert 0 < above.sum() < 50
    clipped = clip_rows(x, 6.0, above)
    assert clipped.dtype == dtype
    assert torch.equal(clipped[~above], x[~above])
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(clipped[above].float().norm(dim=1), torch.full((int(above.sum()),), 6.0), rtol=tolerance, atol=0)
    cosine = torch.cosine_similarity(clipped[above].float(), x[above].float())
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=tolerance)


def test_bounds_are_named_by_pattern_the_first_wins() -> None:
    points = ["vision.0", "vision.1", "text.0"]
    assert find_bounds(None, points) == {}
    assert find_bounds(Outliers(action="drop", above=3.0), points) == dict.fromkeys(points, 3.0)
    bounds = find_bounds(Outliers(action="clip", above={"vision.1": 5.0, "vision.*": 2.0}), points)
    assert bounds == {"vision.0": 2.0, "vision.1": 5.0}
    with pytest.raises(ConfigError, match=r"outliers\.above: 'vision\.9' fits none of vision\.0, vision\.1, text\.0"):
        find_bounds(Outliers(action="drop", above={"vision.9": 1.0}), points)
    with pytest.raises(ConfigError, match=r"above=-1\.0: a norm above 0"):
        Outliers(action="drop", above=-1.0)
