"""What a GPU could break, as checks with the figure behind each; used by `gpu.py`."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from thresher.testing.pursuit import audit_pursuit
from thresher.train.kernels import Method, prepare, pursue, sparse_decode
from thresher.train.kernels.rule import Sign

GAP_AT_MOST = 1e-6
"""Largest finding of `audit_pursuit`: the shortfall of a pick against the best atom in float64, and its other errors."""
ERROR_AT_MOST = 1e-4
"""Largest relative difference of gradients from those in float64 on the CPU."""
SHAPES = ((7, 33, 5, 130), (130, 300, 9, 33), (128, 1024, 16, 257))
"""d_in, d_sae, k, batch."""
METHODS: tuple[Method, ...] = tuple(method for method in get_args(Method) if method not in ("auto", "reference"))


class Check(NamedTuple):
    """One law, and by how much it holds."""

    name: str
    value: float
    limit: float
    """Infinite for a figure that is only reported."""

    @property
    def holds(self) -> bool:
        """NaN does not."""
        return self.value <= self.limit


def draw_rows(d_in: int, d_sae: int, k: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sparse combinations of unit atoms with noise, and a dictionary near those atoms, as late in a training."""
    generator = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    x = torch.zeros(batch, d_in)
    for _ in range(k):
        x += atoms[torch.randint(d_sae, (batch,), generator=generator)] * torch.rand(batch, 1, generator=generator)
    x += 0.01 * torch.randn(batch, d_in, generator=generator)
    near = functional.normalize(atoms + 0.02 * torch.randn(d_sae, d_in, generator=generator), dim=1)
    return x.to(device), near.to(device)


def list_methods(device: torch.device, wanted: Iterable[Method]) -> list[Method]:
    """Those that can run on the device."""
    found: list[Method] = []
    for method in wanted:
        try:
            prepare(torch.eye(16, device=device), method)
        except (ImportError, ValueError) as error:
            print(f"left out: {error}")
        else:
            found.append(method)
    return found


def differentiate(x: Tensor, dictionary: Tensor, k: int, method: Method) -> list[Tensor]:
    """Gradients of a scalar of codes, residual and reconstruction for rows and dictionary, in float64 on the CPU."""
    x, dictionary = x.clone().requires_grad_(), dictionary.clone().requires_grad_()
    codes, residual = pursue(x, dictionary, k, method=method, check=False)
    weight = torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype, device=x.device)
    scalar = (
        (residual.square() * weight).sum() + 0.1 * codes.values.sum() + (sparse_decode(codes, dictionary) ** 3 * weight).sum()
    )
    return [part.double().cpu() for part in torch.autograd.grad(scalar, [x, dictionary])]


def compare(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative difference in norm."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(found, expected, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)


def check_values(device: torch.device, methods: list[Method]) -> Iterator[Check]:
    """Picks, supports by type, gradients."""
    for shape in SHAPES:
        k = shape[2]
        x, dictionary = draw_rows(*shape, device)
        for sign in get_args(Sign):
            for method in methods:
                codes, residual = pursue(x, dictionary, k, sign=sign, method=method)
                found = audit_pursuit(x, dictionary, codes, residual, sign=sign)
                yield Check(f"{method}, {sign} {shape}: gap", found.gap, GAP_AT_MOST)
                wrong = max(found.value_error, found.residual_error, found.stop_gap, found.n_misplaced)
                yield Check(f"{method}, {sign} {shape}: values, residual, stops", wrong, GAP_AT_MOST)
        expected = differentiate(x.double(), dictionary.double(), k, "reference")
        for method in methods:
            error = compare(differentiate(x, dictionary, k, method), expected)
            yield Check(f"{method} {shape}: gradients against the reference in float64", error, ERROR_AT_MOST)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            rows, atoms = x.to(dtype), functional.normalize(dictionary.to(dtype).double(), dim=1).to(dtype)
            true, _ = pursue(rows.double(), atoms.double(), k, method="reference", check=False)
            for method in methods:
                codes, _ = pursue(rows, atoms, k, method=method, check=False)
                differing = (codes.indices != true.indices).any(1).double().mean()
                name = f"{method}, {str(dtype).removeprefix('torch.')} {shape}: share of supports not those of float64"
                yield Check(name, float(differing), float("inf"))


class Pursuit(NamedTuple):
    """A pursuit with its gradients, as a training step makes it."""

    method: Method
    k: int

    def forward(self, x: Tensor, dictionary: Tensor) -> Tensor:
        """A scalar of codes and residual."""
        codes, residual = pursue(x, dictionary, self.k, method=self.method, check=False)
        return residual.square().mean() + codes.values.mean()

    def step(self, x: Tensor, dictionary: Tensor) -> list[Tensor]:
        """The scalar and its gradients."""
        scalar = self.forward(x, dictionary)
        return [scalar, *torch.autograd.grad(scalar, [x, dictionary])]


def check_running(device: torch.device, methods: list[Method]) -> Iterator[Check]:
    """Equal runs give equal bits, a compiled function is the same, nothing waits, a step can be captured."""
    d_in, d_sae, k, batch = SHAPES[-1]
    x, dictionary = (part.requires_grad_() for part in draw_rows(d_in, d_sae, k, batch, device))
    for method in methods:
        pursuit, is_ours = Pursuit(method, k), method.startswith("triton")
        laws: dict[str, Callable[[Pursuit, Tensor, Tensor], float]] = {
            "a second run differs by": _check_repeat,
            "compiled as one graph differs by": _check_compiled,
        }
        if device.type == "cuda":
            laws |= {"waits for the device": _check_waiting, "captured and replayed on other rows differs by": _check_captured}
        for name, law in laws.items():
            limit = 1e-5 if is_ours and law is not _check_repeat else 0.0
            yield Check(f"{method}: {name}", _attempt(law, pursuit, x, dictionary), limit if is_ours else float("inf"))


def _attempt(law: Callable[[Pursuit, Tensor, Tensor], float], pursuit: Pursuit, x: Tensor, dictionary: Tensor) -> float:
    """The law's figure; infinite, with the reason printed, where it raises: the other laws are to be seen as well."""
    try:
        return law(pursuit, x, dictionary)
    except Exception as error:  # whatever torch, triton or the driver raises is the finding
        print(f"  {type(error).__name__}: {str(error).strip().splitlines()[0][:150]}")
        return float("inf")


def _check_repeat(pursuit: Pursuit, x: Tensor, dictionary: Tensor) -> float:
    return compare(pursuit.step(x, dictionary), pursuit.step(x, dictionary))


def _check_compiled(pursuit: Pursuit, x: Tensor, dictionary: Tensor) -> float:
    torch.compiler.reset()
    scalar = torch.compile(pursuit.forward, fullgraph=True)(x, dictionary)
    return compare([scalar, *torch.autograd.grad(scalar, [x, dictionary])], pursuit.step(x, dictionary))


def _check_waiting(pursuit: Pursuit, x: Tensor, dictionary: Tensor) -> float:
    pursuit.step(x, dictionary)  # the first call compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        pursuit.step(x, dictionary)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


def _check_captured(pursuit: Pursuit, x: Tensor, dictionary: Tensor) -> float:
    held, other = x.detach().clone().requires_grad_(), (0.7 * x.detach().flip(0)).requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        pursuit.step(held, dictionary)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pursuit.step(held, dictionary)
    with torch.no_grad():
        held.copy_(other)
    graph.replay()
    return compare(captured, pursuit.step(other, dictionary))
