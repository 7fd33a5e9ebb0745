"""A training step by one process, by processes with shares of the rows, and by processes with parts of the dictionary.

    python benchmarks/parallel.py [d_in,d_sae,k,batch] [--processes 2] [--rounds 5] [--kinds mp topk]

All processes run on this machine, with one thread each, and talk over gloo. Prints the median wall and CPU time of a step in
the first process, the megabytes of parameters and of Adam's averages that a process has, and those that it sends by the
formulas of docs/scale.md. Processes that share cores are slower than the same on machines of their own. Then what it costs a
process to assemble its share of a batch from rows in memory, and whether the shares together are the batch, bit for bit.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from timing import describe_machine

from thresher.data.memory import MemoryStore
from thresher.data.store import Batch, HookPointSpec, Item, Rows
from thresher.data.stream import ActivationStream
from thresher.team import open_team
from thresher.train.arch import Architecture, MatchingPursuit, TopK
from thresher.train.learner import Learner
from thresher.train.optimizer import OptimizerConfig
from thresher.train.parallel.layout import Layout

NAME = "text.pooled"


def main() -> None:
    """Measure every form in processes of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="?", default="256,4096,16,1024", help="d_in,d_sae,k,batch of all processes together")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=["mp", "topk"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.child:
        measure(json.loads(asked.child))
        return
    print(describe_machine())
    print(f"d_in,d_sae,k,batch = {asked.shape}, {asked.processes} processes on {os.cpu_count()} cores\n")
    print("| architecture | form | wall ms | CPU ms | state MB | sent MB |\n|---|---|---|---|---|---|")
    for kind in asked.kinds:
        for form, n, n_shards in (("alone", 1, 1), ("rows", asked.processes, 1), ("atoms", asked.processes, asked.processes)):
            found = launch({"kind": kind, "shape": asked.shape, "shards": n_shards, "rounds": asked.rounds}, n)
            numbers = " | ".join(f"{found[name]:.3g}" for name in ("wall", "cpu", "state", "sent"))
            print(f"| {kind} | {form} | {numbers} |")
    d_in, _, _, batch = map(int, asked.shape.split(","))
    compare_shares(d_in, batch, asked.rounds)


def compare_shares(d_in: int, batch: int, rounds: int) -> None:
    """CPU time of the stream per batch, for all rows of it and for shares, and whether these are equal stretches of it."""
    rows = torch.randn(16 * batch, d_in, generator=torch.Generator().manual_seed(0)).half()
    items = [Item(str(row), row, "ok", None, None, ()) for row in range(len(rows))]
    placed = Rows(torch.arange(len(rows)), torch.full((len(rows),), -1, dtype=torch.int32), None, {NAME: rows})
    spec = HookPointSpec(NAME, "text", "text.items", d_in, "float16")
    made = Batch(0, {"image": [], "text": items}, [], {"text.items": placed})
    store = MemoryStore("random", {"seed": 0}, [spec], [made])
    whole, n_batches = [], 8 * rounds
    print("\n| share of a batch | CPU ms per batch | of all |\n|---|---|---|")
    for n in (1, 2, 4, 8):
        stream = ActivationStream(
            store,
            [NAME],
            batch_size=batch,
            holdout=0.0,
            seed=0,
            pool_rows=len(rows),
            balance="rows",
            device=torch.device("cpu"),
            share=(n - 1, n),
        )
        batches = iter(stream)
        next(batches)
        started = time.process_time()
        found = [next(batches).x for _ in range(n_batches)]
        taken = 1e3 * (time.process_time() - started) / n_batches
        whole = whole or [taken, found]
        batches.close()
        stream.close()
        assert all(torch.equal(part, all_rows[-batch // n :]) for part, all_rows in zip(found, whole[1], strict=True))
        print(f"| 1 / {n} | {taken:.3g} | {taken / whole[0]:.2f} |")


def launch(task: dict[str, Any], n: int) -> dict[str, float]:
    """What the first of n processes has measured."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | shared | {"RANK": str(rank)})
        for rank in range(n)
    ]
    outputs = [child.communicate()[0] for child in children]
    return json.loads(outputs[0].splitlines()[-1])


def measure(task: dict[str, Any]) -> None:
    """Take steps as one of the processes; the first prints what they cost."""
    d_in, d_sae, k, batch = map(int, task["shape"].split(","))
    made: dict[str, Architecture] = {"mp": MatchingPursuit(d_sae=d_sae, k=k), "topk": TopK(d_sae=d_sae, k=k)}
    with open_team() as team:
        layout = Layout(team, task["shards"], torch.device("cpu"))
        sae: Any = layout.build(made[task["kind"]], d_in, 0)
        learner = Learner(sae, OptimizerConfig(), task["rounds"] + 1, synchronize=layout.synchronize(sae))
        x = torch.randn(batch // layout.rows.size, d_in, generator=torch.Generator().manual_seed(layout.rows.place))
        wall, cpu = [], []
        for _ in range(task["rounds"] + 1):
            team.wait()
            started, worked = time.perf_counter(), time.process_time()
            learner.step(x)
            wall.append(1e3 * (time.perf_counter() - started))
            cpu.append(1e3 * (time.process_time() - worked))
        state = sum(each.nbytes for name, each in learner.state_dict().items() if name != "done") / 1e6
        sent = count_sent(task["kind"], (d_in, d_sae, k, len(x)), layout.rows.size, layout.atoms.size) / 1e6
        if team.is_first:
            found = {"wall": statistics.median(wall[1:]), "cpu": statistics.median(cpu[1:]), "state": state, "sent": sent}
            print(json.dumps(found))


def count_sent(kind: str, shape: tuple[int, int, int, int], n_shares: int, n_shards: int) -> float:
    """Bytes that a process sends in a step, by the table of docs/scale.md."""
    d, n, k, rows = shape
    ring, split = (2 * (size - 1) / size for size in (n_shares, n_shards))
    parameters = n * d / n_shards + d if kind == "mp" else (2 * d + 1) * n / n_shards + d
    by_rows = (4 * parameters + 4 * (d + 10) + n / n_shards) * ring
    if kind == "mp":
        return by_rows + k * rows * (24 * (n_shards - 1) + 8 * d * split / 2) + k * rows * 4 * d * split
    return by_rows + 12 * k * rows * (n_shards - 1) + 8 * d * rows * split


if __name__ == "__main__":
    main()
