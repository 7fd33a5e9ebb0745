"""Who is compared in `pursuit.py`: our methods and other libraries' modules, each as a training step and as an encoder."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, get_args

import peers
import torch
from costs import Cost, count_encode, count_step
from rows import Shape
from torch import Tensor

from thresher.train.arch import MatchingPursuit, TopK, build
from thresher.train.kernels import Method, prepare, pursue
from thresher.train.loop import fit
from thresher.train.optimizer import OptimizerConfig, make_adam

OURS_TOPK = "ours topk, fp32"
OURS_TOPK_LOW = "ours topk, bf16 selection"
NAIVE_GFLOPS = 60
"""What a dense step of a peer is taken to reach when its batch is chosen."""
GRAM_BYTES = {"gram": 4, "numba_gram": 4, "numba_certified": 2}
"""Per pair of atoms."""

Work = Callable[[], object]


class Contender(NamedTuple):
    """One row of the tables."""

    name: str
    make: Callable[[], Work]
    """Builds the module and gives its work, so that what a work holds is held only while it is timed."""
    batch: int
    """Rows of its batch; smaller than the shape's where the peer would need too much memory or time."""
    cost: Cost | None = None
    """None for peers."""


METHODS: tuple[Method, ...] = tuple(method for method in get_args(Method) if method not in ("auto", "reference"))


def list_methods(wanted: Iterable[Method]) -> tuple[list[Method], list[str]]:
    """Those that run on this machine's CPU, and why each of the others does not."""
    found: list[Method] = []
    missing: list[str] = []
    for method in wanted:
        try:
            prepare(torch.eye(4), method)
        except (ImportError, ValueError) as error:
            missing.append(str(error))
        else:
            found.append(method)
    return found, missing


def fit_grams(methods: Iterable[Method], shape: Shape, gigabytes: float) -> tuple[list[Method], list[str]]:
    """Those whose Gram matrices fit into memory together, smallest first, and a line on each of the others."""
    found: list[Method] = []
    missing: list[str] = []
    left = 1e9 * gigabytes
    for method in sorted(methods, key=lambda method: GRAM_BYTES.get(method, 0)):
        needed = GRAM_BYTES.get(method, 0) * shape.d_sae**2
        if needed > left:
            missing.append(f"method={method!r} keeps {needed / 1e9:.1f} GB, {left / 1e9:.1f} are left for such (--gigabytes)")
            continue
        left -= needed
        found.append(method)
    return found, missing


def make_topks(shape: Shape) -> dict[str, tuple[TopK, str]]:
    """Our TopK by name, with its name in `costs`."""
    return {
        OURS_TOPK: (TopK(d_sae=shape.d_sae, k=shape.k), "topk"),
        OURS_TOPK_LOW: (TopK(d_sae=shape.d_sae, k=shape.k, selection="bf16"), "topk_low"),
    }


def list_our_steps(shape: Shape, dictionary: Tensor, x: Tensor, methods: list[Method]) -> Iterator[Contender]:
    """Iterations of the loop as training runs it: statistics, dead atoms and clipping included."""
    pursuits = {f"ours mp, {m}": (MatchingPursuit(d_sae=shape.d_sae, k=shape.k, method=m), m) for m in methods}
    for name, (config, kind) in (pursuits | make_topks(shape)).items():
        make = functools.partial(_make_our_step, config, dictionary, x)
        yield Contender(name, make, shape.batch, count_step(kind, shape))


def _build_ours(config: object, dictionary: Tensor) -> torch.nn.Module:
    sae = build(config, dictionary.shape[1], 0)
    with torch.no_grad():
        sae.dictionary.copy_(dictionary)
        if hasattr(sae, "encoder"):
            sae.encoder.copy_(dictionary)
    return sae


def _make_our_step(config: object, dictionary: Tensor, x: Tensor) -> Work:
    sae = _build_ours(config, dictionary)
    optimizer = make_adam(sae, OptimizerConfig())
    steps = fit(sae, iter(lambda: x, None), optimizer, learning_rate=lambda _: peers.LEARNING_RATE, clip=1.0)
    return lambda: next(steps)


def list_our_encoders(shape: Shape, dictionary: Tensor, x: Tensor, methods: list[Method]) -> Iterator[Contender]:
    """Codes at a fixed dictionary: what derives from it is made beforehand."""
    for method in methods:
        make = functools.partial(_make_our_pursuit, method, shape.k, dictionary, x)
        yield Contender(f"ours mp, {method}", make, shape.batch, count_encode(method, shape))
    for name, (config, kind) in make_topks(shape).items():
        make = functools.partial(_make_our_topk, config, dictionary, x)
        yield Contender(name, make, shape.batch, count_encode(kind, shape))


def _make_our_pursuit(method: Method, k: int, dictionary: Tensor, x: Tensor) -> Work:
    prepared = prepare(dictionary, method)
    return _make_encoder(lambda x: pursue(x, dictionary, k, prepared=prepared, check=False), x)


def _make_our_topk(config: TopK, dictionary: Tensor, x: Tensor) -> Work:
    return _make_encoder(_build_ours(config, dictionary).encode, x)


def _make_encoder(encode: Callable[[Tensor], object], x: Tensor) -> Work:
    def work() -> object:
        with torch.no_grad():
            return encode(x)

    return work


def list_peers(
    shape: Shape, dictionary: Tensor, x: Tensor, *, gigabytes: float, seconds: float
) -> Iterator[tuple[Contender, Contender]]:
    """Training step and encoder of each installed peer, at a smaller batch where the limits ask for it."""
    for peer in peers.PEERS:
        if not peers.is_installed(peer.package):
            continue
        batch = _fit_batch(peer.name, shape, gigabytes, seconds)
        arguments = (peer, shape.k, dictionary, x[:batch])
        step, encoder = (functools.partial(make, *arguments) for make in (_make_peer_step, _make_peer_encoder))
        yield Contender(peer.name, step, batch), Contender(peer.name, encoder, batch)


def _make_peer_step(peer: peers.Peer, k: int, dictionary: Tensor, x: Tensor) -> Work:
    return peers.make_step(peer.make(dictionary, k), peer.compute_loss, lambda: x)


def _make_peer_encoder(peer: peers.Peer, k: int, dictionary: Tensor, x: Tensor) -> Work:
    sae = peer.make(dictionary, k).eval()
    return _make_encoder(lambda x: peer.encode(sae, x), x)


def _fit_batch(name: str, shape: Shape, gigabytes: float, seconds: float) -> int:
    """The shape's batch, halved until a step is estimated to fit both limits."""
    n_steps = shape.k if name.endswith("mp") else 1
    n_products = {"overcomplete mp": 6 * shape.k, "saelens mp": shape.k}.get(name, 6)
    bytes_per_score = {"overcomplete mp": 8 * n_steps + 24}.get(name, 24)
    batch = shape.batch
    while batch > 16 and (
        bytes_per_score * batch * shape.d_sae > 1e9 * gigabytes
        or 2e-9 * n_products * batch * shape.d_sae * shape.d_in / NAIVE_GFLOPS > seconds
    ):
        batch //= 2
    return batch
