"""Tiny randomly initialised models of every family, made from the libraries' own configuration classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = ["a red square and two small green circles on a dark ground", "one word after another and no end, short or long"]


def make_tokenizer(folder: Path, specials: tuple[str, ...], template: str | None) -> int:
    """Save a byte-level BPE tokenizer whose special tokens have ids 0, 1, ...; returns the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if template:
        used = [(name, tokenizer.token_to_id(name)) for name in specials if name in template]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    names = {"<bos>": "bos_token", "<eos>": "eos_token", "<pad>": "pad_token"}
    named = {role: name for name, role in names.items() if name in specials}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **named).save_pretrained(folder)
    return tokenizer.get_vocab_size()


@pytest.fixture(scope="session")
def make_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny open_clip model with changes of its configuration as a local folder."""

    def make(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("open_clip")
        vocabulary = make_tokenizer(folder, ("<pad>", "<bos>", "<eos>"), "<bos> $A <eos>")
        vision_cfg = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8} | (vision or {})
        text_cfg = {"context_length": 16, "vocab_size": vocabulary, "width": 32, "heads": 2, "layers": 2}
        text_cfg |= {"hf_tokenizer_name": "here", "pool_type": "eos", "eos_id": 2} | (text or {})
        settings = {"embed_dim": 24, "vision_cfg": vision_cfg, "text_cfg": text_cfg} | changes
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
        torch.manual_seed(0)
        is_custom = settings.pop("custom_text", False)
        kind = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
        model = (open_clip.CoCa if "multimodal_cfg" in settings else kind)(**settings)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def open_clip_folder(make_open_clip: Callable[..., Path]) -> Path:
    """A tiny CLIP of open_clip."""
    return make_open_clip()


@pytest.fixture(scope="session")
def make_hf_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny CLIPModel with a given EOS id in its configuration."""

    def make(specials: tuple[str, ...] = ("<pad>", "<bos>", "<x>", "<eos>"), eos: int = 3) -> Path:
        folder = tmp_path_factory.mktemp("hf_clip")
        vocabulary = make_tokenizer(folder, specials, "<bos> $A <eos>")
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = tower | {"vocab_size": vocabulary, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": eos}
        vision = tower | {"image_size": 32, "patch_size": 8}
        torch.manual_seed(0)
        settings = transformers.CLIPConfig(text_config=text | {"pad_token_id": 0}, vision_config=vision, projection_dim=24)
        transformers.CLIPModel(settings).save_pretrained(folder)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        transformers.CLIPImageProcessor(**size).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def hf_clip_folder(make_hf_clip: Callable[..., Path]) -> Path:
    """A tiny CLIPModel of transformers."""
    return make_hf_clip()


@pytest.fixture(scope="session")
def make_two_towers(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny two-tower model: `settings` maps the size of the vocabulary to a configuration of transformers."""

    def make(
        settings: Callable[[int], Any], processor: Any, template: str = "<bos> $A <eos>", *, unknown: bool = False
    ) -> Path:
        folder = tmp_path_factory.mktemp("two_towers")
        specials = tuple(name for name in ("<pad>", "<bos>", "<eos>") if name in template + "<pad>")
        specials += ("<unk>",) if unknown else ()
        vocabulary = make_tokenizer(folder, specials, template)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(settings(vocabulary)).save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return make


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
"""The size of a tiny transformer in the words of most configurations."""


@pytest.fixture(scope="session")
def siglip_folder(make_two_towers: Callable[..., Path]) -> Path:
    """A tiny SiglipModel of transformers."""

    def settings(vocabulary: int) -> Any:
        text = TOWER | {"vocab_size": vocabulary, "max_position_embeddings": 16, "projection_size": 32}
        return transformers.SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8})

    return make_two_towers(settings, transformers.SiglipImageProcessor(size={"height": 32, "width": 32}), "$A <eos>")


@pytest.fixture(scope="session")
def make_timm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny timm model: an architecture's name and what to change of it."""

    def make(architecture: str, size: int = 32, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("timm")
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=0, **changes)
        settings = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
        description = {"architecture": architecture, "num_classes": 0, "model_args": changes, "pretrained_cfg": settings}
        (folder / "config.json").write_text(json.dumps(description))
        save_file(model.state_dict(), folder / "model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def make_vision(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny vision backbone of transformers."""

    def make(settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("vision")
        torch.manual_seed(0)
        transformers.AutoModel.from_config(settings).save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny encoder of texts with the steps that sentence-transformers would list, if any."""

    def make(settings: Callable[[int], Any], steps: dict[str, Any] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("encoder")
        vocabulary = make_tokenizer(folder, ("<pad>", "<bos>", "<eos>"), "<bos> $A <eos>")
        torch.manual_seed(0)
        transformers.AutoModel.from_config(settings(vocabulary)).save_pretrained(folder)
        modules = []
        for number, (kind, content) in enumerate((steps or {}).items()):
            path = f"{number}_{kind}" if number else ""
            modules.append({"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"})
            (folder / path).mkdir(exist_ok=True)
            if content:
                (folder / path / "config.json").write_text(json.dumps(content))
        if steps:
            (folder / "modules.json").write_text(json.dumps(modules))
        return folder

    return make


@pytest.fixture(scope="session")
def make_causal_lm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny language model: `settings` maps the size of the vocabulary to a configuration of transformers."""

    def make(settings: Callable[[int], Any], *, with_bos: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("causal_lm")
        specials = ("<pad>", "<bos>", "<eos>") if with_bos else ("<eos>",)
        vocabulary = make_tokenizer(folder, specials, "<bos> $A" if with_bos else None)
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(settings(vocabulary)).save_pretrained(folder)
        return folder

    return make


def make_llama_config(vocabulary: int) -> Any:
    """A Llama with grouped queries."""
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


@pytest.fixture(scope="session")
def llama_folder(make_causal_lm: Callable[..., Path]) -> Path:
    """A tiny Llama."""
    return make_causal_lm(make_llama_config)
