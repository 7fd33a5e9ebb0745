"""SAEBench custom SAEs (sae-bench 0.6.0, `custom_saes/base_sae.py`): an object to put into `selected_saes`, and its folder.

SAEBench has no format on disk. The folder holds the object's tensors and settings; `load_saebench` makes it again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.errors import CheckpointError
from thresher.train.checkpoint import TrainedSAE
from thresher.train.exchange.files import (
    Names,
    Reading,
    read_json,
    read_tensors,
    take,
    write_json,
    write_note,
    write_tensors,
)
from thresher.train.exchange.plain import Plain, fold, unfold
from thresher.train.kernels import densify

CONFIG, WEIGHTS = "saebench.json", "saebench.safetensors"
SETTINGS = ("kind", "k", "sign", "residual_tol", "code_scale")
OPTIONAL = ("encoder", "encoder_bias", "threshold")


@dataclass
class CustomSAEConfig:
    """The fields that SAEBench reads and, while it evaluates, writes."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int | None = None
    hook_head_index: int | None = None
    architecture: str = ""
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, without what SAEBench attaches."""
        return asdict(self)


class SAEBenchSAE(nn.Module):
    """A dictionary of any of our architectures as SAEBench's evaluations use it: raw activations of any leading shape in,
    dense codes out, decoder rows of unit norm. It computes in float32 and answers in `dtype`."""

    def __init__(self, plain: Plain, names: Names, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """Wrap a dictionary. Raises CheckpointError: rows of unit norm, a hook name without a layer."""
        super().__init__()
        if plain.is_unit:
            raise CheckpointError("rows are brought to unit norm first, which SAEBench's decode cannot undo")
        if names.layer is None:
            raise CheckpointError(
                f"hook {names.hook!r}: no layer in this name; SAEBench needs one, as blocks.3.hook_resid_post"
            )
        trained = unfold(plain, Path("saebench"), [names.hook], store=Path("saebench"), fingerprint="")
        self.coder = cast(nn.Module, trained.sae)
        self._trained, self._scale = trained, plain.code_scale
        self.device, self.dtype = torch.device(device), dtype
        self.cfg = CustomSAEConfig(
            model_name=names.model,
            d_in=plain.d_in,
            d_sae=plain.d_sae,
            hook_layer=names.layer,
            hook_name=names.hook,
            architecture=plain.kind,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
        )
        self.to(device=device, dtype=dtype)

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:  # noqa: N802 - SAEBench's name
        """Atoms of unit norm."""
        return self._trained.sae.dictionary.detach().to(self.dtype)

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802 - SAEBench's name
        """The linear encoder; of a pursuit the atoms themselves."""
        encoder = getattr(self.coder, "encoder", self._trained.sae.dictionary)
        return encoder.detach().T.to(self.dtype)

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        """The encoder's bias; zeros for a pursuit."""
        bias = getattr(self.coder, "encoder_bias", None)
        found = torch.zeros(self.cfg.d_sae, device=self.device) if bias is None else bias.detach() / self._scale
        return found.to(self.dtype)

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """Subtracted before, added after."""
        return (cast(Tensor, self.coder.bias).detach() / self._scale).to(self.dtype)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*position d_in"]) -> Float[Tensor, "*position d_sae"]:
        """Dense codes of raw activations."""
        rows = x.reshape(-1, x.shape[-1]).to(self.device, torch.float32) * self._scale
        dense = densify(self._trained.sae.encode(rows), self.cfg.d_sae) / self._scale
        return dense.to(self.dtype).reshape(*x.shape[:-1], self.cfg.d_sae)

    @torch.no_grad()
    def decode(self, feature_acts: Float[Tensor, "*position d_sae"]) -> Float[Tensor, "*position d_in"]:
        """The activations that dense codes stand for."""
        return feature_acts.to(self.dtype) @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*position d_in"]) -> Float[Tensor, "*position d_in"]:
        """The reconstruction."""
        return self.decode(self.encode(x))

    def to(self, *args: Any, **kwargs: Any) -> "SAEBenchSAE":
        """Move it; a dtype changes what it answers in, never what it computes in."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        if device is not None:
            self.device = torch.device(device)
            self.coder.to(self.device)
        if dtype is not None:
            self.dtype = dtype
            self.cfg.dtype = str(dtype).removeprefix("torch.")
        return self

    def check_decoder_norms(self) -> bool:
        """Whether all atoms have unit norm, to 1e-5 (1e-2 in half precision)."""
        norms = torch.linalg.vector_norm(self.W_dec.float(), dim=1)
        return bool(((norms - 1).abs() <= (1e-5 if self.dtype == torch.float32 else 1e-2)).all())


def make_saebench(trained: TrainedSAE, model_name: str, hook_name: str, hook_point: str | None = None) -> SAEBenchSAE:
    """The object of a dictionary of ours; SAEBench knows the hook point as `hook_name`. Raises CheckpointError."""
    return SAEBenchSAE(fold(trained, hook_point), Names(model_name, hook_name))


def load_saebench(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> SAEBenchSAE:
    """The object of an exported folder. Raises CheckpointError."""
    folder = Path(folder)
    config = read_json(folder / CONFIG)["cfg"]
    return SAEBenchSAE(read(folder).plain, Names(config["model_name"], config["hook_name"]), device=device, dtype=dtype)


def find_losses(plain: Plain) -> list[str]:
    """What SAEBench cannot measure."""
    if plain.is_unit:
        raise CheckpointError("rows are brought to unit norm first, which SAEBench's decode cannot undo")
    is_signed = plain.kind in ("omp", "abs_topk") or (plain.kind == "mp" and plain.sign != "relu")
    return ["SAEBench counts codes above 0: atoms with negative coefficients would not count as active"] if is_signed else []


def write(plain: Plain, folder: Path, names: Names, lost: Sequence[str]) -> None:
    """Write tensors and settings. Raises CheckpointError where SAEBench could not use the object."""
    sae = SAEBenchSAE(plain, names)
    tensors = {"dictionary": plain.dictionary, "bias": plain.bias}
    tensors |= {name: value for name in OPTIONAL if (value := getattr(plain, name)) is not None}
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, {"cfg": sae.cfg.to_dict(), "plain": {name: getattr(plain, name) for name in SETTINGS}})
    write_note(folder, plain, lost)


def read(folder: Path) -> Reading:
    """Read an exported folder. Raises CheckpointError."""
    config, tensors = read_json(folder / CONFIG), read_tensors(folder / WEIGHTS)
    dictionary, bias = take(tensors, ["dictionary", "bias"], folder / WEIGHTS)
    settings = {name: config["plain"][name] for name in SETTINGS}
    optional = {name: tensors.get(name) for name in OPTIONAL}
    arguments: dict[str, Any] = settings | optional | {"origin": {"format": "saebench", "cfg": config["cfg"]}}
    return Reading(Plain(dictionary=dictionary, bias=bias, **arguments), [])
