"""Other libraries' matching pursuit and TopK, as modules and as training steps; needs the extra `interop`.

A step is what each library's own trainer computes: its forward and loss, backward, clipping at 1 (sparsify does not), Adam
of torch, and what keeps its decoder normalised. Logging, dead-atom counts and data loading are left out, in the peers'
favour. Read in overcomplete 0.3.0 (`train_sae`), sae-lens 6.54.12 (`SAETrainer._train_step`) and eai-sparsify 1.3.3
(`Trainer`).
"""

import contextlib
import importlib
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.cm
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

PACKAGES = {"overcomplete": "overcomplete", "saelens": "sae_lens", "sparsify": "sparsify"}
"""What each peer is imported as."""
LEARNING_RATE = 1e-3


def is_installed(peer: str) -> bool:
    """Whether `peer` can be found, without importing it."""
    return importlib.util.find_spec(PACKAGES[peer]) is not None


def import_peer(module: str) -> ModuleType:
    """Import a peer's module; what its import prints and warns about is dropped, and nothing of it stays silenced."""
    if not torch.cuda.is_available():
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _old_colour_maps():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


@contextlib.contextmanager
def _old_colour_maps() -> Iterator[None]:
    """overcomplete 0.3.0 calls `matplotlib.cm.get_cmap` at import, which matplotlib 3.9 took away."""
    if hasattr(matplotlib.cm, "get_cmap"):
        yield
        return
    matplotlib.cm.get_cmap = lambda name: mpl.colormaps[name]
    try:
        yield
    finally:
        del matplotlib.cm.get_cmap


def make_overcomplete_mp(dictionary: Tensor, k: int, **params: object) -> nn.Module:
    """overcomplete's `MpSAE` that starts from `dictionary`; `params` go to its `DictionaryLayer`."""
    d_sae, d_in = dictionary.shape
    sae = import_peer("overcomplete.sae.mp_sae").MpSAE(d_in, d_sae, k=k, dictionary_params=params)
    sae.dictionary._weights.data = dictionary.clone()
    return sae.train()


def make_overcomplete_topk(dictionary: Tensor, k: int) -> nn.Module:
    """overcomplete's `TopKSAE` with its default encoder (a linear layer and a ReLU), tied at the start."""
    d_sae, d_in = dictionary.shape
    sae = import_peer("overcomplete.sae.topk_sae").TopKSAE(d_in, d_sae, top_k=k)
    sae.dictionary._weights.data = dictionary.clone()
    linear = sae.encoder.final_block[0]
    linear.weight.data, linear.bias.data = dictionary.clone(), torch.zeros(d_sae)
    return sae.train()


def make_saelens_mp(dictionary: Tensor, k: int, *, threshold: float = 0.0, stop_on_repeat: bool = False) -> nn.Module:
    """SAELens' training SAE `matching_pursuit`; without threshold and stop it takes exactly `k` steps."""
    module = import_peer("sae_lens.saes.matching_pursuit_sae")
    settings = module.MatchingPursuitTrainingSAEConfig(
        d_in=dictionary.shape[1],
        d_sae=dictionary.shape[0],
        max_iterations=k,
        residual_threshold=threshold,
        stop_on_duplicate_support=stop_on_repeat,
        decoder_init_norm=1.0,
        dtype=str(dictionary.dtype).removeprefix("torch."),
    )
    sae = module.MatchingPursuitTrainingSAE(settings)
    sae.W_dec.data = dictionary.clone()
    return sae


def make_saelens_topk(dictionary: Tensor, k: int) -> nn.Module:
    """SAELens' training SAE `topk`, tied at the start, with its default (dense) codes."""
    module = import_peer("sae_lens.saes.topk_sae")
    settings = module.TopKTrainingSAEConfig(d_in=dictionary.shape[1], d_sae=dictionary.shape[0], k=k)
    sae = module.TopKTrainingSAE(settings)
    sae.W_dec.data, sae.W_enc.data = dictionary.clone(), dictionary.T.contiguous()
    return sae


def make_sparsify_topk(dictionary: Tensor, k: int) -> nn.Module:
    """sparsify's `SparseCoder`, tied at the start; in fp32 on a CPU (it autocasts to bf16 on CUDA)."""
    module = import_peer("sparsify")
    sae = module.SparseCoder(dictionary.shape[1], module.SparseCoderConfig(num_latents=dictionary.shape[0], k=k))
    sae.encoder.weight.data, sae.W_dec.data = dictionary.clone(), dictionary.clone()
    return sae


def compute_overcomplete_loss(sae: nn.Module, x: Tensor) -> Tensor:
    """Mean squared error; the third call of `get_dictionary` is for the criterion, as `train_sae` makes it."""
    _, _, x_hat = sae(x)
    sae.get_dictionary()
    return (x - x_hat).square().mean()


def compute_saelens_loss(sae: nn.Module, x: Tensor) -> Tensor:
    """SAELens' own loss; no neuron counts as dead, so TopK's auxiliary loss costs nothing."""
    step_input = import_peer("sae_lens.saes.sae").TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    return sae.training_forward_pass(step_input).loss


def compute_sparsify_loss(sae: nn.Module, x: Tensor) -> Tensor:
    """sparsify's own loss, fraction of variance unexplained."""
    return sae(x).fvu


def encode_overcomplete(sae: nn.Module, x: Tensor) -> Tensor:
    """Dense codes."""
    return sae.encode(x)[1]


def encode_saelens(sae: nn.Module, x: Tensor) -> Tensor:
    """Dense codes."""
    return sae.encode(x)


def encode_sparsify(sae: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices."""
    found = sae.encode(x)
    return found.top_acts, found.top_indices


def make_step(
    sae: nn.Module, compute_loss: Callable[[nn.Module, Tensor], Tensor], batches: Callable[[], Tensor]
) -> Callable[[], None]:
    """One training step with Adam; sparsify's keeps its decoder on the sphere, the others clip."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
    is_sparsify = hasattr(sae, "set_decoder_norm_to_unit_norm")

    def step() -> None:
        if is_sparsify:
            sae.set_decoder_norm_to_unit_norm()
        optimizer.zero_grad()
        compute_loss(sae, batches()).backward()
        if is_sparsify:
            sae.remove_gradient_parallel_to_decoder_directions()
        else:
            clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


class Peer(NamedTuple):
    """One module of another library."""

    name: str
    package: str
    """Key of `PACKAGES`."""
    make: Callable[[Tensor, int], nn.Module]
    """From a start dictionary and k."""
    compute_loss: Callable[[nn.Module, Tensor], Tensor]
    encode: Callable[[nn.Module, Tensor], object]


PEERS = (
    Peer("overcomplete mp", "overcomplete", make_overcomplete_mp, compute_overcomplete_loss, encode_overcomplete),
    Peer("saelens mp", "saelens", make_saelens_mp, compute_saelens_loss, encode_saelens),
    Peer("overcomplete topk", "overcomplete", make_overcomplete_topk, compute_overcomplete_loss, encode_overcomplete),
    Peer("saelens topk", "saelens", make_saelens_topk, compute_saelens_loss, encode_saelens),
    Peer("sparsify topk", "sparsify", make_sparsify_topk, compute_sparsify_loss, encode_sparsify),
)
