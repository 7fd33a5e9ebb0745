"""A sweep as a stage: from a store to many checkpoints and a table that compares them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from thresher.errors import CheckpointError
from thresher.runs import refuse_foreign, write_provenance
from thresher.team import open_team
from thresher.train.sweep.config import SweepConfig, load
from thresher.train.sweep.outcome import Outcome
from thresher.train.sweep.plan import configure, list_groups, name_members
from thresher.train.sweep.report import RESULT, Finished, read_table, write_report
from thresher.train.sweep.search import Request, Trial, pick_nearest, reach, search
from thresher.train.sweep.source import Source
from thresher.train.sweep.together import train_together

__all__ = ["SweepConfig", "load", "read_table", "run"]

MEMBERS, CORRECTED = "members", "corrected"


class _Trained(NamedTuple):
    """A group trained in full."""

    finished: Finished
    left_out: list[Outcome]
    """Members of earlier tries, at settings that missed the wanted L0 by more."""


def run(settings: SweepConfig) -> Path:
    """Search, train all members, and write the tables; returns the folder of the sweep.

    Run again it goes on where it was stopped, bit for bit on a CPU, and trains only what is missing: with more architectures,
    values or seeds in the configuration, the members that are there stay as they are, and the new ones come out as if they
    had been there from the start. Processes that are launched together share the members out; what comes of it is the same.
    Raises ConfigError; CheckpointError: a member's folder holds another training; StoreError; ThresherError: another process
    has ended.
    """
    groups = list_groups(settings)
    with open_team() as team:
        team.agree(lambda: refuse_foreign(settings.out, [RESULT, MEMBERS, "search"]))
        source = Source(settings.base, team)
        chosen, trials = search(settings, groups, source)
        trained = _train_groups(settings, [chosen[group.name] for group in groups], source)

        def report() -> None:
            write_provenance(settings.out, settings, {"store": source.store.fingerprint})
            write_report(settings, [_account(one, trials) for one in trained], trials)

        team.agree(report)
    return settings.out


def _train_groups(settings: SweepConfig, requests: Sequence[Request], source: Source) -> list[_Trained]:
    """Train every seed of every group in full; the first seed decides whether and how its group is corrected."""
    found: dict[tuple[str, int], list[Outcome]] = {}

    def train(attempt: int, asked: Sequence[Request]) -> Sequence[Outcome]:
        parent = settings.out / MEMBERS if attempt == 0 else settings.out / CORRECTED / str(attempt)
        configs = [
            configure(settings, request.group, parent / name, lr=request.lr, asked=request.asked, seed=seed)
            for request in asked
            for name, seed in name_members(settings, request.group)
        ]
        label = "sweep" if attempt == 0 else f"sweep, correction {attempt}"
        try:
            outcomes = train_together(configs, source, label)
        except CheckpointError as error:
            because = "\n(after a change of `grid.lr` or `search`, the search may have chosen otherwise)"
            raise CheckpointError(f"{error}{because if settings.search else ''}") from error
        n_seeds = len(settings.seeds)
        for place, request in enumerate(asked):
            found[request.group.name, attempt] = outcomes[place * n_seeds : (place + 1) * n_seeds]
        return outcomes[::n_seeds]

    tries = reach(requests, 1 + settings.corrections, settings.l0_tolerance, train)
    trained: list[_Trained] = []
    for each in tries:
        best = each.index(pick_nearest(each))
        name = each[best][0].group.name
        others = [outcome for attempt in range(len(each)) if attempt != best for outcome in found[name, attempt]]
        members = dict(zip(settings.seeds, found[name, best], strict=True))
        trained.append(_Trained(Finished(each[best][0], members, 0.0), others))
    return trained


def _account(trained: _Trained, trials: Sequence[Trial]) -> Finished:
    """The group with the seconds that went into its search and into tries that were left out."""
    name = trained.finished.request.group.name
    spent = [trial.outcome for trial in trials if trial.request.group.name == name] + trained.left_out
    return trained.finished._replace(search_seconds=sum(outcome.cost.seconds for outcome in spent))
