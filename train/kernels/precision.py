"""Arithmetic in the type that the numbers have, whatever the caller has set for whole models."""

from contextlib import AbstractContextManager, nullcontext

import torch


def keep_types(device: torch.device) -> AbstractContextManager[object]:
    """Inside, `torch.autocast` is off: it would take products of residuals and atoms in half precision."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
