"""From our checkpoints to other libraries' folders and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from thresher.data.store import open_store
from thresher.errors import CheckpointError
from thresher.runs import refuse_foreign
from thresher.train import checkpoint
from thresher.train.checkpoint import TrainedSAE, save_sae
from thresher.train.exchange import dictionary_learning, overcomplete, saebench, saelens, single, sparsify
from thresher.train.exchange.files import NOTE, Names, read_json, refuse_trained, writing
from thresher.train.exchange.plain import Plain, RowShape, fold, unfold
from thresher.train.exchange.single import Stated

Format = Literal["saelens", "dictionary-learning", "sparsify", "overcomplete", "saebench"]
"""Libraries whose folders are known."""
FORMATS: Mapping[Format, ModuleType] = {
    "saelens": saelens,
    "dictionary-learning": dictionary_learning,
    "sparsify": sparsify,
    "overcomplete": overcomplete,
    "saebench": saebench,
}


class Converted(NamedTuple):
    """A folder that was written."""

    folder: Path
    lost: Sequence[str]
    """What the other side cannot say; empty where codes and reconstructions are the same."""


def export_sae(
    trained: TrainedSAE,
    out: Path,
    to: Format,
    *,
    hook_point: str | None = None,
    model_name: str | None = None,
    hook_name: str | None = None,
    lossy: bool = False,
) -> Converted:
    """Write a dictionary as another library's folder: raw activations in, codes in their units (ours over the scale of the
    normaliser, which `thresher.json` records as `code_scale`), the normaliser folded in.

    `model_name` and `hook_name` are what that library calls model and hook point, by default as the store does.
    Raises CheckpointError that says what would be lost, unless `lossy`; always where nothing there comes near.
    """
    plain = fold(trained, hook_point)
    if plain.weights is not None:
        raise CheckpointError(
            "its atoms had other norms than 1 where it comes from, and were compared by their coefficients; use the files "
            "that it was imported from"
        )
    lost = FORMATS[to].find_losses(plain)
    _refuse_losses(lost, f"{to} cannot express this dictionary", lossy=lossy)
    names = Names(model_name or _find_model(trained), hook_name or str(plain.origin["hook_point"]))
    refuse_foreign(out, [NOTE])
    with writing(out):
        FORMATS[to].write(plain, out, names, lost)
    return Converted(out, lost)


def import_sae(
    folder: Path,
    out: Path,
    *,
    hook_point: str | Sequence[str] | None = None,
    store: Path | None = None,
    rows: RowShape | None = None,
    stated: Stated | None = None,
    lossy: bool = False,
) -> Converted:
    """Write a checkpoint of ours from another library's folder or file; which library is told by what is in it.

    `hook_point` is what the checkpoint calls the place, or the places that it is for alike (both towers of a joint space);
    by default what our export recorded, else what the folder says.
    With `store` it is declared to belong to that store, so that it can be analyzed beside dictionaries trained on it: the
    held-out items are then those of the default split, whatever the other library trained on.
    `rows` says what was done to each row before the other library saw it, which no format records: embeddings at unit norm.
    `stated` is for single files that do not say how they encode.
    Raises CheckpointError: an unknown folder or architecture; something that ours cannot say, unless `lossy`.
    """
    found, path = find_source(folder)
    if found == "single-file":
        plain, lost = single.read(path, stated or Stated())
    elif stated not in (None, Stated()):
        raise CheckpointError(f"{folder}: a folder of {found} says itself how it encodes; leave kind, k and the bias out")
    else:
        plain, lost = FORMATS[found].read(folder)
    plain = _shape_rows(plain, rows, folder)
    _refuse_losses(lost, f"{folder}: no architecture here gives the same codes", lossy=lossy)
    named = [hook_point] if isinstance(hook_point, str) else list(hook_point or ())
    names = named or _find_hook_point(plain.origin)
    if not names:
        raise CheckpointError(f"{folder}: it does not say which activations it is for; give --hook-point")
    refuse_trained(out)
    fingerprint = open_store(store).fingerprint if store is not None else ""
    trained = unfold(plain, out, names, store=store or folder, fingerprint=fingerprint)
    identity = dict(trained.store_identity) | {"format": found, "lost": list(lost)}
    with writing(out):
        save_sae(out, dataclasses.replace(trained, store_identity=identity))
    return Converted(out, lost)


def find_source(folder: Path) -> tuple[Format | Literal["single-file"], Path]:
    """Which library wrote a folder, or the only file of tensors in it. Raises CheckpointError when there is neither."""
    if folder.is_file():
        if folder.suffix not in single.SUFFIXES:
            raise CheckpointError(f"{folder}: no file of tensors by its ending; expected {', '.join(single.SUFFIXES)}")
        return "single-file", folder
    for name, module in FORMATS.items():
        if (folder / module.CONFIG).is_file() and (folder / module.WEIGHTS).is_file():
            return name, folder
    if (folder / checkpoint.CONFIG).is_file() and read_json(folder / checkpoint.CONFIG).get("format") == checkpoint.FORMAT:
        raise CheckpointError(f"{folder}: already a checkpoint of thresher")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder or file")
    files = sorted(path for path in folder.iterdir() if path.suffix in single.SUFFIXES)
    if len(files) == 1:
        return "single-file", files[0]
    inner = sorted({path.parent.relative_to(folder) for suffix in single.SUFFIXES for path in folder.rglob(f"*{suffix}")})
    if files or inner:
        listed = ", ".join(str(path) for path in [*(path.name for path in files), *(path for path in inner if path.parts)][:8])
        raise CheckpointError(f"{folder}: more than one dictionary may be in it; name one of its files or folders: {listed}")
    wanted = "; ".join(f"{name}: {module.CONFIG} and {module.WEIGHTS}" for name, module in FORMATS.items())
    raise CheckpointError(
        f"{folder}: not a folder that can be imported; expected the files of one of these: {wanted}; or a "
        f"single file of tensors ({', '.join(single.SUFFIXES)})"
    )


def _shape_rows(plain: Plain, rows: RowShape | None, folder: Path) -> Plain:
    if rows is None or rows == plain.rows:
        return plain
    if plain.is_unit:
        raise CheckpointError(f"{folder}: it says itself what is done to rows ({plain.rows}); --rows {rows} contradicts it")
    return dataclasses.replace(plain, rows=rows)


def _refuse_losses(lost: Sequence[str], what: str, *, lossy: bool) -> None:
    if lost and not lossy:
        listed = "".join(f"\n  - {each}" for each in lost)
        raise CheckpointError(f"{what}. What would be lost:{listed}\n--lossy writes it nevertheless, and records this")


def _find_model(trained: TrainedSAE) -> str:
    model = trained.store_identity.get("model")
    return str(model.get("name", "")) if isinstance(model, Mapping) else str(model or "")


def _find_hook_point(origin: Mapping[str, Any]) -> Sequence[str]:
    config = origin.get("config") or origin.get("cfg") or {}
    metadata = config.get("metadata") or {}
    named = (
        origin.get("hook_point"),
        config.get("hook_point"),
        metadata.get("hook_name"),
        config.get("submodule_name"),
        config.get("hook_name"),
    )
    return [str(name) for name in named if name][:1]
