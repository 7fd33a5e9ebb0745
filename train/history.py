"""Older states of a training, to go back to."""

import os
import shutil
from pathlib import Path

from thresher.errors import CheckpointError
from thresher.train.checkpoint import CONFIG, MODEL
from thresher.train.resume import STATE

STATES = "states"
FILES = (STATE, MODEL, CONFIG)


def keep_state(folder: Path, iteration: int, n_kept: int) -> None:
    """Keep what was just saved as `states/<iteration>/`, and of those folders the last `n_kept`.

    A folder is there as a whole or not at all. Its files are links to those of the run where the disk has links.
    """
    states = folder / STATES
    made, kept = states / f".{iteration:08d}", _name(folder, iteration)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name in FILES:
        _link(folder / name, made / name)
    shutil.rmtree(kept, ignore_errors=True)
    made.rename(kept)
    for old in list_states(folder)[:-n_kept]:
        shutil.rmtree(_name(folder, old))


def list_states(folder: Path) -> list[int]:
    """The iterations whose states are kept, rising."""
    return sorted(int(path.name) for path in (folder / STATES).glob("[0-9]*") if path.is_dir())


def go_back(folder: Path, iteration: int) -> None:
    """Make a kept state that of the run, which then goes on from there; those after it are deleted.

    Raises CheckpointError when it is not kept.
    """
    kept = list_states(folder)
    if iteration not in kept:
        found = ", ".join(map(str, kept)) or "none"
        raise CheckpointError(f"{folder}: no state of iteration {iteration} is kept (kept: {found}); choose one of them")
    for name in FILES:
        made = folder / f".{name}"
        made.unlink(missing_ok=True)
        _link(_name(folder, iteration) / name, made)
        made.replace(folder / name)
    for later in kept:
        if later > iteration:
            shutil.rmtree(_name(folder, later))


def _name(folder: Path, iteration: int) -> Path:
    return folder / STATES / f"{iteration:08d}"


def _link(source: Path, target: Path) -> None:
    """A file is replaced as a whole and never written to, so that a link is as good as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
