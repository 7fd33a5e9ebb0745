"""The laws of spliced losses, on a language model small enough to be written out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from thresher.analyze.metrics.resample import Resample
from thresher.analyze.splice import ablate_to, ablate_to_zero, from_position, measure_losses, summarize_losses

VOCABULARY = "ab c"


class BigramModel:
    """Predicts the next character from the last one: one-hot activations at the hook point `text.0`, then a linear map."""

    def __init__(self) -> None:
        self.head = torch.randn(len(VOCABULARY), len(VOCABULARY), generator=torch.Generator().manual_seed(0)) * 2
        self._function: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def splice(self, hook_point: str, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
        assert hook_point == "text.0"
        self._function = function
        yield
        self._function = None

    def predict_next(self, text: str) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([VOCABULARY.index(letter) for letter in text])
        x = functional.one_hot(ids, len(VOCABULARY)).float()[None]
        x = self._function(x) if self._function else x
        return (x @ self.head)[0][:-1], ids[1:]


def sample_texts(n: int = 30) -> list[str]:
    """Texts drawn from the model itself, so that it predicts them better than anything else does."""
    model, generator = BigramModel(), torch.Generator().manual_seed(1)
    texts = []
    for length in range(2, n + 2):
        ids = [0]
        for _ in range(length):
            ids.append(int(torch.multinomial(model.head[ids[-1]].softmax(0), 1, generator=generator)))
        texts.append("".join(VOCABULARY[i] for i in ids))
    return texts


def measure(replace: Callable[[Tensor], Tensor], first_position: int = 0):
    replacements = {"zero": ablate_to_zero, "mean": ablate_to(torch.full((4,), 0.25)), "sae": replace}
    losses = measure_losses(BigramModel(), "text.0", sample_texts(), replacements, first_position, lambda n: None)
    return losses, summarize_losses(losses, "sae", Resample(50, 0))


def test_a_perfect_reconstruction_recovers_all_of_the_loss() -> None:
    _, found = measure(lambda x: x)
    assert found.spliced == found.clean
    assert found.recovered_from_zero.value == 1
    assert found.recovered_from_mean.value == 1
    assert found.kl_spliced.value == 0 < found.kl_mean.value
    assert found.kl_recovered_from_zero.value == found.kl_recovered_from_mean.value == 1
    assert found.clean.n == 30


def test_reconstructing_zeros_recovers_nothing_from_zero_and_the_mean_nothing_from_the_mean() -> None:
    _, zeros = measure(ablate_to_zero)
    _, means = measure(ablate_to(torch.full((4,), 0.25)))
    assert zeros.recovered_from_zero.value == 0
    assert means.recovered_from_mean.value == 0
    assert means.spliced == means.mean
    assert zeros.kl_recovered_from_zero.value == means.kl_recovered_from_mean.value == 0


def test_the_divergence_is_that_of_the_next_token_distributions() -> None:
    losses, found = measure(ablate_to_zero)
    model, expected = BigramModel(), 0.0
    for text in sample_texts():
        own = model.predict_next(text)[0].double().softmax(1)
        # Without an activation all letters are equally likely.
        expected += float((own * (own * len(VOCABULARY)).log()).sum())
    assert found.kl_zero.value == pytest.approx(expected / losses.n_tokens.sum(), rel=1e-5)
    assert found.kl_spliced == found.kl_zero


def test_the_loss_is_the_mean_over_tokens_not_over_documents() -> None:
    losses, found = measure(lambda x: x)
    assert found.clean.value == pytest.approx(losses.total["clean"].sum() / losses.n_tokens.sum())
    assert found.clean.low is not None
    assert found.clean.high is not None
    assert found.clean.low < found.clean.value < found.clean.high


def test_positions_that_were_not_harvested_keep_their_activations() -> None:
    x = torch.arange(12.0).reshape(1, 3, 4)
    replaced = from_position(1, ablate_to_zero)(x)
    torch.testing.assert_close(replaced[:, :1], x[:, :1])
    assert not replaced[:, 1:].any()


def test_documents_without_a_token_to_predict_are_left_out() -> None:
    losses = measure_losses(BigramModel(), "text.0", ["a", "ab", "a"], {}, 0, lambda n: None)
    assert losses.n_tokens.tolist() == [1]


def test_what_is_spliced_in_keeps_the_precision_of_the_model() -> None:
    seen = []

    def replace(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x

    assert from_position(0, replace)(torch.ones(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert seen == [torch.float32]


def test_an_ablation_that_does_no_damage_has_no_loss_recovered() -> None:
    losses, _ = measure(lambda x: x)
    same = losses._replace(total=losses.total | {"zero": losses.total["clean"]})
    assert summarize_losses(same, "sae", Resample(20, 0)).recovered_from_zero.value is None
    assert np.isfinite(losses.total["zero"]).all()
