"""Choosing for each group the learning rate, and the setting that reaches its wanted L0."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from thresher.train.config import TrainConfig
from thresher.train.sweep.config import SearchConfig, SweepConfig
from thresher.train.sweep.outcome import Outcome
from thresher.train.sweep.plan import Group, configure, set_l0
from thresher.train.sweep.source import Source
from thresher.train.sweep.target import Tried, ask_next, is_reached, miss
from thresher.train.sweep.together import train_together


class Request(NamedTuple):
    """What is trained for a group."""

    group: Group
    lr: float
    asked: float | None
    """What the architecture is set to reach (`with_l0`); None leaves its sparsity as configured."""


class Trial(NamedTuple):
    """One short training of a search, and what it reached."""

    request: Request
    rung: int
    attempt: int
    """Which try at its L0 this was in its rung."""
    outcome: Outcome


Train = Callable[[int, Sequence[Request]], Sequence[Outcome]]
"""Trains the given requests, all together, at the given attempt; an outcome for each."""


def reach(requests: Sequence[Request], n_tries: int, tolerance: float, train: Train) -> list[list[tuple[Request, Outcome]]]:
    """Train every request, and those that miss their L0 again with another setting, at most `n_tries` times; all tries.

    Gives up earlier where another setting would be the same training, as with a `k` that is a whole number.
    """
    tries: list[list[tuple[Request, Outcome]]] = [[] for _ in requests]
    pending = dict(enumerate(requests))
    for attempt in range(n_tries):
        outcomes = train(attempt, list(pending.values())) if pending else []
        for place, outcome in zip(pending, outcomes, strict=True):
            tries[place].append((pending[place], outcome))
        proposed = {place: _propose(tries[place], tolerance) for place in pending}
        pending = {place: request for place, request in proposed.items() if request is not None}
    return tries


def _propose(tries: Sequence[tuple[Request, Outcome]], tolerance: float) -> Request | None:
    """The next try, or None when the last one is near enough or nothing else is left to try."""
    request, outcome = tries[-1]
    group, wanted = request.group, request.group.l0
    if wanted is None or is_reached(outcome.l0, wanted, tolerance):
        return None
    tried = [Tried(one.asked or wanted, found.l0) for one, found in tries]
    asked = ask_next(tried, wanted, float(group.sae.d_sae))
    known = [set_l0(group, one.asked) for one, _ in tries]
    return None if set_l0(group, asked) in known else request._replace(asked=asked)


def pick_nearest(tries: Sequence[tuple[Request, Outcome]]) -> tuple[Request, Outcome]:
    """The try whose realised L0 is nearest to the wanted one; without a wanted one the only try."""
    wanted = tries[0][0].group.l0
    return tries[0] if wanted is None else min(tries, key=lambda one: miss(one[1].l0, wanted))


def search(settings: SweepConfig, groups: Sequence[Group], source: Source) -> tuple[dict[str, Request], list[Trial]]:
    """For each group the learning rate and the setting to train in full with, and all short trainings that it took.

    Successive halving: every rung trains the learning rates that are left, all groups together on one stream, on a fraction
    of the budget; those that are best go on. Each rung, and the full training, starts by asking for the wanted L0: what reaches
    it in a short training does not in a longer one (a ReLU SAE set to reach 11 of the 8 wanted in 98 iterations reached 3 in
    294). What a group chooses does not depend on the others.
    """
    chosen = {group.name: [Request(group, lr, group.l0) for lr in group.lrs] for group in groups}
    trials: list[Trial] = []
    plan = settings.search
    if plan is None:
        return {name: requests[0] for name, requests in chosen.items()}, trials
    for rung in range(len(plan.rungs)):
        asking = [request for name in chosen for request in chosen[name] if len(request.group.lrs) > 1]
        tries = reach(asking, plan.l0_tries, plan.l0_tolerance, _train_rung(settings, plan, rung, source))
        trials += [Trial(request, rung, attempt, outcome) for each in tries for attempt, (request, outcome) in enumerate(each)]
        reached = [pick_nearest(each) for each in tries]
        is_last = rung == len(plan.rungs) - 1
        for name, before in chosen.items():
            of_group = [one for one in reached if one[0].group.name == name]
            n_kept = 1 if is_last else math.ceil(plan.keep * len(of_group))
            best = rank(of_group, plan.l0_tolerance)[:n_kept]
            chosen[name] = [request._replace(asked=request.group.l0) for request in best] or before
    return {name: requests[0] for name, requests in chosen.items()}, trials


def rank(found: Sequence[tuple[Request, Outcome]], tolerance: float) -> list[Request]:
    """Candidates of one group, best first: by held-out R2 (mean over hook points) among those at the wanted L0.

    Those off target come after all others, the nearest first; those that diverged come last; equals stay in order.
    """

    def key(one: tuple[Request, Outcome]) -> tuple[bool, float]:
        request, outcome = one
        if outcome.evaluation is not None and is_reached(outcome.l0, request.group.l0, tolerance):
            return False, -outcome.r2
        return True, miss(outcome.l0, request.group.l0 or 1.0)

    return [request for request, _ in sorted(found, key=key)]


def _train_rung(settings: SweepConfig, plan: SearchConfig, rung: int, source: Source) -> Train:
    def train(attempt: int, requests: Sequence[Request]) -> Sequence[Outcome]:
        parent = settings.out / "search" / f"rung={rung}-try={attempt}"
        configs = [_shorten(settings, request, parent, plan.rungs[rung], source) for request in requests]
        return train_together(configs, source, f"search, rung {rung + 1} of {len(plan.rungs)}, try {attempt + 1}")

    return train


def _shorten(settings: SweepConfig, request: Request, parent: Path, fraction: float, source: Source) -> TrainConfig:
    """The training of a candidate on a fraction of the budget."""
    group, lr, asked = request
    out = parent / f"{group.name}-lr={lr:g}"
    full = configure(settings, group, out, lr=lr, asked=asked, seed=settings.seeds[0])
    n_rows = source.arrange(full)[1].n_rows
    n_iterations = max(round(fraction * full.count_iterations(n_rows)), 1)
    rows = n_iterations * full.stream.batch_size
    return dataclasses.replace(full, rows=rows, epochs=None, evaluate_every=n_iterations)
