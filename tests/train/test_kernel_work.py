"""Laws of the work and the memory of a pursuit: finished rows cost nothing, nothing of size [row, d_sae, k] exists."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from thresher.train.kernels import Method, orthogonal_pursue, prepare, pursue
from thresher.train.kernels.forms import CPU_CHUNK, KEPT_AT_MOST
from thresher.train.kernels.orthogonal_form import NUMBERS_AT_ONCE

Pursuit = Callable[..., tuple]


class CountScores(TorchDispatchMode):
    """Counts rows of scores that are computed or updated: results [row, d_sae] of products and of `addcmul`."""

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.d_sae, self.n_rows = d_sae, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addcmul_", "addcmul") and found.shape[-1] == self.d_sae:
            self.n_rows += found.shape[0]
        return found


def measure_peak(function: Callable[[], object]) -> int:
    """Most bytes that torch held at once for what `function` allocated."""
    function()
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        function()
    live, peak = 0, 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert peak > 0
    return peak


def draw(rows: int, d_in: int, d_sae: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, d_in, generator=generator)
    return x, functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)


FORMS: list[tuple[str, Pursuit]] = [
    ("residual", lambda *given, **named: pursue(*given, method="residual", **named)),
    ("gram", lambda *given, **named: pursue(*given, method="gram", **named)),
    ("orthogonal", orthogonal_pursue),
]


@pytest.mark.parametrize("form", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
def test_rows_that_are_finished_cost_nothing(form: Pursuit) -> None:
    """Half of the rows are zeros, which stop at the first step; the other half takes all steps."""
    x, dictionary = draw(1000, 32, 500)
    prepared = {"prepared": prepare(dictionary, "gram")} if form is FORMS[1][1] else {}
    x[::2] = 0
    with CountScores(500) as counted:
        codes, _ = form(x, dictionary, 8, sign="abs", **prepared)
    assert ((codes.values != 0).sum(1)[1::2] == 8).all()
    assert counted.n_rows == 1000 + 7 * 500


@pytest.mark.parametrize("form", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
def test_rows_that_finish_one_after_the_other_cost_little(form: Pursuit) -> None:
    """At most what the rows that go on would cost, divided by the share at which the finished ones are dropped."""
    x, dictionary = draw(1000, 32, 500)
    prepared = {"prepared": prepare(dictionary, "gram")} if form is FORMS[1][1] else {}
    k, tol = 20, 0.35
    with CountScores(500) as counted:
        codes, residual = form(x, dictionary, k, sign="abs", residual_tol=tol, **prepared)
    n_steps = (codes.values != 0).sum(1)
    assert n_steps.min() < n_steps.max() < k
    going = [int((n_steps > step).sum()) for step in range(k)]
    assert counted.n_rows <= 1000 + sum(going) / KEPT_AT_MOST
    # Each row is what it is on its own.
    for row in (0, 500, 999):
        alone, left = form(x[row : row + 1], dictionary, k, sign="abs", residual_tol=tol, **prepared)
        assert torch.equal(alone.indices[0], codes.indices[row])
        torch.testing.assert_close(alone.values[0], codes.values[row])
        torch.testing.assert_close(left[0], residual[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
def test_memory_of_a_training_step_grows_with_codes_and_rows_only(form: Pursuit) -> None:
    """Peak over forward and backward, in numbers of 4 bytes. Dense codes of all steps would be 100 times the allowance."""
    rows, d_in, d_sae, few, many = 2000, 16, 1024, 4, 36
    x, dictionary = draw(rows, d_in, d_sae)
    x, dictionary = x.requires_grad_(), dictionary.requires_grad_()

    def step(k: int) -> Callable[[], object]:
        def take() -> None:
            codes, residual = form(x, dictionary, k, sign="abs")
            (residual.square().sum() + codes.values.square().sum()).backward()

        return take

    peaks = {k: measure_peak(step(k)) / 4 for k in (few, many)}
    buffers = max(2 * CPU_CHUNK, 2 * NUMBERS_AT_ONCE["cpu"])
    for k, peak in peaks.items():
        codes = 3 * rows * k
        assert peak <= d_sae**2 + buffers + 8 * rows * d_in + 4 * d_sae * d_in + 8 * codes
        assert peak < rows * d_sae * k
    is_orthogonal = form is orthogonal_pursue
    assert is_orthogonal or peaks[many] - peaks[few] <= 4 * 3 * rows * (many - few)


@pytest.mark.parametrize("method", ["residual", "gram"])
def test_memory_of_encoding_holds_a_chunk_of_scores_whatever_the_number_of_rows(method: Method) -> None:
    d_in, d_sae, k = 8, 4096, 3
    peaks = []
    for rows in (1000, 5000):
        x, dictionary = draw(rows, d_in, d_sae)
        prepared = prepare(dictionary, method)
        peaks.append(measure_peak(lambda: pursue(x, dictionary, k, prepared=prepared)) / 4)  # noqa: B023
    assert peaks[1] - peaks[0] <= 4000 * (4 * d_in + 3 * 4 * k)
    assert peaks[1] < 5000 * d_sae / 4
