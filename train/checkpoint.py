"""Trained dictionaries on disk: `config.json` and `model.safetensors`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from thresher.config import to_dict, validate
from thresher.data.aligned import JOINT
from thresher.errors import CheckpointError
from thresher.files import write_atomic
from thresher.runs import canonical_json
from thresher.train.aligned import AlignedSAE
from thresher.train.arch import build
from thresher.train.codes import Codes
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer
from thresher.train.protocol import SAE

FORMAT = "thresher-sae"
VERSION = 1
CONFIG = "config.json"
MODEL = "model.safetensors"


@dataclass(frozen=True)
class TrainedSAE:
    """A dictionary with all that is needed to apply it to raw activations."""

    sae: SAE
    normalizer: Normalizer
    config: TrainConfig
    """The training run; `config.sae` is the architecture, `config.stream.holdout` and `config.seed` the held-out split."""
    store_fingerprint: str
    store_identity: Mapping[str, Any]
    """What was harvested into the store: model, source, hook points."""
    evaluation: Mapping[str, Any]
    """Last evaluation on held-out rows: the fields of `Evaluation`, pooled, and by hook point under `hook_points`;
    where codes nest also `by_k`: R2 and L0 at other numbers of steps (`AtK`)."""
    iteration: int
    """Iterations done."""
    is_finished: bool
    """Whether the run reached its end."""
    store_parts: tuple[str, ...] = ()
    """Fingerprints of the stores, where it was trained on several; `store_fingerprint` then is that of all together."""

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Hook points that it was fitted to."""
        return self.config.hook_points

    def is_trained_on(self, fingerprint: str) -> bool:
        """Whether this store is the one, or one of those, that it was trained on: its held-out items are then known."""
        return fingerprint == self.store_fingerprint or fingerprint in self.store_parts

    def place_at(self, hook_points: Sequence[str]) -> "TrainedSAE":
        """The same dictionary for other hook points of its width, each normalised like the one that it was fitted to.

        Raises CheckpointError for a dictionary of several hook points: which one stands for which is not known.
        """
        if set(hook_points) <= set(self.hook_points):
            return self
        if len(self.hook_points) != 1 or isinstance(self.sae, AlignedSAE):
            raise CheckpointError(
                f"{', '.join(hook_points)}: the dictionary was fitted to {', '.join(self.hook_points)}; only one of a single "
                "hook point can be applied elsewhere"
            )
        n = len(hook_points)
        normalizer = self.normalizer._replace(mean=self.normalizer.mean.repeat(n, 1), scale=self.normalizer.scale.repeat(n))
        config = replace(self.config, hook_points=tuple(hook_points))
        return replace(self, normalizer=normalizer, config=config)

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        return self.sae.d_in

    @property
    def is_imported(self) -> bool:
        """Whether it comes from another library. (Stores that were imported say `imported` of themselves too.)"""
        return "imported" in self.store_identity and "lost" in self.store_identity

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"], hook_point: str, k: int | None = None) -> Codes:
        """Codes of raw activations of a hook point, computed in float32 on the dictionary's device.

        A crosscoder's are those of the rows of all its hook points side by side, called by their names with `+` between them.
        """
        return self.sae.encode(self._normalize(x, hook_point), k)

    @torch.no_grad()
    def decode(self, codes: Codes, hook_point: str) -> Float[Tensor, "row d_in"]:
        """Raw activations that the codes stand for (unit-norm ones if the normaliser brings rows to unit norm).

        Of a crosscoder any of its hook points, or all side by side; of a transcoder those of its target, without what a skip
        connection adds.
        """
        return self._invert(self.sae.decode(codes), hook_point)

    @torch.no_grad()
    def transcode(self, x: Float[Tensor, "row d_in"], hook_point: str) -> Float[Tensor, "row d_out"]:
        """All that a transcoder makes of raw activations of its input for its target, or a crosscoder of all its hook points.

        Raises CheckpointError for other dictionaries.
        """
        if not isinstance(self.sae, AlignedSAE):
            raise CheckpointError(f"{self.config.sae.kind}: no hook points side by side; decode what `encode` gives")
        names = JOINT.join(self.hook_points[index] for index in self.sae.decoded)
        return self._invert(self.sae.transcode(self._normalize(x, hook_point))[1], names)

    def _normalize(self, x: Tensor, hook_point: str) -> Tensor:
        if isinstance(self.sae, AlignedSAE):
            names = JOINT.join(self.hook_points[index] for index in self.sae.encoded)
            if hook_point != names:
                raise CheckpointError(f"{hook_point}: its codes are those of {names}")
            group, normalizer = 0, self.normalizer.select(self.sae.encoded)
        else:
            group, normalizer = self._index(hook_point), self.normalizer
        if x.shape[1] != self.d_in:
            raise CheckpointError(f"{hook_point}: rows of width {x.shape[1]} for a dictionary of width {self.d_in}")
        return normalizer.normalize(x.to(self.sae.dictionary.device, torch.float32), group)

    def _invert(self, x: Tensor, hook_point: str) -> Tensor:
        if not isinstance(self.sae, AlignedSAE):
            return self.normalizer.invert(x, self._index(hook_point))
        decoded = self.sae.decoded
        names = [self.hook_points[index] for index in decoded]
        whole = self.normalizer.select(decoded).invert(x, 0)
        if hook_point == JOINT.join(names):
            return whole
        if hook_point not in names:
            raise CheckpointError(f"{hook_point}: the dictionary reconstructs {', '.join(names)}")
        return whole.split([self.sae.widths[index] for index in decoded], dim=1)[names.index(hook_point)]

    def _index(self, hook_point: str) -> int:
        if hook_point not in self.hook_points:
            raise CheckpointError(f"{hook_point}: the dictionary was fitted to {', '.join(self.hook_points)}")
        return self.hook_points.index(hook_point)


def save_sae(folder: Path, trained: TrainedSAE) -> None:
    """Write the checkpoint; each of the two files is replaced as a whole, the configuration last."""
    module = cast(nn.Module, trained.sae)
    tensors = {f"sae.{name}": tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    tensors |= {"normalizer.mean": trained.normalizer.mean.cpu(), "normalizer.scale": trained.normalizer.scale.cpu()}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "d_in": trained.d_in,
        "architecture": to_dict(trained.config.sae),
        "hook_points": list(trained.hook_points),
        "normalizer": {"is_unit": trained.normalizer.is_unit} | to_dict(trained.config.normalize) | _name_widths(trained),
        "store": {"fingerprint": trained.store_fingerprint, "identity": dict(trained.store_identity)}
        | ({"parts": list(trained.store_parts)} if trained.store_parts else {}),
        "training": to_dict(trained.config),
        "evaluation": dict(trained.evaluation),
        "iteration": trained.iteration,
        "is_finished": trained.is_finished,
    }
    write_atomic(folder / MODEL, [save(tensors, {"format": "pt"})])
    write_atomic(folder / CONFIG, [canonical_json(description)])


def _name_widths(trained: TrainedSAE) -> dict[str, Any]:
    return {"widths": list(trained.normalizer.widths)} if trained.normalizer.widths else {}


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> TrainedSAE:
    """Read a checkpoint. Raises CheckpointError: files missing or damaged, another version, tensors that do not fit."""
    folder = Path(folder)
    description = read_description(folder)
    where = str(folder / CONFIG)
    try:
        config = validate(TrainConfig, description["training"], where)
        tensors = load_file(folder / MODEL, device=str(device))
        sae = build(config.sae, int(description["d_in"]), config.dictionary_seed)
        module = cast(nn.Module, sae).to(device)
        prefix = "sae."
        module.load_state_dict({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
        normalizer = Normalizer(
            bool(description["normalizer"]["is_unit"]),
            tensors["normalizer.mean"],
            tensors["normalizer.scale"],
            tuple(description["normalizer"].get("widths", ())),
            config.normalize.rows == "layer",
        )
        return TrainedSAE(
            sae=sae,
            normalizer=normalizer,
            config=config,
            store_fingerprint=description["store"]["fingerprint"],
            store_identity=description["store"]["identity"],
            evaluation=description["evaluation"],
            iteration=description["iteration"],
            is_finished=description["is_finished"],
            store_parts=tuple(description["store"].get("parts", ())),
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: {MODEL} is missing; run the training again") from error
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: cannot be loaded ({error}); run the training again, or use the thresher that wrote it"
        ) from error


def read_description(folder: Path) -> dict[str, Any]:
    """The checked contents of `config.json`. Raises CheckpointError: no checkpoint, not ours, or of another version."""
    path = folder / CONFIG
    try:
        description = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder}: no checkpoint of a dictionary: {CONFIG} is missing; train one first") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); run the training again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of thresher; expected a JSON object with format {FORMAT!r}")
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: format version {description.get('version')!r}, this thresher reads {VERSION}; train again or use the "
            "thresher that wrote it"
        )
    return cast(dict[str, Any], description)


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a dictionary that was trained to its end. Raises CheckpointError when it is damaged."""
    if not (folder / CONFIG).exists():
        return False
    finished = bool(read_description(folder)["is_finished"])
    if finished and not (folder / MODEL).exists():
        raise CheckpointError(f"{folder}: {MODEL} is missing from a finished training; delete the folder and train again")
    return finished


def describe_sae(folder: Path) -> dict[str, Any]:
    """What a checkpoint is, as plain values, without loading its tensors. Raises CheckpointError."""
    description = read_description(folder)
    model = folder / MODEL
    if not model.is_file():
        raise CheckpointError(f"{folder}: {MODEL} is missing; run the training again")
    shown = ("architecture", "d_in", "hook_points", "normalizer", "store", "evaluation", "iteration", "is_finished")
    training = description["training"]
    return {
        "path": str(folder),
        "version": description["version"],
        **{name: description[name] for name in shown},
        "trained_on": training["store"],
        "seed": training["seed"],
        "bytes": model.stat().st_size,
    }


def check_width(trained: TrainedSAE, hook_point: str, width: int) -> None:
    """Raises CheckpointError when rows of one hook point of a store are not what the dictionary takes."""
    if trained.normalizer.widths:
        raise CheckpointError(
            f"{hook_point}: the {trained.config.sae.kind} was fitted to {', '.join(trained.hook_points)} side by side and has "
            "one code for them; here each hook point is taken on its own. `thresher sae evaluate` measures it and says whose "
            "its features are; train an autoencoder on these hook points for this"
        )
    if width != trained.d_in:
        raise CheckpointError(
            f"{hook_point}: the store has rows of width {width}, the dictionary was fitted to width {trained.d_in}; "
            "choose the hook point it was trained on or train one for this store"
        )
