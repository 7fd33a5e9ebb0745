"""Sparse codes: which atoms with which coefficients."""

from thresher.train.kernels.codes import Codes, count_active, densify, mark_fired, merge_repeats, pack

__all__ = ["Codes", "count_active", "densify", "mark_fired", "merge_repeats", "pack"]
