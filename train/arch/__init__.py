"""The architectures: one file each, with its config and its module. The union is the registry."""

from typing import Annotated

import pydantic
import torch

from thresher.train.arch.abs_topk import AbsTopK, AbsTopKSAE
from thresher.train.arch.batch_topk import BatchTopK, BatchTopKSAE
from thresher.train.arch.crosscoder import BatchTopKCrosscoder, BatchTopKCrosscoderSAE, Crosscoder, CrosscoderSAE
from thresher.train.arch.gated import Gated, GatedSAE
from thresher.train.arch.jumprelu import JumpRelu, JumpReluSAE
from thresher.train.arch.kds import DistanceWeighted, DistanceWeightedSAE
from thresher.train.arch.matryoshka import Matryoshka, MatryoshkaSAE
from thresher.train.arch.mp import MatchingPursuit, MatchingPursuitSAE
from thresher.train.arch.msae import NestedTopK, NestedTopKSAE
from thresher.train.arch.omp import OrthogonalPursuit, OrthogonalPursuitSAE
from thresher.train.arch.p_anneal import PAnneal, PAnnealSAE
from thresher.train.arch.relu import Relu, ReluSAE
from thresher.train.arch.spade import Spade, SpadeSAE
from thresher.train.arch.topk import TopK, TopKSAE
from thresher.train.arch.transcoder import (
    BatchTopKTranscoder,
    BatchTopKTranscoderSAE,
    JumpReluTranscoder,
    JumpReluTranscoderSAE,
    ReluTranscoder,
    ReluTranscoderSAE,
    Transcoder,
    TranscoderSAE,
)
from thresher.train.classical import ICA, KSVD, NMF, PCA, KMeans, OnlineDictionary, SemiNMF, build_classical
from thresher.train.protocol import SAE

Architecture = Annotated[
    MatchingPursuit
    | OrthogonalPursuit
    | Relu
    | TopK
    | BatchTopK
    | JumpRelu
    | Matryoshka
    | Gated
    | AbsTopK
    | PAnneal
    | NestedTopK
    | Spade
    | DistanceWeighted
    | Crosscoder
    | BatchTopKCrosscoder
    | Transcoder
    | ReluTranscoder
    | BatchTopKTranscoder
    | JumpReluTranscoder
    | KMeans
    | PCA
    | ICA
    | NMF
    | SemiNMF
    | OnlineDictionary
    | KSVD,
    pydantic.Field(discriminator="kind"),
]
"""Config of any architecture; its `kind` says which."""


def build(config: Architecture, d_in: int, seed: int) -> SAE:
    """The untrained module of `config` for activations of width `d_in`; equal seeds give equal parameters."""
    generator = torch.Generator().manual_seed(seed)
    match config:
        case MatchingPursuit():
            return MatchingPursuitSAE(config, d_in, generator)
        case OrthogonalPursuit():
            return OrthogonalPursuitSAE(config, d_in, generator)
        case Relu():
            return ReluSAE(config, d_in, generator)
        case TopK():
            return TopKSAE(config, d_in, generator)
        case BatchTopK():
            return BatchTopKSAE(config, d_in, generator)
        case JumpRelu():
            return JumpReluSAE(config, d_in, generator)
        case Matryoshka():
            return MatryoshkaSAE(config, d_in, generator)
        case Gated():
            return GatedSAE(config, d_in, generator)
        case AbsTopK():
            return AbsTopKSAE(config, d_in, generator)
        case PAnneal():
            return PAnnealSAE(config, d_in, generator)
        case NestedTopK():
            return NestedTopKSAE(config, d_in, generator)
        case Spade():
            return SpadeSAE(config, d_in, generator)
        case DistanceWeighted():
            return DistanceWeightedSAE(config, d_in, generator)
        case Crosscoder():
            return CrosscoderSAE(config, d_in, generator)
        case BatchTopKCrosscoder():
            return BatchTopKCrosscoderSAE(config, d_in, generator)
        case Transcoder():
            return TranscoderSAE(config, generator)
        case ReluTranscoder():
            return ReluTranscoderSAE(config, generator)
        case BatchTopKTranscoder():
            return BatchTopKTranscoderSAE(config, generator)
        case JumpReluTranscoder():
            return JumpReluTranscoderSAE(config, generator)
        case _:
            return build_classical(config, d_in, generator)


__all__ = [
    "ICA",
    "KSVD",
    "NMF",
    "PCA",
    "AbsTopK",
    "Architecture",
    "BatchTopK",
    "BatchTopKCrosscoder",
    "BatchTopKTranscoder",
    "Crosscoder",
    "DistanceWeighted",
    "Gated",
    "JumpRelu",
    "JumpReluTranscoder",
    "KMeans",
    "MatchingPursuit",
    "Matryoshka",
    "NestedTopK",
    "OnlineDictionary",
    "OrthogonalPursuit",
    "PAnneal",
    "Relu",
    "ReluTranscoder",
    "SemiNMF",
    "Spade",
    "TopK",
    "Transcoder",
    "build",
]
