"""Next-token loss of a language model that goes on with reconstructions instead of its own activations."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thresher.analyze.metrics.estimate import Estimate, estimate
from thresher.analyze.metrics.fidelity import recover_share
from thresher.analyze.metrics.resample import Resample
from thresher.errors import ModelError

Replacement = Callable[[Float[Tensor, "*position d_in"]], Float[Tensor, "*position d_in"]]
"""Maps activations to what the model goes on with."""
TOKENS_AT_ONCE = 256


@runtime_checkable
class LanguageModel(Protocol):
    """What is asked of a model; the adapter of decoder language models has it."""

    def splice(self, hook_point: str, function: Replacement) -> AbstractContextManager[None]:
        """Go on with `function(activations)` while the block runs."""
        ...

    def predict_next(self, text: str) -> tuple[Float[Tensor, "token vocabulary"], Int[Tensor, "token"]]:
        """Logits for each token but the first from those before it, and these tokens."""
        ...


class DocumentLosses(NamedTuple):
    """Loss of each document under each condition."""

    total: dict[str, Float[np.ndarray, " document"]]
    """Condition -> sum over the document's tokens, nats."""
    n_tokens: Int[np.ndarray, " document"]
    """Predicted tokens."""
    divergence: dict[str, Float[np.ndarray, " document"]]
    """Condition -> sum over the document's tokens of KL(clean || condition), nats; without `clean`."""


class SpliceResult(NamedTuple):
    """Losses and divergences in nats per token, and what share of the damage of an ablation the reconstruction avoids."""

    clean: Estimate
    spliced: Estimate
    zero: Estimate
    """All activations set to zero."""
    mean: Estimate
    """All activations set to their mean over the store."""
    recovered_from_zero: Estimate
    recovered_from_mean: Estimate
    kl_spliced: Estimate
    """KL of the clean model's next-token distribution from the spliced one's, nats per token."""
    kl_zero: Estimate
    kl_mean: Estimate
    kl_recovered_from_zero: Estimate
    kl_recovered_from_mean: Estimate


def measure_losses(
    model: LanguageModel,
    hook_point: str,
    texts: Sequence[str],
    replacements: Mapping[str, Replacement],
    first_position: int,
    advance: Callable[[int], None],
) -> DocumentLosses:
    """Losses per document: `clean`, and one condition per replacement with its divergence from it.

    Positions before `first_position` keep their activations in every condition: a coder that never saw BOS is not asked
    to reconstruct it. Documents go through the model one by one (there is no padding); those of one token are left out.
    """
    totals: dict[str, list[float]] = {name: [] for name in ("clean", *replacements)}
    divergences: dict[str, list[float]] = {name: [] for name in replacements}
    n_tokens: list[int] = []
    for text in texts:
        clean, target = model.predict_next(text)
        advance(1)
        if len(target) == 0:
            continue
        n_tokens.append(len(target))
        totals["clean"].append(_sum_loss(clean, target))
        for name, replace in replacements.items():
            with model.splice(hook_point, from_position(first_position, replace)):
                changed, _ = model.predict_next(text)
            totals[name].append(_sum_loss(changed, target))
            divergences[name].append(_sum_divergence(clean, changed))
    return DocumentLosses(
        {name: np.array(found) for name, found in totals.items()},
        np.array(n_tokens, dtype=np.int64),
        {name: np.array(found) for name, found in divergences.items()},
    )


def from_position(first: int, replace: Replacement) -> Replacement:
    """`replace`, but with the activations before position `first` as they were."""

    def replace_rest(x: Float[Tensor, "*position d_in"]) -> Float[Tensor, "*position d_in"]:
        rows = x[..., first:, :]
        replaced = replace(rows.reshape(-1, x.shape[-1]).float()).to(x.dtype).reshape(rows.shape)
        return torch.cat([x[..., :first, :], replaced], dim=-2)

    return replace_rest


@contextmanager
def splice_module(module: nn.Module, replace: Replacement) -> Generator[None, None, None]:
    """While the block runs, any model goes on with `replace` of what this module of it gives out, or of the first part of
    that when it is a tuple. Raises ModelError: it gives out something else, or `replace` changes the shape."""

    with _exchange(module, lambda given, before: replace(before)):
        yield


@contextmanager
def replace_module(
    module: nn.Module, transcode: Callable[[Float[Tensor, "row d_in"]], Float[Tensor, "row d_out"]], first_position: int = 0
) -> Generator[None, None, None]:
    """While the block runs, any model goes on with `transcode` of what this module of it is given, instead of what the module
    gives out (of a tuple the first part): a transcoder in the place of an MLP. Positions before `first_position` keep what the
    module gives. Raises ModelError: the module is given or gives no tensor, or `transcode` makes another shape."""

    def exchange(given: Any, before: Tensor) -> Tensor:
        if not isinstance(given, Tensor):
            raise ModelError(f"{type(module).__name__}: its first argument is a {type(given).__name__}, expected a tensor")
        rows = given[..., first_position:, :]
        made = transcode(rows.reshape(-1, rows.shape[-1]).float())
        made = made.to(before).reshape(*rows.shape[:-1], made.shape[-1])
        kept = before[..., :first_position, :]
        if made.shape[-1] != kept.shape[-1]:
            raise ModelError(f"{type(module).__name__}: gives rows of width {kept.shape[-1]}, the replacement {made.shape[-1]}")
        return torch.cat([kept, made], dim=-2)

    with _exchange(module, exchange):
        yield


@contextmanager
def _exchange(module: nn.Module, exchange: Callable[[Any, Tensor], Tensor]) -> Generator[None, None, None]:
    """While the block runs, the module gives out `exchange(its first argument, what it gave)`."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        before = output[0] if isinstance(output, tuple) else output
        if not isinstance(before, Tensor):
            raise ModelError(
                f"{type(module).__name__}: gives a {type(before).__name__}, expected a tensor; splice one inside it"
            )
        after = exchange(arguments[0] if arguments else None, before)
        if after.shape != before.shape:
            raise ModelError(f"{type(module).__name__}: the replacement made {list(after.shape)} of {list(before.shape)}")
        after = after.to(before)
        return (after, *output[1:]) if isinstance(output, tuple) else after

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def ablate_to_zero(x: Float[Tensor, "*position d_in"]) -> Float[Tensor, "*position d_in"]:
    """Zeros."""
    return torch.zeros_like(x)


def ablate_to(mean: Float[Tensor, " d_in"]) -> Replacement:
    """The same vector in every position."""

    def replace(x: Float[Tensor, "*position d_in"]) -> Float[Tensor, "*position d_in"]:
        return mean.to(x).expand_as(x)

    return replace


def summarize_losses(losses: DocumentLosses, name: str, resample: Resample) -> SpliceResult:
    """Losses per token and loss recovered = (ablated - spliced) / (ablated - clean), with intervals over documents; the same
    for the divergence from the clean model, whose own is 0.

    Needs the conditions `clean`, `zero`, `mean` and `name`. SAEBench's number is the one from zero (arXiv 2503.09532);
    zeros damage a model so much that almost anything recovers from them, so read the one from the mean.
    NaN (reported as undefined) where the ablation does not raise the loss.
    """
    n = len(losses.n_tokens)
    weights = resample.weights(0, n)
    tokens = weights @ losses.n_tokens.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = {key: weights @ losses.total[key] / tokens for key in ("clean", "zero", "mean", name)}
        kl = {key: weights @ losses.divergence[key] / tokens for key in ("zero", "mean", name)}
    recovered = {key: recover_share(loss["clean"], loss[name], loss[key]) for key in ("zero", "mean")}
    kl_recovered = {key: recover_share(np.zeros_like(kl[key]), kl[name], kl[key]) for key in ("zero", "mean")}
    return SpliceResult(
        clean=estimate(loss["clean"], n, "documents"),
        spliced=estimate(loss[name], n, "documents"),
        zero=estimate(loss["zero"], n, "documents"),
        mean=estimate(loss["mean"], n, "documents"),
        recovered_from_zero=estimate(recovered["zero"], n, "documents"),
        recovered_from_mean=estimate(recovered["mean"], n, "documents"),
        kl_spliced=estimate(kl[name], n, "documents"),
        kl_zero=estimate(kl["zero"], n, "documents"),
        kl_mean=estimate(kl["mean"], n, "documents"),
        kl_recovered_from_zero=estimate(kl_recovered["zero"], n, "documents"),
        kl_recovered_from_mean=estimate(kl_recovered["mean"], n, "documents"),
    )


def _sum_loss(logits: Float[Tensor, "token vocabulary"], target: Int[Tensor, "token"]) -> float:
    return float(functional.cross_entropy(logits, target, reduction="none").double().sum())


def _sum_divergence(clean: Float[Tensor, "token vocabulary"], changed: Float[Tensor, "token vocabulary"]) -> float:
    """Sum over tokens of KL(softmax(clean) || softmax(changed)); in blocks, for vocabularies are long."""
    total = 0.0
    for before, after in zip(clean.split(TOKENS_AT_ONCE), changed.split(TOKENS_AT_ONCE), strict=True):
        own, other = before.log_softmax(dim=1), after.log_softmax(dim=1)
        total += float((own.exp() * (own - other)).sum(dim=1).double().sum())
    return total
