"""A sweep of n members beside n single trainings of the same settings, in CPU time and on the clock.

Prints both for each n, their ratio, and what a model of costs says: reading, preparing and evaluating once or n times.

    python benchmarks/sweep.py [--members 1,4,8] [--d-in 128] [--d-sae 512] [--iterations 100] [--rounds 3] [--threads 1]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from timing import alternate, describe_machine

from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter
from thresher.data.stream import StreamConfig
from thresher.train import run as single
from thresher.train.arch import Architecture, BatchTopK, MatchingPursuit, Relu, TopK
from thresher.train.config import TrainConfig
from thresher.train.sweep.config import MemberConfig, SweepConfig
from thresher.train.sweep.run import run as run_sweep

NAME = "text.pooled"
BATCH, ROWS_PER_WRITE = 512, 4096


def write_store(folder: Path, n_rows: int, d_in: int) -> Path:
    """Random rows, one per item, in float16."""
    generator = torch.Generator().manual_seed(0)
    spec = HookPointSpec(NAME, "text", "text.items", d_in, "float16")
    with StoreWriter(folder, {"model": "random"}, [spec], []) as writer:
        for index, start in enumerate(range(0, n_rows, ROWS_PER_WRITE)):
            n = min(ROWS_PER_WRITE, n_rows - start)
            rows = torch.randn(n, d_in, generator=generator).half()
            items = [Item(str(start + i), start + i, "ok", "a text", None, ()) for i in range(n)]
            placed = Rows(torch.arange(n), torch.full((n,), -1, dtype=torch.int32), None, {NAME: rows})
            writer.write(Batch(index, {"image": [], "text": items}, [], {"text.items": placed}))
        writer.finish()
    return folder


def choose(n: int, d_sae: int) -> list[Architecture]:
    """`n` settings, in turn of four architectures, no two alike."""
    made: list[Architecture] = []
    for place in range(n):
        k = 4 + place // 4
        kinds: list[Architecture] = [
            MatchingPursuit(d_sae=d_sae, k=k),
            TopK(d_sae=d_sae, k=k),
            BatchTopK(d_sae=d_sae, k=float(k)),
            Relu(d_sae=d_sae, l0=float(k)),
        ]
        made.append(kinds[place % 4])
    return made


class Contest:
    """The two ways to train `n` dictionaries, each time in new folders."""

    def __init__(self, base: TrainConfig, folder: Path, saes: list[Architecture]) -> None:
        self._base, self._folder, self._saes = base, folder, saes
        self._n_runs = 0

    def sweep(self) -> None:
        """Together, on one stream."""
        members = {f"m{place}": MemberConfig(sae=sae) for place, sae in enumerate(self._saes)}
        run_sweep(SweepConfig(out=self._next(), base=self._base, members=members))

    def one_by_one(self) -> None:
        """One after the other."""
        out = self._next()
        for place, sae in enumerate(self._saes):
            single.run(TrainConfig(**{**vars(self._base), "sae": sae, "init_seed": 0, "out": out / f"m{place}"}))

    def _next(self) -> Path:
        self._n_runs += 1
        return self._folder / f"{len(self._saes)}-{self._n_runs}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", default="1,4,8")
    parser.add_argument("--d-in", type=int, default=128)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe_machine())
    print(f"{options.iterations} iterations of {BATCH} rows, d_in {options.d_in}, d_sae {options.d_sae}; medians in seconds\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = TrainConfig(
            store=write_store(folder / "store", options.rows, options.d_in),
            hook_points=(NAME,),
            sae=TopK(d_sae=options.d_sae, k=4),
            out=folder,
            stream=StreamConfig(batch_size=BATCH, holdout=0.05),
            rows=BATCH * options.iterations,
            device="cpu",
            tensorboard=False,
        )
        measure(base, folder, [int(n) for n in options.members.split(",")], options.rounds)


def measure(base: TrainConfig, folder: Path, counts: list[int], rounds: int) -> None:
    """Both ways for each count, in alternation; the first round does not count."""
    print(
        f"{'members':>7} | {'sweep cpu':>9} {'wall':>6} | {'single cpu':>10} {'wall':>6} | {'cpu ratio':>9} {'wall ratio':>10}"
    )
    found: list[tuple[int, float, float]] = []
    for n in counts:
        contest = Contest(base, folder, choose(n, base.sae.d_sae))
        taken = alternate({"sweep": contest.sweep, "single": contest.one_by_one}, rounds)
        cpu = {way: taken[way].median / 1e3 for way in taken}
        wall = {way: sorted(taken[way].wall)[len(taken[way].wall) // 2] / 1e3 for way in taken}
        found.append((n, cpu["sweep"], cpu["single"]))
        print(
            f"{n:7d} | {cpu['sweep']:9.2f} {wall['sweep']:6.2f} | {cpu['single']:10.2f} {wall['single']:6.2f} | "
            f"{cpu['sweep'] / cpu['single']:9.2f} {wall['sweep'] / wall['single']:10.2f}"
        )
    n, together, apart = found[-1]
    if n > 1:
        saved = (apart - together) / (n - 1)
        print(
            f"\nmodel: n single trainings cost n (once + step), a sweep once + n step. At n = {n}: once = {saved:.2f} s "
            f"(opening, statistics, reading, held-out rows), step = {apart / n - saved:.2f} s per member (CPU)"
        )


if __name__ == "__main__":
    main()
