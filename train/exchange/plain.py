"""A dictionary as other libraries know it: raw activations in, atoms of unit norm, one code, no normaliser beside it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from thresher.config import to_dict
from thresher.errors import CheckpointError
from thresher.train.arch import AbsTopK, Architecture, JumpRelu, MatchingPursuit, OrthogonalPursuit, Relu, TopK, build
from thresher.train.checkpoint import TrainedSAE
from thresher.train.config import TrainConfig
from thresher.train.kernels import Sign
from thresher.train.normalize import NormalizeConfig, shape_rows

RowShape = Literal["as_is", "unit", "layer"]
"""What is done to each row alone; as in `NormalizeConfig`."""
Kind = Literal["mp", "omp", "relu", "topk", "abs_topk", "batch_topk", "jumprelu"]
"""How a code is found; `batch_topk` stands for all that trains over a batch and encodes by one threshold."""
KINDS: Mapping[str, Kind] = {
    "mp": "mp",
    "omp": "omp",
    "relu": "relu",
    "p_anneal": "relu",
    "topk": "topk",
    "msae": "topk",
    "batch_topk": "batch_topk",
    "matryoshka": "batch_topk",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
    "abs_topk": "abs_topk",
    "pca": "abs_topk",
    "dictionary_learning": "omp",
    "ksvd": "omp",
}
"""Our architectures by what they do when they encode."""
TRANSCODES = "it reads one hook point and reconstructs another, each normalised on its own"
NO_COUNTERPART: Mapping[str, str] = {
    "spade": "its codes are the weights of a sparsemax, which sum to 1",
    "kds": "its codes take iterations over all atoms",
    "kmeans": "its codes come from distances to centroids",
    "ica": "its values are fitted to the chosen components together",
    "nmf": "its codes take iterations over all atoms",
    "semi_nmf": "its codes take iterations over all atoms",
    "crosscoder": "it reads several hook points at once, each normalised on its own",
    "batch_topk_crosscoder": "it reads several hook points at once, each normalised on its own",
    "transcoder": TRANSCODES,
    "relu_transcoder": TRANSCODES,
    "batch_topk_transcoder": TRANSCODES,
    "jumprelu_transcoder": TRANSCODES,
}
"""Our architectures that no other format has a place for, and why."""
UNIT_TOLERANCE = 1e-5
"""How far from 1 the norm of an atom may be that counts as a unit vector."""


@dataclass(frozen=True, eq=False)
class Plain:
    """One dictionary for the raw activations of one hook point, tensors in float32 on the CPU. Raises CheckpointError where
    shapes, which come from files of others, do not fit.

    A linear encoder gives encoder (x - bias) + encoder_bias. Values are lengths along atoms of unit norm in the units of x.
    """

    kind: Kind
    dictionary: Tensor
    """[d_sae, d_in]: atoms of unit norm."""
    bias: Tensor
    """[d_in]: subtracted from a row before, added to the reconstruction after."""
    encoder: Tensor | None = None
    """[d_sae, d_in]; None where the dictionary itself encodes."""
    encoder_bias: Tensor | None = None
    """[d_sae]."""
    threshold: Tensor | None = None
    """[d_sae]: an output is active above it."""
    weights: Tensor | None = None
    """[d_sae], `topk`: outputs are divided by them before they are compared; norms that the atoms had."""
    k: int | float | None = None
    """Steps, atoms per row, or (`batch_topk`) atoms per row on average in training."""
    sign: Sign = "relu"
    residual_tol: float | None = None
    rows: RowShape = "as_is"
    """Rows are divided by their norms first (`layer`: less their own means), reconstructions are rows of unit norm."""
    code_scale: float = 1.0
    """Our codes are this times the codes described here."""
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where it comes from, as plain values."""

    def __post_init__(self) -> None:
        whole = tuple(self.dictionary.shape)
        shapes = {"dictionary": whole if len(whole) == 2 else (-1, -1), "bias": whole[1:], "encoder": whole}
        shapes |= dict.fromkeys(("encoder_bias", "threshold", "weights"), whole[:1])
        for name, shape in shapes.items():
            value: Tensor | None = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise CheckpointError(
                    f"{name} {list(value.shape)} beside a dictionary {list(self.dictionary.shape)}: expected [atom, width] "
                    "for the dictionary, and everything else to fit; the file is not what its settings say, or not a dictionary"
                )
        if self.kind in ("topk", "abs_topk") and self.k is not None and not 0 < self.k <= self.d_sae:
            raise CheckpointError(f"k={self.k} atoms per row of {self.d_sae}: expected a number from 1 to {self.d_sae}")

    @property
    def is_unit(self) -> bool:
        """Whether rows are brought to unit norm first."""
        return self.rows != "as_is"

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        return self.dictionary.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of atoms."""
        return self.dictionary.shape[0]

    def count_per_row(self) -> int:
        """`k` as a whole number. Raises CheckpointError where there is none."""
        if self.k is None:
            raise CheckpointError(f"{self.kind}: the dictionary has no number of atoms per row")
        return max(round(self.k), 1)

    def linear(self) -> tuple[Tensor, Tensor]:
        """The encoder and its bias. Raises CheckpointError where the dictionary itself encodes."""
        if self.encoder is None or self.encoder_bias is None:
            raise CheckpointError(f"{self.kind}: the dictionary has no linear encoder")
        return self.encoder, self.encoder_bias

    def thresholds(self) -> Tensor:
        """The thresholds, 0 where there are none."""
        return torch.zeros(self.d_sae) if self.threshold is None else self.threshold


@torch.no_grad()
def fold(trained: TrainedSAE, hook_point: str | None = None) -> Plain:
    """A trained dictionary with the normaliser of a hook point folded in; codes are ours divided by the normaliser's scale.

    With y = (x - m) s, an encoder E (y - b) + e is s (E (x - m - b/s) + e/s), and a pursuit scales with its input.
    Raises CheckpointError: no such hook point, none given where hook points differ, an architecture without counterpart.
    """
    own = trained.config.sae.kind
    if own in NO_COUNTERPART:
        raise CheckpointError(f"{own}: {NO_COUNTERPART[own]}; no other library has the like. What would be lost: its codes")
    kind, group = KINDS[own], _find_group(trained, hook_point)
    state = {name: value.detach().cpu().double() for name, value in _state(trained).items()}
    scale = float(trained.normalizer.scale[group])
    if own == "pca":
        state |= {"encoder": state["dictionary"], "encoder_bias": torch.zeros(trained.sae.d_sae, dtype=torch.float64)}
    if own == "gated":
        names = ("encoder", "encoder_bias", "log_gain", "magnitude_bias")
        state |= zip(("encoder", "encoder_bias", "threshold"), join_gate(*(state[name] for name in names)), strict=True)
    settings = trained.config.sae
    return Plain(
        kind=kind,
        dictionary=state["dictionary"].float(),
        bias=(trained.normalizer.mean[group].cpu().double() + state["bias"] / scale).float(),
        encoder=state["encoder"].float() if "encoder" in state else None,
        encoder_bias=(state["encoder_bias"] / scale).float() if "encoder_bias" in state else None,
        threshold=_fold_threshold(kind, state, scale, trained.sae.d_sae),
        weights=state["weights"].float() if "weights" in state else None,
        k=getattr(settings, "k", None),
        sign="abs" if own in ("dictionary_learning", "ksvd") else getattr(settings, "sign", "relu"),
        residual_tol=getattr(settings, "residual_tol", None),
        rows=trained.config.normalize.rows,
        code_scale=scale,
        origin={
            "architecture": to_dict(settings),
            "hook_point": trained.hook_points[group],
            "normalize": to_dict(trained.config.normalize),
            "store": {"fingerprint": trained.store_fingerprint, "identity": dict(trained.store_identity)},
            "evaluation": dict(trained.evaluation),
            "seed": trained.config.seed,
        },
    )


def join_gate(encoder: Tensor, gate_bias: Tensor, log_gain: Tensor, magnitude_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder, bias and thresholds of the JumpReLU that a gated encoder is (arXiv 2404.16014, section 3.2).

    The gate W x + g > 0 opens where the magnitude exp(r) W x + m exceeds m - exp(r) g.
    """
    gain = log_gain.exp()
    return encoder * gain[:, None], magnitude_bias, (magnitude_bias - gain * gate_bias).clamp_min(0)


def _fold_threshold(kind: Kind, state: Mapping[str, Tensor], scale: float, d_sae: int) -> Tensor | None:
    if kind == "jumprelu":
        threshold = state["threshold"] if "threshold" in state else state["log_threshold"].exp()
        return (threshold / scale).float()
    if kind == "batch_topk":
        # Ours is active at the threshold, the others' only above it.
        lowest = torch.nextafter((state["threshold"] / scale).float(), torch.tensor(-torch.inf)).clamp_min(0)
        return lowest.expand(d_sae).clone()
    return None


@torch.no_grad()
def unfold(plain: Plain, out: Path, hook_points: Sequence[str], *, store: Path, fingerprint: str) -> TrainedSAE:
    """A checkpoint of ours that gives the codes of `plain` times its `code_scale`; nothing in it has been trained by us."""
    normalize = NormalizeConfig(rows=plain.rows, center="none", scale="none")
    config = TrainConfig(
        store=store,
        hook_points=tuple(hook_points),
        sae=_choose_architecture(plain),
        out=out,
        normalize=normalize,
    )
    sae = build(config.sae, plain.d_in, config.seed)
    scale, module, places = plain.code_scale, cast(nn.Module, sae), len(hook_points)
    values = {"dictionary": plain.dictionary, "bias": plain.bias * scale}
    if plain.encoder is not None and plain.encoder_bias is not None:
        values |= {"encoder": plain.encoder, "encoder_bias": plain.encoder_bias * scale}
    if plain.weights is not None:
        values["weights"] = plain.weights
    if "log_threshold" in module.state_dict():
        values["log_threshold"] = (plain.thresholds() * scale).log()
    module.load_state_dict(module.state_dict() | values)
    return TrainedSAE(
        sae=sae,
        normalizer=shape_rows(normalize)._replace(mean=torch.zeros(places, plain.d_in), scale=torch.full((places,), scale)),
        config=config,
        store_fingerprint=fingerprint,
        store_identity={"imported": dict(plain.origin)},
        evaluation={},
        iteration=0,
        is_finished=True,
    )


def rescale(plain: Plain, factor: float) -> Plain:
    """The same for rows that are `factor` times as long: its codes grow by `factor`, ours stay."""
    return dataclasses.replace(
        plain,
        bias=plain.bias * factor,
        encoder_bias=None if plain.encoder_bias is None else plain.encoder_bias * factor,
        threshold=None if plain.threshold is None else plain.threshold * factor,
        code_scale=plain.code_scale / factor,
    )


def bring_to_unit_norm(plain: Plain) -> tuple[Plain, float]:
    """The same reconstruction from atoms of unit norm, and the largest relative difference between the norms it had.

    The codes become lengths: encoder, its bias and the thresholds are multiplied by the norms. What an activation function
    keeps stays the same, by `weights` where atoms are compared with each other (`topk`); not for `abs_topk` and pursuits.
    """
    norms = torch.linalg.vector_norm(plain.dictionary.double(), dim=1)
    if bool(((norms - 1).abs() <= UNIT_TOLERANCE).all()):
        return plain, 0.0
    spread = float(norms.max() / norms.min().clamp_min(1e-30) - 1)
    encoder, encoder_bias = plain.encoder, plain.encoder_bias
    unit = dataclasses.replace(
        plain,
        dictionary=(plain.dictionary.double() / norms.clamp_min(1e-30)[:, None]).float(),
        encoder=None if encoder is None else (encoder.double() * norms[:, None]).float(),
        encoder_bias=None if encoder_bias is None else (encoder_bias.double() * norms).float(),
        threshold=None if plain.threshold is None else (plain.threshold.double() * norms).float(),
        weights=norms.clamp_min(1e-30).float() if plain.kind == "topk" and spread > UNIT_TOLERANCE else plain.weights,
    )
    return unit, spread


def _find_group(trained: TrainedSAE, hook_point: str | None) -> int:
    names, normalizer = trained.hook_points, trained.normalizer
    if hook_point is not None:
        if hook_point not in names:
            raise CheckpointError(f"{hook_point}: the dictionary was fitted to {', '.join(names)}; choose one of these")
        return names.index(hook_point)
    is_one = bool((normalizer.mean == normalizer.mean[:1]).all()) and bool((normalizer.scale == normalizer.scale[0]).all())
    if len(names) > 1 and not is_one:
        raise CheckpointError(
            f"the dictionary normalises {', '.join(names)} each in its own way, other formats know one way: say for which of "
            "them with --hook-point"
        )
    return 0


def _state(trained: TrainedSAE) -> dict[str, Tensor]:
    """Tensors of the module; what is no floating-point tensor (counters) is of no use elsewhere."""
    state = cast(nn.Module, trained.sae).state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}


def _choose_architecture(plain: Plain) -> Architecture:
    """What encodes like `plain`: a threshold of any origin is that of a JumpReLU."""
    if plain.kind in ("mp", "omp"):
        cls = MatchingPursuit if plain.kind == "mp" else OrthogonalPursuit
        return cls(d_sae=plain.d_sae, k=plain.count_per_row(), sign=plain.sign, residual_tol=plain.residual_tol)
    if plain.kind == "topk":
        return TopK(d_sae=plain.d_sae, k=plain.count_per_row(), weighted=plain.weights is not None)
    if plain.kind == "abs_topk":
        return AbsTopK(d_sae=plain.d_sae, k=plain.count_per_row())
    return Relu(d_sae=plain.d_sae) if plain.kind == "relu" else JumpRelu(d_sae=plain.d_sae)
