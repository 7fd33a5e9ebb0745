"""Contrastive training: one optimizer step per batch of pairs."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from thresher.harvest.pretrain.model import normalize
from thresher.harvest.pretrain.pairs import Captions
from thresher.harvest.pretrain.settings import PretrainConfig

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's bound on the temperature (arXiv 2103.00020, section 2.5)."""


class Step(NamedTuple):
    """What one optimizer step did."""

    step: int
    loss: Float[Tensor, ""]
    """On the device; reading it waits."""


def fit(
    model: nn.Module, images: UInt8[Tensor, "record 3 height width"], captions: Captions, settings: PretrainConfig
) -> Iterator[Step]:
    """Train `model` in place for `settings.steps`, yielding after each; the caller logs and saves."""
    device = torch.device(settings.device)
    clip: Any = model
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = _make_optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _scale_rate(step, settings))
    model.train()
    for step, rows in enumerate(_draw_batches(len(images), settings, generator), start=1):
        ids = captions.choose(rows, generator)
        batch = shift(images[rows], settings.max_shift, generator)
        image, text, scale = clip(normalize(_send(batch, device)), _send(ids, device))
        loss = contrast(image, text, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        yield Step(step, loss.detach())


def contrast(image: Float[Tensor, "row d"], text: Float[Tensor, "row d"], scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of unit vectors (arXiv 2103.00020, figure 3)."""
    logits = scale * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def shift(
    images: UInt8[Tensor, "row 3 height width"], reach: int, generator: torch.Generator
) -> UInt8[Tensor, "row 3 height width"]:
    """Move each picture by up to `reach` pixels down and right, edges repeated."""
    if reach == 0:
        return images
    rows, _, height, width = images.shape
    moves = torch.randint(-reach, reach + 1, (2, rows, 1), generator=generator)
    y = (torch.arange(height) + moves[0]).clamp(0, height - 1)
    x = (torch.arange(width) + moves[1]).clamp(0, width - 1)
    row = torch.arange(rows)[:, None, None]
    return images.permute(0, 2, 3, 1)[row, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _draw_batches(n: int, settings: PretrainConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Record numbers of each step's batch: pass after pass in new orders, the rest of a pass dropped."""
    size, done = min(settings.batch_size, n), 0
    while True:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - size + 1, size):
            if done == settings.steps:
                return
            yield order[start : start + size]
            done += 1


def _send(batch: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)


def _make_optimizer(model: nn.Module, settings: PretrainConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6)


def _scale_rate(step: int, settings: PretrainConfig) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    left = (settings.steps - step) / max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 - math.cos(math.pi * min(max(left, 0.0), 1.0)))
