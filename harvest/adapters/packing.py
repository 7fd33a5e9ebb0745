"""Several texts in one sequence of a decoder, none seeing another.

Position ids count from 0 in each text. Without a mask of its own, transformers takes the places where they begin again for the
ends of documents and hides those from each other (`find_packed_sequence_indices` in its `masking_utils`, in all sorts of
attention of a model: full, sliding, chunked). Models that do not do so are found by trying.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thresher.errors import ModelError
from thresher.harvest.adapters.base import HookPoint, Inputs, Layout, Packing, TokenKind
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.passes import fill_sequences

STEP = 64
"""Sequences are a multiple of it long, or as long as asked for: odd lengths are slow on a GPU, and each is compiled anew."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Median relative error up to which an activation is the same by the type that it is computed in."""
SAME_SHAPE = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""The same between two passes that differ in other texts only: nearly all models then give the same bits."""
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


def check_packing(model: HookedModel, length: int, context: int, points: Sequence[HookPoint], *, is_flat: bool) -> None:
    """Raises ModelError unless texts have the same activations at `points` packed as alone, whatever texts stand before them.

    Tried with random tokens, two sequences full of texts, as one batch, in the precision of the surrounding autocast: against
    the texts alone, and against the same texts each between others. A text that begins its sequence proves nothing.
    """
    if "position_ids" not in inspect.signature(model.model.forward).parameters or not model.hook_points:
        raise ModelError(f"text_passes=packed: this model takes no position ids, so that texts cannot be kept apart; {ADVICE}")
    alone = _make_texts(model, length, context)
    together = pack(alone, length, is_flat=is_flat)
    assert together.packing is not None
    is_behind = alone.layout.valid & (together.packing.start > 0)[:, None]
    item, position = is_behind.nonzero(as_tuple=True)
    is_kept = _number(together.packing)[item] % 2 == 1
    places = (together.packing.sequence[item], together.packing.start[item] + position)
    changed = _change(together, (places[0][is_kept], places[1][is_kept]))
    expected = _capture(model, alone, points, (item, position))
    found, beside_others = (_capture(model, inputs, points, places) for inputs in (together, changed))
    precision = _precision(model)
    for name in expected:
        _refuse(name, _differ(found[name], expected[name]), TOLERANCE.get(precision, TOLERANCE[torch.bfloat16]))
        error = _differ(found[name][is_kept], beside_others[name][is_kept])
        _refuse(name, error, SAME_SHAPE.get(precision, SAME_SHAPE[torch.bfloat16]))


def _refuse(name: str, error: float, tolerance: float) -> None:
    if not error <= tolerance:
        raise ModelError(
            f"text_passes=packed: texts that share a sequence change each other in this model (relative error {error:.2g} at "
            f"{name}); {ADVICE}"
        )


def _differ(found: Float[Tensor, "row *_"], expected: Float[Tensor, "row *_"]) -> float:
    """Median over rows of the relative error; NaN when there is none."""
    found, expected = found.flatten(1), expected.flatten(1)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)).nanmedian())


def _precision(model: HookedModel) -> torch.dtype:
    kind = model.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return next(model.model.parameters()).dtype


def _number(packing: Packing) -> Int[Tensor, " item"]:
    """For each text, how many stand before it in its sequence."""
    is_together = packing.sequence[:, None] == packing.sequence
    return (is_together & (packing.start < packing.start[:, None])).sum(dim=1)


def _change(inputs: Inputs, kept: tuple[Tensor, Tensor]) -> Inputs:
    """The same packed inputs with other tokens everywhere but at `kept` [sequence, place]."""
    ids = inputs.tensors["input_ids"]
    return replace(inputs, tensors={**inputs.tensors, "input_ids": ids.flip(1).index_put(kept, ids[kept])})


def _capture(
    model: HookedModel, inputs: Inputs, points: Sequence[HookPoint], where: tuple[Tensor, Tensor]
) -> dict[str, Float[Tensor, "row *_"]]:
    with torch.inference_mode():
        found = model.capture(inputs.send(model.device), points)
    return {name: activation.cpu()[where].float() for name, activation in found.items()}


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
