"""Classical dictionaries on the interface of the sparse autoencoders: fitted once, to rows in memory, without gradients."""

import torch

from thresher.train.classical.base import FittedSAE
from thresher.train.classical.factors import NMF, NMFSAE, SemiNMF, SemiNMFSAE
from thresher.train.classical.kmeans import KMeans, KMeansSAE
from thresher.train.classical.linear import ICA, ICASAE, PCA, PCASAE
from thresher.train.classical.pursuit import KSVD, KSVDSAE, OnlineDictionary, OnlineDictionarySAE

Classical = KMeans | PCA | ICA | NMF | SemiNMF | OnlineDictionary | KSVD
"""Config of any of them."""


def build_classical(config: Classical, d_in: int, generator: torch.Generator) -> FittedSAE:
    """The module of `config` before its fit."""
    match config:
        case KMeans():
            return KMeansSAE(config, d_in, generator)
        case PCA():
            return PCASAE(config, d_in, generator)
        case ICA():
            return ICASAE(config, d_in, generator)
        case NMF():
            return NMFSAE(config, d_in, generator)
        case SemiNMF():
            return SemiNMFSAE(config, d_in, generator)
        case OnlineDictionary():
            return OnlineDictionarySAE(config, d_in, generator)
        case KSVD():
            return KSVDSAE(config, d_in, generator)


__all__ = [
    "ICA",
    "KSVD",
    "NMF",
    "PCA",
    "Classical",
    "FittedSAE",
    "KMeans",
    "OnlineDictionary",
    "SemiNMF",
    "build_classical",
]
