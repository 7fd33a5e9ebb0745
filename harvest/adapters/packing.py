"""Several texts in one sequence of a decoder, none seeing another.

Position ids count from 0 in each text. Without a mask of its own, transformers takes the places where they begin again for the
ends of documents and hides those from each other (`find_packed_sequence_indices` in its `masking_utils`, in all sorts of
attention of a model: full, sliding, chunked). Models that do not do so are found by trying.
"""

import inspect
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thresher.errors import ModelError
from thresher.harvest.adapters.base import HookPoint, Inputs, Layout, Packing, TokenKind
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.passes import fill_sequences

STEP = 64
"""Sequences are a multiple of it long, or as long as asked for: odd lengths are slow on a GPU, and each is compiled anew."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Median relative error up to which an activation is the same by the type that it is computed in."""
ADVICE = "text_passes=length saves padding with any model"


def pack(inputs: Inputs, length: int, *, is_flat: bool) -> Inputs:
    """Token ids [item, position], padded on the right, as `input_ids` and `position_ids` [sequence, place].

    Sequences have at most `length` places; no text may have more tokens. Padding has position 0, a text of its own at every
    place. `is_flat` lays the sequences end to end as one.
    """
    counts = inputs.layout.valid.sum(dim=1)
    plan = fill_sequences(counts.tolist(), length)
    fullest = max((int(counts[texts].sum()) for texts in plan), default=1)
    shape = (max(1, len(plan)), min(length, -(-fullest // STEP) * STEP))
    sequence, start = torch.zeros_like(counts), torch.zeros_like(counts)
    for number, texts in enumerate(plan):
        sequence[texts] = number
        start[texts] = counts[texts].cumsum(0) - counts[texts]
    if is_flat:
        start, sequence, shape = start + sequence * shape[1], torch.zeros_like(sequence), (1, shape[0] * shape[1])
    item, position = inputs.layout.valid.nonzero(as_tuple=True)
    places = (sequence[item], start[item] + position)
    ids = torch.zeros(shape, dtype=torch.int64).index_put(places, inputs.tensors["input_ids"][item, position])
    positions = torch.zeros(shape, dtype=torch.int64).index_put(places, position)
    tensors = {"input_ids": ids, "position_ids": positions}
    return replace(inputs, tensors=tensors, packing=Packing(sequence, start, shape))


def check_packing(model: HookedModel, length: int, context: int, *, is_flat: bool) -> None:
    """Raises ModelError unless texts have the same activations packed as alone, at the model's last hook point.

    Tried with random tokens, two sequences full of texts, as one batch. A text that begins its sequence proves nothing: the
    others count.
    """
    if "position_ids" not in inspect.signature(model.model.forward).parameters or not model.hook_points:
        raise ModelError(f"text_passes=packed: this model takes no position ids, so that texts cannot be kept apart; {ADVICE}")
    points = model.resolve([model.hook_points[-1]], ["text"])
    alone = _make_texts(model, length, context)
    together = pack(alone, length, is_flat=is_flat)
    assert together.packing is not None
    is_behind = together.packing.start > 0
    kept = alone.layout.valid & is_behind[:, None]
    item, position = kept.nonzero(as_tuple=True)
    expected = _capture(model, alone, points)[item, position].float()
    found = _capture(model, together, points)[together.packing.sequence[item], together.packing.start[item] + position]
    error = ((found.float() - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)).nanmedian()
    dtype = next(model.model.parameters()).dtype
    if not error <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
        raise ModelError(
            f"text_passes=packed: texts that share a sequence change each other in this model (relative error {error:.2g} at "
            f"{points[0].name}); {ADVICE}"
        )


def _capture(model: HookedModel, inputs: Inputs, points: tuple[HookPoint, ...]) -> Float[Tensor, "item position d"]:
    with torch.inference_mode():
        return model.capture(inputs.send(model.device), points)[points[0].name].cpu()


def _make_texts(model: HookedModel, length: int, context: int) -> Inputs:
    """Texts of random tokens, none longer than the context, that fill two sequences; at least two to a sequence."""
    longest = min(max(1, length // 3), context)
    lengths = torch.tensor([longest, max(1, longest - 1)] * (length // longest))
    valid = torch.arange(longest) < lengths[:, None]
    settings: Any = model.model.config
    n_tokens = int(settings.get_text_config().vocab_size)
    ids = torch.randint(0, n_tokens, tuple(valid.shape), generator=torch.Generator().manual_seed(0))
    kind = torch.where(valid, TokenKind.TEXT, TokenKind.PADDING).to(torch.int8)
    layout = Layout(kind, None, ids, (False,) * len(valid))
    return Inputs("text", {"input_ids": ids, "attention_mask": valid.to(torch.int64)}, layout)
