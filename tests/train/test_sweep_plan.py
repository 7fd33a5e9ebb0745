"""Laws of a sweep's arithmetic: what it trains, how it finds an L0, how it ranks and what its intervals are."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from thresher.errors import ConfigError
from thresher.train.arch import MatchingPursuit, Relu, TopK
from thresher.train.optimizer import OptimizerConfig
from thresher.train.sweep.config import SearchConfig, SweepConfig, complete
from thresher.train.sweep.estimates import estimate, reach_by
from thresher.train.sweep.outcome import Cost, Outcome
from thresher.train.sweep.plan import Group, list_groups, name_members
from thresher.train.sweep.search import Request, pick_nearest, rank, reach
from thresher.train.sweep.target import Tried, ask_next, is_reached, miss

BASE = {"store": "s", "hook_points": ["vision.embed"]}


def make(**fields: object) -> SweepConfig:
    return complete({"out": "o", "base": dict(BASE), **fields}, "sweep.yaml")


def names(settings: SweepConfig) -> list[str]:
    return [name for group in list_groups(settings) for name, _ in name_members(settings, group)]


def test_a_grid_gives_every_combination_and_a_name_holds_every_axis() -> None:
    architectures = {"mp": {"kind": "mp"}, "relu": {"kind": "relu"}}
    grid = {"l0": [4, 8.5], "d_sae": [64], "lr": [0.001]}
    settings = make(architectures=architectures, grid=grid, seeds=[0, 1])
    assert names(settings) == [
        f"{name}-l0={l0}-d_sae=64-lr=0.001-seed={seed}" for name in ("mp", "relu") for l0 in ("4", "8.5") for seed in (0, 1)
    ]
    searched = make(architectures=architectures, grid={**grid, "lr": [0.001, 0.01]}, search={})
    assert [group.lrs for group in list_groups(searched)] == [(0.001, 0.01)] * 4
    assert names(searched)[0] == "mp-l0=4-d_sae=64-seed=0"


def test_members_stand_beside_the_grid_with_their_own_optimizer() -> None:
    member = {"sae": {"kind": "topk", "d_sae": 64, "k": 4}, "optimizer": {"lr": 0.5}}
    settings = make(architectures={"mp": {"kind": "mp"}}, members={"mine": member, "plain": {"sae": member["sae"]}})
    groups = list_groups(settings)
    assert [(group.name, group.lrs, group.l0) for group in groups] == [
        ("mp", (1e-3,), None),
        ("mine", (0.5,), None),
        ("plain", (1e-3,), None),
    ]


def test_the_architecture_of_the_base_alone_is_swept_over_seeds() -> None:
    settings = complete({"out": "o", "base": {**BASE, "sae": {"kind": "topk", "d_sae": 64}}, "seeds": [3]}, "sweep.yaml")
    assert names(settings) == ["topk-seed=3"]


def test_a_dictionary_may_be_smaller_than_the_default_sparsity() -> None:
    settings = make(architectures={"mp": {"kind": "mp"}}, grid={"l0": [4], "d_sae": [16]})
    assert list_groups(settings)[0].sae == MatchingPursuit(d_sae=16, k=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "name at least one"),
        ({"architectures": {"a/b": {"kind": "mp"}}}, "becomes a folder"),
        ({"architectures": {"mp": {"kind": "mp"}}, "members": {"mp": {"sae": {"kind": "mp"}}}}, "choose another"),
        ({"architectures": {"mp": {"kind": "mp"}}, "grid": {"lr": [0.1, 0.1]}}, r"lr=\[0\.1, 0\.1\]"),
        ({"architectures": {"mp": {"kind": "mp"}}, "grid": {"l0": [0]}}, r"l0=\[0"),
        ({"architectures": {"mp": {"kind": "mp"}}, "seeds": []}, "seeds="),
        ({"architectures": {"mp": {"kind": "mp"}}, "search": {"rungs": [0.5, 0.1]}}, "rungs="),
        ({"architectures": {"mp": {"kind": "mp"}}, "search": {"keep": 1}}, "keep="),
        ({"architectures": {"mp": {"kind": "mp"}}, "search": {"l0_tries": 0}}, "l0_tries="),
        ({"architectures": {"mp": {"kind": "mp"}}, "search": {"l0_tolerance": 0}}, "l0_tolerance="),
        ({"architectures": {"mp": {"kind": "mp"}}, "l0_tolerance": 1}, "l0_tolerance="),
        ({"architectures": {"mp": {"kind": "mp"}}, "corrections": -1}, "corrections="),
        ({"members": {"mp": {"sae": {"kind": "mp"}}}, "grid": {"lr": [0.1]}}, "of which none is given"),
        ({"base": {**BASE, "out": "x"}}, r"base\.out"),
        ({"base": {**BASE, "patience": 3}, "architectures": {"mp": {"kind": "mp"}}}, r"base\.patience"),
        ({"base": 3}, "base: expected"),
        ({"architectures": {"mp": {"kind": "mq"}}}, r"architectures\.kind: unknown kind 'mq'"),
    ],
)
def test_nonsense_is_refused_with_what_it_is(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**fields)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    wanted=st.floats(2, 60),
    slope=st.floats(0.3, 2.0),
    scale=st.floats(0.3, 3.0),
    bend=st.floats(0, 1),
)
def test_any_rising_response_is_brought_to_the_wanted_l0(wanted: float, slope: float, scale: float, bend: float) -> None:
    """Whatever L0 a training reaches as a rising function of what it was asked for, twelve tries come within 5 %."""

    def train(asked: float) -> float:
        return scale * wanted * (asked / wanted) ** slope * (1 + bend * math.tanh(asked / wanted - 1))

    tried: list[Tried] = []
    for _ in range(12):
        asked = ask_next(tried, wanted, 1e9)
        tried.append(Tried(asked, train(asked)))
        if is_reached(tried[-1].reached, wanted, 0.05):
            return
    raise AssertionError(tried)


def test_nothing_larger_than_the_dictionary_is_asked_for_and_nothing_found_asks_for_more() -> None:
    assert ask_next([Tried(30.0, 10.0)], 20.0, 32.0) == 32.0
    assert ask_next([Tried(8.0, 0.0)], 8.0, 100.0) == 32.0
    assert ask_next([Tried(8.0, math.nan)], 8.0, 100.0) == 8.0
    assert miss(0.0, 8.0) == miss(math.nan, 8.0) == math.inf


def ended(l0: float, r2: float = 0.5, *, seconds: float = 1.0) -> Outcome:
    cost = Cost(seconds, "CPU seconds", 1, 1, ())
    if math.isnan(l0):
        return Outcome(Path("x"), None, cost._replace(diverged="at 3"))
    return Outcome(Path("x"), {"l0": l0, "hook_points": {"a": {"r2": r2}}}, cost)


GROUP = Group("g", "g", TopK(d_sae=64, k=8), 8.0, OptimizerConfig(), (0.1,))


def test_off_target_candidates_rank_behind_all_others_and_diverged_ones_last() -> None:
    requests = [Request(GROUP, lr, 8.0) for lr in (1, 2, 3, 4, 5)]
    outcomes = [ended(math.nan), ended(16.0, 0.99), ended(8.2, 0.5), ended(7.9, 0.7), ended(9.0, 0.9)]
    order = rank(list(zip(requests, outcomes, strict=True)), 0.05)
    assert [request.lr for request in order] == [4, 3, 5, 2, 1]


def test_a_whole_number_of_atoms_is_not_tried_twice() -> None:
    """TopK set to 8 reaches 6.4, then to 10, then to 9; whatever is asked for next is one of these trainings again."""
    seen: list[float] = []

    def train(attempt: int, requests: list[Request]) -> list[Outcome]:
        seen.extend(request.asked or 0.0 for request in requests)
        return [ended({8: 6.4, 9: 7.3, 10: 8.6}[round(request.asked or 0)]) for request in requests]

    (tries,) = reach([Request(GROUP, 0.1, 8.0)], 9, 0.05, train)
    assert [round(asked) for asked in seen] == [8, 10, 9]
    assert pick_nearest(tries)[1].l0 == 8.6


def test_only_what_misses_is_trained_again() -> None:
    continuous = GROUP._replace(sae=Relu(d_sae=64))
    free = GROUP._replace(l0=None)
    rounds: list[list[float]] = []

    def train(attempt: int, requests: list[Request]) -> list[Outcome]:
        rounds.append([request.lr for request in requests])
        return [ended(16.0 if request.lr == 2 and attempt == 0 else 8.0) for request in requests]

    requests = [Request(continuous, 1, 8.0), Request(continuous, 2, 8.0), Request(free, 3, None)]
    tries = reach(requests, 3, 0.05, train)
    assert rounds == [[1, 2, 3], [2]]
    assert [len(each) for each in tries] == [1, 2, 1]
    assert tries[1][1][0].asked == pytest.approx(4.0)


def test_an_interval_is_students_t_over_finite_values() -> None:
    found = estimate([1.0, 2.0, 4.0, math.nan])
    assert found.mean == pytest.approx(7 / 3)
    assert found.half == pytest.approx(4.302653 * 1.5275252 / 3**0.5, rel=1e-5)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)
    assert math.isnan(estimate([1.0]).half)
    assert math.isnan(estimate([]).mean)


def test_what_was_reached_by_a_time_lies_on_the_line_between_evaluations() -> None:
    curve = tuple({"iteration": n, "seconds": float(n), "l0": 1.0, "r2": {"a": n / 10, "b": 0.5}} for n in (0, 2, 6))
    cost = Cost(6.0, "CPU seconds", 1, 1, curve)
    assert reach_by(cost, 4.0) == {"a": pytest.approx(0.4), "b": 0.5}
    assert math.isnan(reach_by(cost, 6.5)["a"])


def test_the_default_search_spends_little() -> None:
    """Three rates: three tenths in the first rung and two times three tenths in the second, before tries at L0."""
    plan = SearchConfig()
    left, spent = 3, 0.0
    for rung in plan.rungs:
        spent += left * rung
        left = math.ceil(left * plan.keep)
    assert spent == pytest.approx(0.9)
