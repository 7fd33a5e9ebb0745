"""The tables of a sweep: one row per member, one per group with intervals over seeds, one per short training."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from thresher.config import to_dict
from thresher.files import write_atomic
from thresher.runs import canonical_json
from thresher.train.sweep.config import SweepConfig
from thresher.train.sweep.estimates import estimate, reach_by
from thresher.train.sweep.outcome import Outcome
from thresher.train.sweep.plan import set_l0
from thresher.train.sweep.search import Request, Trial
from thresher.train.sweep.target import is_reached

RESULT, TABLE = "sweep.json", "table"
Row = dict[str, Any]


class Finished(NamedTuple):
    """A group trained in full."""

    request: Request
    members: Mapping[int, Outcome]
    """By seed."""
    search_seconds: float
    """What finding its learning rate and its setting took, in the clock of its members."""


def write_report(settings: SweepConfig, groups: Sequence[Finished], trials: Sequence[Trial]) -> None:
    """Write `members.csv` and `.parquet`, `curve.csv`, `search.csv`, `table.csv`, `table.md`, and at last `sweep.json`."""
    out, limit = settings.out, find_equal_time(groups)
    members = [row for group in groups for row in list_members(settings, group)]
    _write_csv(out / "members.csv", members)
    _write_parquet(out / "members.parquet", members)
    _write_csv(out / "curve.csv", [row for group in groups for row in list_curves(group)])
    _write_csv(out / "search.csv", [describe_trial(settings, trial) for trial in trials])
    table = [summarize(settings, group, limit) for group in groups]
    _write_csv(out / f"{TABLE}.csv", table)
    write_atomic(out / f"{TABLE}.md", [_explain(settings, groups, table, limit).encode()])
    result = {
        "config": to_dict(settings),
        "clock": _name_clock(groups),
        "equal_time_seconds": limit if math.isfinite(limit) else None,
        "groups": [_describe(settings, group) for group in groups],
    }
    write_atomic(out / RESULT, [canonical_json(result)])


def read_table(out: Path) -> list[dict[str, str]]:
    """The table of a finished sweep as text, one row per group: means over seeds +- half of their 95 % intervals."""
    hook_points = json.loads((out / RESULT).read_bytes())["config"]["base"]["hook_points"]
    with (out / f"{TABLE}.csv").open(encoding="utf-8", newline="") as file:
        return [show(row, hook_points) for row in csv.DictReader(file)]


def find_equal_time(groups: Sequence[Finished]) -> float:
    """Seconds that every member trained at least; NaN when all diverged."""
    seconds = [outcome.cost.seconds for group in groups for outcome in group.members.values() if outcome.evaluation is not None]
    return min(seconds, default=math.nan)


def list_members(settings: SweepConfig, group: Finished) -> list[Row]:
    """A row for each seed of a group; numbers of a member that diverged are empty."""
    request, rows = group.request, list[Row]()
    for seed, outcome in group.members.items():
        cost, found = outcome.cost, outcome.evaluation or {}
        row: Row = {
            "member": outcome.folder.name,
            "group": request.group.name,
            "architecture": request.group.architecture,
            "kind": request.group.sae.kind,
            "d_sae": request.group.sae.d_sae,
            "seed": seed,
            "lr": request.lr,
            "wanted_l0": request.group.l0,
            "asked_l0": request.asked,
            "l0": found.get("l0"),
            "off_target": not is_reached(outcome.l0, request.group.l0, settings.l0_tolerance),
            "dead": found.get("dead"),
        }
        of_hook_points = found.get("hook_points", {})
        row |= {f"r2/{name}": of_hook_points.get(name, {}).get("r2") for name in settings.base.hook_points}
        row |= {"seconds": cost.seconds, "clock": cost.clock, "parameter_bytes": cost.parameter_bytes}
        row |= {"state_bytes": cost.state_bytes, "diverged": cost.diverged, "folder": str(outcome.folder)}
        rows.append(row)
    return rows


def list_curves(group: Finished) -> list[Row]:
    """The evaluations on the way of all members of a group."""
    return [
        {"member": outcome.folder.name, "iteration": point["iteration"], "seconds": point["seconds"], "l0": point["l0"]}
        | {f"r2/{name}": value for name, value in point["r2"].items()}
        for outcome in group.members.values()
        for point in outcome.cost.curve
    ]


def describe_trial(settings: SweepConfig, trial: Trial) -> Row:
    """A row for a short training of the search."""
    request, outcome = trial.request, trial.outcome
    return {
        "group": request.group.name,
        "rung": trial.rung + 1,
        "attempt": trial.attempt + 1,
        "lr": request.lr,
        "wanted_l0": request.group.l0,
        "asked_l0": request.asked,
        "l0": None if outcome.evaluation is None else outcome.l0,
        "off_target": not is_reached(outcome.l0, request.group.l0, settings.l0_tolerance),
        "r2": None if outcome.evaluation is None else outcome.r2,
        "seconds": outcome.cost.seconds,
        "diverged": outcome.cost.diverged,
    }


def summarize(settings: SweepConfig, group: Finished, equal_time: float) -> Row:
    """A row of numbers for a group: means over the seeds that did not diverge, with 95 % intervals."""
    request = group.request
    row: Row = {
        "group": request.group.name,
        "architecture": request.group.architecture,
        "d_sae": request.group.sae.d_sae,
        "wanted_l0": request.group.l0,
        "seeds": len(group.members),
        "diverged": sum(outcome.evaluation is None for outcome in group.members.values()),
        "lr": request.lr,
        "lr_at_edge": len(request.group.lrs) > 1 and request.lr in (min(request.group.lrs), max(request.group.lrs)),
    }
    columns = {"l0": estimate(_take(group, lambda outcome: outcome.l0))}
    members = [outcome for outcome in group.members.values() if outcome.evaluation is not None]
    off = [outcome for outcome in members if not is_reached(outcome.l0, request.group.l0, settings.l0_tolerance)]
    row["off_target"] = len(off)
    for name in settings.base.hook_points:
        columns[f"r2/{name}"] = estimate([_read(outcome, name, "r2") for outcome in members])
        columns[f"equal_time_r2/{name}"] = estimate([reach_by(one.cost, equal_time).get(name, math.nan) for one in members])
    columns["dead"] = estimate([float((outcome.evaluation or {})["dead"]) for outcome in members])
    columns["seconds"] = estimate([outcome.cost.seconds for outcome in members])
    for name, found in columns.items():
        row |= {name: found.mean, f"{name}/low": found.low, f"{name}/high": found.high}
    row["megabytes"] = max((one.cost.parameter_bytes + one.cost.state_bytes for one in group.members.values()), default=0) / 1e6
    return row | {"search_seconds": group.search_seconds}


def show(row: Mapping[str, Any], hook_points: Sequence[str]) -> dict[str, str]:
    """A row of the table as text; what is off target or diverged says so."""
    marks = [f"OFF TARGET: {row['off_target']} of {row['seeds']}"] if int(row["off_target"]) else []
    marks += [f"DIVERGED: {row['diverged']} of {row['seeds']}"] if int(row["diverged"]) else []
    shown = {"group": row["group"], "lr": f"{float(row['lr']):g}", "L0": _show(row, "l0", 2)}
    shown |= {f"R2 {name}": _show(row, f"r2/{name}", 4) for name in hook_points}
    shown |= {"dead": _show(row, "dead", 3), "seconds": _show(row, "seconds", 1), "MB": f"{float(row['megabytes']):.1f}"}
    marks += ["lr at the edge of its list"] if str(row["lr_at_edge"]) == "True" else []
    return shown | {"note": ", ".join(marks)}


def show_equal_time(row: Mapping[str, Any], hook_points: Sequence[str]) -> dict[str, str]:
    """A row of the table at equal time as text, and what its search took."""
    shown = {"group": row["group"]} | {f"R2 {name}": _show(row, f"equal_time_r2/{name}", 4) for name in hook_points}
    return shown | {"seconds in full": _show(row, "seconds", 1), "of the search": f"{float(row['search_seconds']):.1f}"}


def _show(row: Mapping[str, Any], name: str, digits: int) -> str:
    # A missing value is None in memory and an empty text in the file.
    mean, high = (float("nan" if row[key] in (None, "") else row[key]) for key in (name, f"{name}/high"))
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + (f" +- {high - mean:.{digits}f}" if math.isfinite(high) else "")


def _describe(settings: SweepConfig, group: Finished) -> Row:
    request = group.request
    return {
        "name": request.group.name,
        "sae": to_dict(set_l0(request.group, request.asked)),
        "lr": request.lr,
        "wanted_l0": request.group.l0,
        "asked_l0": request.asked,
        "members": [str(outcome.folder) for outcome in group.members.values()],
        "search_seconds": group.search_seconds,
    }


def _take(group: Finished, read: Callable[[Outcome], float]) -> list[float]:
    return [read(outcome) for outcome in group.members.values() if outcome.evaluation is not None]


def _read(outcome: Outcome, hook_point: str, name: str) -> float:
    """NaN for a hook point that it does not reconstruct, such as the input of a transcoder."""
    return float((outcome.evaluation or {})["hook_points"].get(hook_point, {}).get(name, math.nan))


def _name_clock(groups: Sequence[Finished]) -> str:
    clocks = sorted({outcome.cost.clock for group in groups for outcome in group.members.values()})
    return " and ".join(clocks)


def _explain(settings: SweepConfig, groups: Sequence[Finished], table: Sequence[Row], equal_time: float) -> str:
    names = settings.base.hook_points
    lines = [
        *_to_markdown([show(row, names) for row in table]),
        "",
        f"Equal rows and optimizer steps for all; {len(settings.seeds)} seed(s) of the initial dictionary.",
        "+- is half of the 95 % interval over seeds (Student's t); it does not hold the choice of data.",
        f"Seconds: {_name_clock(groups)} in a member's own steps, without reading, evaluating and the search.",
        f"OFF TARGET: realised L0 more than {settings.l0_tolerance:.0%} from the wanted one; do not compare its R2.",
    ]
    if math.isfinite(equal_time):
        lines += ["", f"At equal time, {equal_time:.3g} s of each member's steps (from its evaluations on the way):", ""]
        lines += _to_markdown([show_equal_time(row, names) for row in table])
    return "\n".join(lines) + "\n"


def _to_markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row.values()) + " |" for row in rows]


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Missing values are empty; a file without rows has no header either."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if _is_missing(value) else value for name, value in row.items()} for row in rows)
    write_atomic(path, [text.getvalue().encode()])


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    write_atomic(path, [memoryview(buffer.getvalue())])
