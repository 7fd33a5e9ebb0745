"""Checkpoints on the Hugging Face hub, and loading by path or repository."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from thresher.errors import CheckpointError, NetworkError
from thresher.hub import local_copy
from thresher.train import checkpoint
from thresher.train.checkpoint import MODEL, TrainedSAE, read_description
from thresher.train.exchange import single
from thresher.train.exchange.card import write_card
from thresher.train.exchange.files import refuse_trained, writing

CARD = "README.md"
FILES = (checkpoint.CONFIG, MODEL)
"""What a checkpoint is."""


def load_sae(path_or_repo: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None) -> TrainedSAE:
    """Load a checkpoint from a folder, or from a repository `owner/name` of the hub (or of the mirror in `THRESHER_HUB`).

    Raises CheckpointError: neither a folder nor such a repository, or no checkpoint in it; NetworkError: no hub in reach.
    """
    return checkpoint.load_sae(find_sae(path_or_repo, revision=revision), device)


def find_sae(path_or_repo: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint; that of a repository is downloaded, and kept as all downloads of the hub are."""
    folder = Path(local_copy(str(path_or_repo)))
    if folder.is_dir() or isinstance(path_or_repo, Path):
        return folder
    return _download(path_or_repo, revision, [*FILES, CARD])


def find_released(place: str, *, revision: str | None = None) -> Path:
    """A file or folder of another library here, or `owner/name` of the hub, with a folder or file in it behind that
    (`owner/name/layers.3`), which is downloaded. Raises as `load_sae`."""
    found = Path(local_copy(place))
    parts = place.split("/")
    if found.exists() or Path(place).is_absolute() or len(parts) < 2 or parts[0] in (".", ".."):
        return found
    inner = "/".join(parts[2:])
    wanted = [f"{inner}/*", inner] if inner else [f"*{suffix}" for suffix in (*single.SUFFIXES, ".json")]
    return _download("/".join(parts[:2]), revision, wanted) / inner


def _download(path_or_repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(path_or_repo, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise CheckpointError(f"{path_or_repo}: no such folder, and no name of a repository (owner/name)") from error
    except LocalEntryNotFoundError as error:
        raise NetworkError(
            f"{path_or_repo}: no such folder, and the hub cannot be reached; put the checkpoint into a folder of this name, or "
            "into the mirror that THRESHER_HUB names"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{path_or_repo}: no such folder, and the hub refuses it: {error}") from error


def push_sae(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a checkpoint with its model card; return the address. The token is that of `hf auth login` or HF_TOKEN.

    Raises CheckpointError: no checkpoint, or the hub refuses (no token, no right to write).
    """
    with tempfile.TemporaryDirectory() as staged:
        prepare_upload(folder, Path(staged), repo)
        try:
            api = huggingface_hub.HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=staged, commit_message="Upload a dictionary of thresher")
        except HFValidationError as error:
            raise CheckpointError(f"{repo}: no name of a repository (owner/name)") from error
        except HfHubHTTPError as error:
            raise CheckpointError(f"{repo}: the hub refuses the upload: {error}; log in with `hf auth login`") from error
    return f"{huggingface_hub.constants.ENDPOINT}/{repo}"


def prepare_upload(folder: Path, staged: Path, repo: str) -> None:
    """Fill `staged` with what is uploaded: the checkpoint's two files and the card, nothing else of the run."""
    description = read_description(folder)
    checkpoint.load_sae(folder)  # A damaged checkpoint is found before it is published.
    staged.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (staged / name).write_bytes((folder / name).read_bytes())
    (staged / CARD).write_text(write_card(description, repo), encoding="utf-8")


def pull_sae(repo: str, out: Path, *, revision: str | None = None) -> Path:
    """Copy a checkpoint of the hub into a folder. Raises as `load_sae`, ConfigError: the folder holds other things."""
    refuse_trained(out)
    found = find_sae(repo, revision=revision)
    checkpoint.load_sae(found)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in reversed(FILES):
            (out / name).write_bytes((found / name).read_bytes())
    return out
