"""Laws of a pursuit that is read at every number of steps."""

from typing import cast, get_args

import pytest
import torch
from covering import cover
from torch import Tensor, nn
from torch.nn import functional

from thresher.data.store import open_store
from thresher.data.stream import StreamConfig
from thresher.train.arch import MatchingPursuit, TopK, build
from thresher.train.by_k import NestedSAE, evaluate_by_k
from thresher.train.checkpoint import load_sae
from thresher.train.codes import count_active
from thresher.train.config import TrainConfig
from thresher.train.evaluate import evaluate
from thresher.train.kernels import Sign, find_smallest_k, pursue, pursue_nested, sparse_decode
from thresher.train.run import run
from thresher.train.split import read_side

NAMES = ("vision.embed", "text.embed")


def draw(rows: int = 60, d_in: int = 7, d_sae: int = 20, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d_in, generator=generator, dtype=torch.float64)
    x[:1] = 0
    return x, functional.normalize(torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize(("rows", "sign", "residual_tol"), cover([0, 1, 60], get_args(Sign), [None, 0.4]))
def test_one_run_holds_the_runs_of_fewer_steps(rows: int, sign: Sign, residual_tol: float | None) -> None:
    """More steps than atoms a row needs: repeats and stops are among them."""
    x, dictionary = draw(rows)
    nested = pursue_nested(x, dictionary, 12, sign=sign, residual_tol=residual_tol)
    assert nested.norms.shape == (rows, 13)
    assert torch.equal(nested.norms[:, 0], x.norm(dim=1))
    for k in range(1, 13):
        codes, residual = pursue(x, dictionary, k, sign=sign, residual_tol=residual_tol)
        assert torch.equal(nested.cut(k).indices, codes.indices)
        assert torch.equal(nested.cut(k).values, codes.values)
        torch.testing.assert_close(nested.norms[:, k], residual.norm(dim=1))
        assert torch.equal(nested.count_active()[:, k], count_active(codes))
    assert (nested.norms.diff(dim=1) <= 1e-12).all()


def test_r2_of_every_k_is_that_of_the_reconstructions() -> None:
    x, dictionary = draw()
    mean = x.mean(0)
    nested = pursue_nested(x, dictionary, 10, sign="abs")
    r2, explained = nested.pool_r2(x, mean), nested.explain()
    for k in range(1, 11):
        error = (x - sparse_decode(nested.cut(k), dictionary)).square()
        torch.testing.assert_close(r2[k], 1 - error.sum() / (x - mean).square().sum())
        torch.testing.assert_close(explained[1:, k], (1 - error.sum(1) / x.square().sum(1))[1:])
    assert (explained[0] == 1).all()
    assert find_smallest_k(r2, float(r2[4])) == 4
    assert find_smallest_k(r2, float(r2[4]) + 1e-9) == 5
    assert find_smallest_k(r2, 1.1) is None


def test_a_trained_pursuit_records_what_fewer_and_more_steps_reach(make_store, tmp_path) -> None:
    """On the same held-out rows, and by the same R2, as the rest of its evaluation."""
    stream = StreamConfig(batch_size=64, holdout=0.2)
    shared = {"store": make_store(), "hook_points": NAMES, "stream": stream, "rows": 64 * 30, "device": "cpu"}
    out = run(TrainConfig(sae=MatchingPursuit(d_sae=32, k=3), out=tmp_path / "mp", **shared))
    trained = load_sae(out)
    found = trained.evaluation["by_k"]
    assert list(found) == ["1", "2", "3", "4"]
    assert found["3"]["r2"] == pytest.approx(trained.evaluation["r2"], abs=1e-6)
    assert found["3"]["l0"] == pytest.approx(trained.evaluation["l0"], abs=1e-6)
    assert [each["r2"] for each in found.values()] == sorted(each["r2"] for each in found.values())
    assert isinstance(trained.sae, NestedSAE)
    store = open_store(shared["store"])

    def read() -> dict:
        return {name: read_side(store, name, "held_out", holdout=0.2, seed=0) for name in NAMES}

    again = evaluate_by_k(trained.sae, trained.normalizer, read())
    assert {str(k): each._asdict() for k, each in again.items()} == found
    trained.sae.settings = MatchingPursuit(d_sae=32, k=2)
    assert evaluate(trained.sae, trained.normalizer, read())["pooled"].r2 == pytest.approx(found["2"]["r2"], abs=1e-6)


def test_codes_that_do_not_nest_are_not_read_at_other_numbers_of_steps() -> None:
    assert not isinstance(build(TopK(d_sae=8, k=2), 4, 0), NestedSAE)
    assert isinstance(build(MatchingPursuit(d_sae=8, k=2), 4, 0), NestedSAE)
    assert cast(nn.Module, build(MatchingPursuit(d_sae=8, k=2), 4, 0)).k == 2
