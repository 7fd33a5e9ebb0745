"""What makes a folder of results self-describing: the configuration as resolved and what it was made with."""

import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from thresher import __version__
from thresher.config import dump_config
from thresher.errors import ConfigError
from thresher.files import write_atomic

PACKAGES = ("torch", "numpy", "zarr", "transformers", "open_clip_torch", "datasets", "safetensors", "pyarrow")


CONFIG, PROVENANCE = "config.yaml", "provenance.json"
"""What a run folder says about itself."""


def refuse_foreign(folder: Path, own: Sequence[str]) -> None:
    """Raise ConfigError when `folder` holds files, but none of those (`own`) that show that it is a stage's own folder."""
    if re.match(r"[a-z0-9]+:/", str(folder)):
        raise ConfigError(f"out={str(folder)!r}: this stage writes to a folder of this machine; only stores can lie elsewhere")
    try:
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return
    if set(found) - {CONFIG, PROVENANCE} and not set(found) & set(own):
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError(
            f"out={str(folder)!r}: the folder holds other things ({shown}) and no {own[0]}; nothing was changed. Choose a new "
            "or an empty folder"
        )


def write_provenance(folder: Path, config: Any, inputs: Mapping[str, str]) -> None:
    """Write `config.yaml` (as resolved) and `provenance.json` (versions, git commit, seed, fingerprints of `inputs`).

    Holds no time and no host name, so that equal runs give equal files.
    """
    try:
        for name, content in describe_run(config, inputs).items():
            write_atomic(folder / name, [content])
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write the run folder ({error.strerror}); choose another `out`") from error


def describe_run(config: Any, inputs: Mapping[str, str]) -> dict[str, bytes]:
    """The files that `write_provenance` writes, by their names."""
    provenance = describe_code() | _describe(config, inputs)
    return {CONFIG: dump_config(config).encode(), PROVENANCE: canonical_json(provenance)}


def is_made_from(folder: Path, config: Any, inputs: Mapping[str, str]) -> bool:
    """Whether the folder's `config.yaml` and `provenance.json` tell of this configuration, these inputs and this version."""
    try:
        stored, made = (folder / CONFIG).read_text(encoding="utf-8"), json.loads((folder / PROVENANCE).read_bytes())
    except (OSError, ValueError):
        return False
    expected = _describe(config, inputs) | {"thresher": __version__}
    return stored == dump_config(config) and isinstance(made, dict) and expected == {name: made.get(name) for name in expected}


def describe_code() -> dict[str, Any]:
    """Versions of this package, of Python and of the packages that decide numbers, and the git commit if there is one."""
    return {
        "thresher": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
    }


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, one value for one text: fit for fingerprints and for files that must be equal."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of plain values."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def fingerprint_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    return {"seed": getattr(config, "seed", None), "inputs": dict(inputs)}


def _git_commit() -> str | None:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
