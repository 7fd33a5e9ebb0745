"""How much smaller profiles make real activations, and how fast: `python benchmarks/store_profiles.py STORE [FILE.npy ...]`.

Rows of each hook point of a store, and of arrays [..., width], are cut into chunks as a store has them and encoded and decoded
chunk by chunk in one thread. Printed are ratios to the rows as they are, and gigabytes of rows per second of processor time
(median over chunks), for the three types that a store can have.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from timing import describe_machine

from thresher.data.store import open_store
from thresher.data.store.codecs import describe_codecs, parse_codecs
from thresher.data.store.layout import CHUNK_BYTES, COMPACT_BYTES, chunk_rows
from thresher.data.store.schema import TORCH_DTYPE
from thresher.data.store.space import as_numpy

PROFILES = {"compact": COMPACT_BYTES, "archive": CHUNK_BYTES}


def read_arrays(paths: list[Path], rows: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and rows, as float32, of everything that there is."""
    for path in paths:
        if path.suffix == ".npy":
            values = np.load(path)
            yield path.stem, torch.from_numpy(values.reshape(-1, values.shape[-1])[:rows].astype(np.float32))
            continue
        store = open_store(path)
        for name in store.hook_points:
            yield name, store.read(name, 0, min(rows, store.rows(name))).float()


def take(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def measure(x: torch.Tensor, dtype: str, profile: str) -> tuple[float, float, float]:
    """Ratio, GB/s of encoding, GB/s of decoding."""
    values = as_numpy(x.to(TORCH_DTYPE[dtype]))
    codec = parse_codecs(describe_codecs(profile, values.itemsize, is_matrix=True), is_matrix=True)
    size = chunk_rows(values[:1].nbytes, PROFILES[profile])
    n_bytes, encoding, decoding = 0, list[float](), list[float]()
    for start in range(0, len(values), size):
        chunk = np.zeros((size, values.shape[1]), values.dtype)
        part = values[start : start + size]
        chunk[: len(part)] = part
        encoded = bytearray(codec.encode(chunk))
        n_bytes += len(encoded)
        encoding.append(take(lambda chunk=chunk: codec.encode(chunk)))
        decoding.append(take(lambda chunk=chunk, encoded=encoded: codec.decode(encoded, chunk)))
    gigabytes = size * values[:1].nbytes / 1e9
    return values.nbytes / n_bytes, gigabytes / statistics.median(encoding), gigabytes / statistics.median(decoding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=20_000, help="of each array at most")
    arguments = parser.parse_args()
    print(describe_machine())
    print(f"{'':34} {'rows':>6} {'width':>6} {'type':9}" + "".join(f" {p:>8} {'enc':>5} {'dec':>5}" for p in PROFILES))
    for name, x in read_arrays(arguments.paths, arguments.rows):
        for dtype in TORCH_DTYPE:
            found = "".join(
                f" {ratio:8.2f} {enc:5.2f} {dec:5.2f}" for ratio, enc, dec in (measure(x, dtype, p) for p in PROFILES)
            )
            print(f"{name:34} {len(x):6} {x.shape[1]:6} {dtype:9}{found}")


if __name__ == "__main__":
    main()
