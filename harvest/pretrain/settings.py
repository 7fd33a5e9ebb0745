"""The settings of training a small CLIP."""

from dataclasses import field
from pathlib import Path

from thresher.config import config
from thresher.data.sources import SourceConfig
from thresher.errors import ConfigError


def _refuse_small(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}={getattr(settings, name)}: at least 1")


@config
class VisionTower:
    """A vision transformer of open_clip."""

    width: int = 128
    """Width of the residual stream."""
    layers: int = 5
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    patch_size: int = 8
    """Side of a patch in pixels; it divides the image size."""
    image_size: int = 48
    """Side of the square that pictures are resized to, in pixels."""

    def __post_init__(self) -> None:
        """Raise ConfigError on a tower that cannot be built."""
        _refuse_small(self, "width", "layers", "heads", "patch_size", "image_size")
        if self.width % self.heads:
            raise ConfigError(f"heads={self.heads}: must divide width={self.width}")
        if self.image_size % self.patch_size:
            raise ConfigError(f"patch_size={self.patch_size}: must divide image_size={self.image_size}")


@config
class TextTower:
    """A causal text transformer of open_clip, over whole words."""

    width: int = 128
    """Width of the residual stream."""
    layers: int = 3
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    context_length: int = 24
    """Tokens per text, the two marks around it included; longer texts are cut."""
    max_words: int = 8192
    """Words of the vocabulary at most, the most frequent ones."""

    def __post_init__(self) -> None:
        """Raise ConfigError on a tower that cannot be built."""
        _refuse_small(self, "width", "layers", "heads", "max_words")
        if self.context_length < 3:
            raise ConfigError(f"context_length={self.context_length}: at least 3, a word and the two marks around it")
        if self.width % self.heads:
            raise ConfigError(f"heads={self.heads}: must divide width={self.width}")


@config
class PretrainConfig:
    """Train a small CLIP from nothing on pairs of pictures and captions."""

    source: SourceConfig
    """Pairs to train on."""
    out: Path
    """Folder of the checkpoint, in open_clip's layout."""
    held_out: int | SourceConfig = 4096
    """Never trained on, they measure the result: so many records at the end of the source, or a source of their own, for
    tables that are sorted or have a split."""
    vision: VisionTower = field(default_factory=VisionTower)
    """The image tower."""
    text: TextTower = field(default_factory=TextTower)
    """The text tower."""
    embed_dim: int = 128
    """Width of the joint embedding."""
    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 256
    """Pairs per step; each pair is told from all others in its batch."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW, after a linear warm-up and before a cosine decay to zero."""
    warmup_steps: int = 200
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; gains, biases and the temperature have none."""
    max_shift: int = 0
    """Pictures are moved by up to this many pixels, at random, against overfitting on small sources."""
    save_every: int = 1000
    """Steps between checkpoints written to `out`."""
    zero_shot: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Prompts by root of the concept tree, e.g. shape: ["a small red {}"]; empty: no zero-shot accuracy."""
    zero_shot_among: tuple[str, ...] = ()
    """Concepts that a picture must show to be counted there, e.g. count/one."""
    seed: int = 0
    """Decides the initial weights, the order of the pairs and the captions chosen."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        """Raise ConfigError on values that train nothing."""
        _refuse_small(self, "embed_dim", "steps", "save_every")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size={self.batch_size}: at least 2, a pair is told from the others in its batch")
        if isinstance(self.held_out, int) and self.held_out < 2:
            raise ConfigError(f"held_out={self.held_out}: at least 2 pairs")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate={self.learning_rate}: positive")
        for name in ("warmup_steps", "weight_decay", "max_shift", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: not negative")
