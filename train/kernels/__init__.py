"""The inner loops of sparse coding; needs only torch. Each fast form stands beside a plain reference."""

from thresher.train.kernels.codes import Codes, count_active, densify, mark_fired, merge_repeats, pack
from thresher.train.kernels.pursuit import choose_method, pursue
from thresher.train.kernels.rule import Method, Rule, Sign
from thresher.train.kernels.sparse import sparse_decode, sparse_encode

__all__ = [
    "Codes",
    "Method",
    "Rule",
    "Sign",
    "choose_method",
    "count_active",
    "densify",
    "mark_fired",
    "merge_repeats",
    "pack",
    "pursue",
    "sparse_decode",
    "sparse_encode",
]
