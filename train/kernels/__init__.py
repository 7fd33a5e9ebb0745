"""The inner loops of sparse coding; needs only torch. Each fast form stands beside a plain reference."""

from thresher.train.kernels.choose import choose_method
from thresher.train.kernels.codes import Codes, count_active, densify, mark_fired, merge_repeats, pack
from thresher.train.kernels.engines import has_numba, prepare
from thresher.train.kernels.nested import Nested, find_smallest_k, pursue_nested
from thresher.train.kernels.orthogonal import orthogonal_pursue
from thresher.train.kernels.prepared import Prepared
from thresher.train.kernels.pursuit import choose_installed, pursue
from thresher.train.kernels.rule import Method, Rule, Sign
from thresher.train.kernels.sparse import sparse_decode, sparse_encode

__all__ = [
    "Codes",
    "Method",
    "Nested",
    "Prepared",
    "Rule",
    "Sign",
    "choose_installed",
    "choose_method",
    "count_active",
    "densify",
    "find_smallest_k",
    "has_numba",
    "mark_fired",
    "merge_repeats",
    "orthogonal_pursue",
    "pack",
    "prepare",
    "pursue",
    "pursue_nested",
    "sparse_decode",
    "sparse_encode",
]
