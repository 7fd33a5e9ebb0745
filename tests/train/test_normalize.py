"""Laws of normalisation and of the held-out evaluation."""

import numpy as np
import pytest
import torch
from covering import cover

from thresher.data.store import open_store
from thresher.data.stream import held_out
from thresher.errors import StoreError
from thresher.train.arch import MatchingPursuit, TopK, build
from thresher.train.codes import Codes
from thresher.train.evaluate import evaluate
from thresher.train.normalize import NormalizeConfig, Normalizer, measure
from thresher.train.split import read_side

NAMES = ("vision.embed", "text.embed")


def training_rows(store, name, holdout, seed) -> torch.Tensor:
    mask = held_out(store, store.hook_points[name].modality, holdout, seed)[store.item_of(name)]
    return store.read_rows(name, np.flatnonzero(~mask)).double()


@pytest.mark.parametrize(
    ("center", "scale", "rows", "balance"),
    cover(["none", "joint", "per_hook_point"], ["none", "one", "sqrt_d_in"], ["as_is", "unit"], ["equal", "rows"]),
)
def test_training_rows_get_the_promised_mean_and_norm(make_store, rows, center, scale, balance) -> None:
    """By modality or jointly, over the training side only."""
    store = open_store(make_store(gap=2.0))
    settings = NormalizeConfig(rows=rows, center=center, scale=scale)
    normalizer = measure(store, NAMES, settings, holdout=0.3, seed=5, balance=balance)
    x = [training_rows(store, name, 0.3, 5).float() for name in NAMES]
    z = [normalizer.normalize(each, group) for group, each in enumerate(x)]
    means = torch.stack([each.mean(0) for each in z])
    if center == "per_hook_point":
        torch.testing.assert_close(means, torch.zeros_like(means), rtol=0, atol=1e-4)
    if center == "joint":
        torch.testing.assert_close(means.mean(0), torch.zeros(16), rtol=0, atol=1e-4)
        assert means[1].norm() > 0.1
    squares = torch.stack([each.square().sum(1).mean() for each in z])
    if scale != "none":
        wanted = torch.tensor(1.0 if scale == "one" else 16.0)
        found = squares if center == "per_hook_point" else squares.mean(0)
        torch.testing.assert_close(found, wanted.expand_as(found), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rows", ["as_is", "unit", "layer"])
def test_inversion_gives_the_target_back(make_store, rows) -> None:
    store = open_store(make_store())
    normalizer = measure(store, NAMES, NormalizeConfig(rows=rows), holdout=0.3, seed=5, balance="equal")
    x = store.read("text.embed", 0, 50)
    shaped = x - x.mean(dim=1, keepdim=True) if rows == "layer" else x
    target = x if rows == "as_is" else shaped / shaped.norm(dim=1, keepdim=True)
    torch.testing.assert_close(normalizer.target(x), target, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalizer.restore(target, x), x)
    torch.testing.assert_close(normalizer.invert(normalizer.normalize(x, 1), 1), target, rtol=1e-4, atol=1e-5)


def test_a_group_for_each_row_is_the_same_as_one_for_all() -> None:
    normalizer = Normalizer(False, torch.randn(2, 4), torch.rand(2) + 0.5)
    x = torch.randn(6, 4)
    group = torch.tensor([0, 1, 1, 0, 0, 1])
    expected = torch.stack([normalizer.normalize(row[None], int(g))[0] for row, g in zip(x, group, strict=True)])
    torch.testing.assert_close(normalizer.normalize(x, group), expected)
    torch.testing.assert_close(normalizer.invert(expected, group), x)


def test_the_two_sides_are_all_rows_in_order(make_store) -> None:
    store = open_store(make_store())
    sides = [torch.cat(list(read_side(store, "text.embed", side, holdout=0.3, seed=5))) for side in ("training", "held_out")]
    assert torch.equal(sides[0], training_rows(store, "text.embed", 0.3, 5).float())
    assert len(sides[0]) + len(sides[1]) == store.rows("text.embed")
    few = torch.cat(list(read_side(store, "text.embed", "training", holdout=0.3, seed=5, at_most=100)))
    assert 0 < len(few) <= 100


def test_rows_that_are_not_finite_or_do_not_differ_are_refused(make_store) -> None:
    nan = open_store(make_store(name="nan", nan_row=3))
    with pytest.raises(StoreError, match=r"vision\.embed: activations that are not finite: row \d+ \(item '\d+'\)"):
        measure(nan, NAMES, NormalizeConfig(), holdout=0.0, seed=0, balance="equal")


def test_evaluation_is_that_of_the_formulas() -> None:
    """R2 around the mean vector, per hook point and pooled; cosine; L0 of different atoms; dead atoms."""
    sae = build(MatchingPursuit(d_sae=30, k=4), 8, 0)
    normalizer = Normalizer(False, torch.randn(2, 8), torch.tensor([0.5, 2.0]))
    x = {"a": torch.randn(40, 8) + 3, "b": 2 * torch.randn(60, 8)}
    found = evaluate(sae, normalizer, {name: each.split(13) for name, each in x.items()})
    hats, fired, l0 = {}, set(), {}
    for group, (name, each) in enumerate(x.items()):
        codes = sae.encode(normalizer.normalize(each, group))
        hats[name] = normalizer.invert(sae.decode(codes), group).detach()
        supports = [set(i[v != 0].tolist()) for i, v in zip(*codes, strict=True)]
        l0[name] = [len(support) for support in supports]
        fired |= set().union(*supports)
    for name, each in x.items():
        r2 = 1 - (each - hats[name]).square().sum() / (each - each.mean(0)).square().sum()
        assert found[name].r2 == pytest.approx(float(r2), abs=1e-5)
        assert found[name].fvu == pytest.approx(1 - float(r2), abs=1e-5)
        assert found[name].l0 == pytest.approx(np.mean(l0[name]))
        cosine = torch.nn.functional.cosine_similarity(each, hats[name]).mean()
        assert found[name].cosine == pytest.approx(float(cosine), abs=1e-5)
    everything, hat = torch.cat(list(x.values())), torch.cat(list(hats.values()))
    r2 = 1 - (everything - hat).square().sum() / (everything - everything.mean(0)).square().sum()
    assert found["pooled"].r2 == pytest.approx(float(r2), abs=1e-5)
    assert found["pooled"].dead == pytest.approx(1 - len(fired) / 30)
    assert found["pooled"].n_rows == 100
    assert found["pooled"].l0 == pytest.approx(np.mean(l0["a"] + l0["b"]))


def test_predicting_the_mean_has_an_r2_of_zero() -> None:
    """Also for rows far from the origin, where centring by a scalar would praise it."""
    sae = build(TopK(d_sae=30, k=4), 8, 0)
    x = torch.randn(500, 8) + 50
    sae.encode = lambda x, k=None: Codes(torch.zeros(len(x), 1, dtype=torch.int64), torch.zeros(len(x), 1))
    found = evaluate(sae, Normalizer(False, x.mean(0, keepdim=True), torch.ones(1)), {"a": [x]})
    assert found["a"].r2 == pytest.approx(0, abs=1e-6)
    assert found["a"].dead == 1


def test_held_out_rows_that_do_not_differ_are_refused() -> None:
    sae = build(TopK(d_sae=30, k=4), 8, 0)
    normalizer = Normalizer(False, torch.zeros(1, 8), torch.ones(1))
    for rows in ([], [torch.ones(1, 8)], [torch.full((9, 8), 0.3)]):
        with pytest.raises(StoreError, match=r"a: \d held-out rows do not differ"):
            evaluate(sae, normalizer, {"a": rows})
