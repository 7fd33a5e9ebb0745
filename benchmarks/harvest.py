"""A harvest beside the bare forward pass of its model: `python benchmarks/harvest.py [--device cuda]`.

Photographs (JPEG, 256 x 256, made up) through a CLIP of open_clip with random weights, all token rows of four blocks. The bare
pass runs the same model on the same batches, decoded before: no hooks, nothing copied, nothing kept. A harvest is everything
else too: files read, decoded and preprocessed, thumbnails, rows gathered, checked, copied, moments, checksums, fsync. Both in
alternation, process time and wall time. `--parts` chooses among this table and three others: the same rows by other writers,
one hook point of a language model beside SAELens' cache runner, and peak memory of a harvest and of one ten times as long.
"""

import argparse
import contextlib
import io
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harvest_peers
import numpy as np
import torch
from harvest_memory import measure_peaks
from PIL import Image
from timing import Taken, alternate, describe_machine

from thresher.config import validate
from thresher.data.sources import open_source
from thresher.data.store import HookPointSpec, StoreWriter
from thresher.devices import find_device
from thresher.harvest.adapters import Adapter, open_adapter
from thresher.harvest.adapters.weights import torch_dtype
from thresher.harvest.forward import Reader
from thresher.harvest.prepare import Prepared, Preparer, prepare_ahead
from thresher.harvest.run import HarvestConfig

PARTS = ("forward", "write", "peers", "memory")


def make_photographs(folder: Path, n: int) -> None:
    """Smooth noise, which costs a decoder about what a photograph does."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(n):
        coarse = Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", quality=90)


class Work:
    """One model, one source: the bare pass and the harvest of the same batches."""

    def __init__(self, config: HarvestConfig) -> None:
        self.config = config
        device = find_device(config.device)
        self._adapter: Adapter = open_adapter(config.model, device)
        source = open_source(config.source)
        modalities = [known for known in self._adapter.modalities if known in source.modalities]
        self._points = self._adapter.resolve(config.hook_points, modalities)
        self._prepare = Preparer(config, source, self._adapter, modalities)
        self._reader = Reader(config, self._adapter, self._points, {})
        self._ready: list[Prepared] = list(self._ahead())
        self.n_rows = self.n_bytes = 0

    def _ahead(self) -> Any:
        return prepare_ahead(self._prepare, range(self._prepare.n_batches), self.config.workers)

    def run_bare(self) -> None:
        """The model alone."""
        autocast = self.config.autocast
        mixed = torch.bfloat16 if autocast == "off" else torch_dtype(autocast)
        device = self._adapter.device
        with torch.inference_mode(), torch.autocast(device.type, mixed, enabled=autocast != "off"):
            for prepared in self._ready:
                for chunk in prepared.chunks:
                    self._adapter.forward(chunk.inputs.send(device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def decode(self) -> None:
        """Read, decode and preprocess, without a model."""
        for _ in self._ahead():
            pass

    def harvest(self) -> None:
        """Everything from the files to a complete store."""
        out = Path(self.config.out)
        shutil.rmtree(out, ignore_errors=True)
        self.n_rows = self.n_bytes = 0
        specs = [HookPointSpec(p.name, p.modality, p.space, p.width, self.config.dtype) for p in self._points]
        with StoreWriter(out, {"of": "a benchmark"}, specs, ()) as writer:
            for batch in self._reader.read(self._ahead()):
                for rows in batch.rows.values():
                    self.n_rows += sum(len(values) for values in rows.activations.values())
                    self.n_bytes += sum(values.nbytes for values in rows.activations.values())
                writer.write(batch)
            writer.finish()


def print_forward(arguments: argparse.Namespace, folder: Path) -> None:
    """The harvest beside the bare forward pass."""
    make_photographs(folder / "photographs", arguments.images)
    values = {
        "out": folder / "store",
        "model": {"kind": "open-clip", "name": arguments.model, "pretrained": "random", "precision": arguments.precision},
        "source": {"kind": "image-captions", "folder": folder / "photographs"},
        "hook_points": arguments.hooks.split(","),
        "dtype": arguments.dtype,
        "autocast": arguments.autocast,
        "compile": arguments.compile,
        "batch_size": arguments.batch,
        "workers": arguments.workers,
        "decode": arguments.decode,
        "device": arguments.device,
    }
    work = Work(validate(HarvestConfig, values, "benchmark"))
    works: dict[str, Callable[[], object]] = {
        "bare forward": work.run_bare,
        "decode only": work.decode,
        "harvest": work.harvest,
    }
    taken = alternate(works, arguments.rounds)
    print(
        f"{arguments.model}, {arguments.images} photographs, batches of {arguments.batch}, {arguments.hooks}, "
        f"{arguments.dtype}: {work.n_rows} rows, {work.n_bytes / 1e9:.3f} GB"
    )
    print(f"{'':14} {'cpu s':>8} {'of bare':>8} {'wall s':>8} {'of bare':>8} {'rows/s':>9} {'GB/s':>7}")
    for name, found in taken.items():
        print(f"{name:14} {describe(found, taken['bare forward'])} {describe_rate(name, found, work)}")


def describe(found: Taken, base: Taken) -> str:
    """Medians of CPU and wall time, and the median over rounds of their ratio to those of `base`."""
    parts: list[str] = []
    for mine, other in ((found.cpu, base.cpu), (found.wall, base.wall)):
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        parts.append(f"{statistics.median(mine) / 1e3:8.2f} {ratio:8.2f}")
    return " ".join(parts)


def describe_rate(name: str, found: Taken, work: Work) -> str:
    """Rows and gigabytes per second of wall time, of a harvest."""
    if name != "harvest":
        return ""
    seconds = statistics.median(found.wall) / 1e3
    return f"{work.n_rows / seconds:9.0f} {work.n_bytes / 1e9 / seconds:7.3f}"


def print_write(arguments: argparse.Namespace, folder: Path) -> None:
    """The same rows written by several hands."""
    works, n_bytes = harvest_peers.make_writers(folder, int(arguments.mb * 1e6))
    taken = alternate(works, arguments.rounds)
    print(
        f"\nwriting {n_bytes / 1e6:.0f} MB of float16 rows, 768 wide, context 64; `of raw` is bandwidth by that of a raw file"
    )
    print(f"{'':48} {'cpu s':>8} {'wall s':>8} {'GB/s':>7} {'of raw':>7}")
    base = taken["raw file, fsync"]
    for name, found in taken.items():
        share = statistics.median(raw / mine for raw, mine in zip(base.wall, found.wall, strict=True))
        cpu, wall = (statistics.median(times) / 1e3 for times in found)
        print(f"{name:48} {cpu:8.2f} {wall:8.2f} {n_bytes / 1e9 / wall:7.2f} {share:7.2f}")


def print_peers(arguments: argparse.Namespace, folder: Path) -> None:
    """SAELens' cache runner beside a harvest: one hook point of one language model, the same tokens."""
    config = harvest_peers.make_language(folder, arguments.texts, arguments.device)
    work = Work(config)
    works: dict[str, Callable[[], object]] = {"bare forward": work.run_bare, "thresher": work.harvest}
    peer = harvest_peers.make_runner(folder, config, arguments.texts)
    if peer is None:
        print("\nSAELens is not installed: pip install 'thresher[interop]'")
    else:
        works["SAELens cache runner"] = peer
    with contextlib.redirect_stderr(io.StringIO()):
        taken = alternate(works, arguments.rounds)
    print(f"\n{harvest_peers.describe_language(arguments.texts)}: {work.n_rows} rows, {work.n_bytes / 1e6:.0f} MB")
    print(f"{'':24} {'cpu s':>8} {'of bare':>8} {'wall s':>8} {'of bare':>8}")
    for name, found in taken.items():
        print(f"{name:24} {describe(found, taken['bare forward'])}")
    if peer is not None:
        print(f"largest difference of the rows: {harvest_peers.compare(folder, config):.1e} of the largest value")


def print_memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Peaks of two harvests, each in a process of its own."""
    small, large = measure_peaks(folder, arguments.records)
    print(f"\npeak memory (RSS) of a whole harvest process: {arguments.records} and {10 * arguments.records} drawn scenes")
    print(f"{'':14} {'peak MB':>8} {'loaded MB':>10} {'rows':>9}")
    for name, found in (("1x", small), ("10x", large)):
        print(f"{name:14} {found.peak:8.0f} {found.loaded:10.0f} {found.rows:9}")
    print(f"{'10x of 1x':14} {large.peak / small.peak:8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which tables")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--hooks", default="vision.2,vision.5,vision.8,vision.11")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decode", choices=["threads", "processes"], default="threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--autocast", default="off")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=float, default=100.0, help="what is written by the writers")
    parser.add_argument("--texts", type=int, default=256, help="of the language model that SAELens caches")
    parser.add_argument("--records", type=int, default=400, help="of the smaller harvest whose memory is measured")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    print(describe_machine())
    tables = {"forward": print_forward, "write": print_write, "peers": print_peers, "memory": print_memory}
    for name in arguments.parts.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            tables[name](arguments, Path(folder))


if __name__ == "__main__":
    main()
