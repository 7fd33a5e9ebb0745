"""Matching pursuit on the CPU in loops that numba compiles when they are first called."""

from thresher.train.kernels.native.backward import step_back
from thresher.train.kernels.native.forward import prepare_certified, prepare_gram, pursue_certified, pursue_gram, run_certified

__all__ = ["prepare_certified", "prepare_gram", "pursue_certified", "pursue_gram", "run_certified", "step_back"]
