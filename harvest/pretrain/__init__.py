"""Train a small CLIP from nothing; the one that ships was made so, by `configs/clip-scenes.yaml`."""

from importlib import resources
from pathlib import Path

from thresher.errors import ModelError
from thresher.harvest.pretrain.run import run
from thresher.harvest.pretrain.settings import PretrainConfig, TextTower, VisionTower

__all__ = ["PretrainConfig", "TextTower", "VisionTower", "checkpoint_path", "run"]


def checkpoint_path() -> Path:
    """Folder of the CLIP that ships with the package; open_clip loads it as `local-dir:<folder>`."""
    folder = Path(str(resources.files("thresher.harvest") / "checkpoints" / "scenes-clip"))
    if not folder.is_dir():
        raise ModelError(f"{folder}: the CLIP that ships with the package is missing; install the package again")
    return folder
