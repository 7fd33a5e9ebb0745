"""Vision backbones and text encoders obey the laws of adapters, and pool as their libraries do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional

from thresher.errors import ModelError
from thresher.harvest.adapters import Adapter, HFEncoderModel, HFVisionModel, TimmModel, open_adapter
from thresher.harvest.adapters.base import Inputs, TokenKind
from thresher.testing.adapter import AdapterSuite

CPU = torch.device("cpu")
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PIXELS = TOWER | {"image_size": 32, "patch_size": 8}
TINY_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
BERT_BLOCK = {
    "in": "@in",
    "z": ".attention.output.dense@in",
    "attn": ".attention.output.dense@out",
    "mlp_in": ".intermediate@in",
    "neurons": ".output.dense@in",
    "mlp": ".output.dense@out",
}


def vision_places(block: str, attention: str, hidden: str) -> dict[str, str]:
    """Where the parts of a vision block are."""
    return {
        "vision.{i}": f"{block}@out",
        "vision.{i}.in": f"{block}@in",
        "vision.{i}.z": f"{block}.{attention}@in",
        "vision.{i}.attn": f"{block}.{attention}@out",
        "vision.{i}.mlp_in": f"{block}.mlp@in",
        "vision.{i}.neurons": f"{block}.mlp.{hidden}@in",
        "vision.{i}.mlp": f"{block}.mlp.{hidden}@out",
    }


class HFVisionSuite(AdapterSuite):
    folder: Path

    def open_adapter(self) -> Adapter:
        return open_adapter(HFVisionModel(name=str(self.folder)), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        found = model(**inputs.tensors)
        return {"vision.final": found.last_hidden_state, "vision.pooled": found.pooler_output}


class TestDinov2(HFVisionSuite):
    module_path = "encoder.layer.1.mlp"
    places = vision_places("encoder.layer.{i}", "attention.o_proj", "fc2") | {"vision.start": "embeddings@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_vision: Callable[..., Path]) -> None:
        cls.folder = make_vision(transformers.Dinov2Config(**PIXELS))


class TestDinov2WithRegisters(TestDinov2):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_vision: Callable[..., Path]) -> None:
        cls.folder = make_vision(transformers.Dinov2WithRegistersConfig(num_register_tokens=3, **PIXELS))

    def test_registers_stand_between_cls_and_patches(self) -> None:
        layout = self.open_adapter().prepare_images([Image.new("RGB", (40, 30))]).layout
        kinds = [TokenKind.CLS, *[TokenKind.REGISTER] * 3, *[TokenKind.PATCH] * 16]
        assert layout.kind[0].tolist() == kinds
        assert layout.grid is not None
        assert layout.grid[0, 4:].tolist() == [[row, column] for row in range(4) for column in range(4)]


class TestDinov3(HFVisionSuite):
    module_path = "model.layer.1.mlp"
    places = vision_places("model.layer.{i}", "attention.o_proj", "down_proj") | {"vision.start": "embeddings@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_vision: Callable[..., Path]) -> None:
        cls.folder = make_vision(transformers.DINOv3ViTConfig(num_register_tokens=2, **PIXELS))


class TestViT(HFVisionSuite):
    """A pooler with weights of its own after the CLS token."""

    module_path = "layers.1.mlp"
    places = vision_places("layers.{i}", "attention.o_proj", "fc2") | {"vision.start": "embeddings@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_vision: Callable[..., Path]) -> None:
        cls.folder = make_vision(transformers.ViTConfig(**PIXELS))


class TestConvNext(HFVisionSuite):
    """A convolutional network: no positions, the pooled vector only."""

    module_path = "layernorm"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_vision: Callable[..., Path]) -> None:
        cls.folder = make_vision(transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        return {"vision.pooled": model(**inputs.tensors).pooler_output}


def test_a_language_model_is_no_vision_backbone(llama_folder: Path) -> None:
    with pytest.raises(ModelError):
        open_adapter(HFVisionModel(name=str(llama_folder)), CPU)


class TimmSuite(AdapterSuite):
    module_path = "blocks.1.mlp"
    folder: Path
    places = vision_places("blocks.{i}", "attn.proj", "fc2")

    def open_adapter(self) -> Adapter:
        return open_adapter(TimmModel(name=f"local-dir:{self.folder}"), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        return {"vision.pooled": model(inputs.tensors["pixels"])}


class TestTimmWithRegisters(TimmSuite):
    places = TimmSuite.places | {"vision.start": "norm_pre@in", "vision.final": "norm@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_timm: Callable[..., Path]) -> None:
        cls.folder = make_timm("vit_tiny_patch16_224", **TINY_VIT, reg_tokens=4)

    def test_registers_and_patches_are_labelled(self) -> None:
        kinds = self.open_adapter().prepare_images([Image.new("RGB", (40, 30))]).layout.kind[0].tolist()
        assert kinds == [TokenKind.CLS, *[TokenKind.REGISTER] * 4, *[TokenKind.PATCH] * 16]


class TestTimmEva(TimmSuite):
    """Gated MLP, rotary positions, the mean of the patches, normed after pooling."""

    places = TimmSuite.places | {"vision.start": "norm_pre@in"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_timm: Callable[..., Path]) -> None:
        cls.folder = make_timm("eva02_tiny_patch14_224", **TINY_VIT)


class TestTimmResNet(TimmSuite):
    module_path = "global_pool"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_timm: Callable[..., Path]) -> None:
        cls.folder = make_timm("test_resnet")


def test_an_unknown_timm_architecture_lists_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no architecture 'vit_tiny_patch17_224'; nearest: .*vit_tiny_patch16_224"):
        open_adapter(TimmModel(name="vit_tiny_patch17_224"), CPU)


def test_untrained_timm_weights_follow_the_seed() -> None:
    first, second = (
        open_adapter(TimmModel(name="test_vit", weights="random", seed=seed), CPU).identity["weights"] for seed in (0, 1)
    )
    assert first != second


# Encoders of texts


def make_bert_config(vocabulary: int) -> Any:
    return transformers.BertConfig(vocab_size=vocabulary, max_position_embeddings=24, pad_token_id=0, **TOWER)


class EncoderSuite(AdapterSuite):
    module_path = "encoder.layer.1.intermediate"
    places = {f"text.{{i}}.{name}": "encoder.layer.{i}" + place for name, place in BERT_BLOCK.items()} | {
        "text.{i}": "encoder.layer.{i}@out",
        "text.start": "embeddings@out",
    }
    folder: Path

    def open_adapter(self) -> Adapter:
        return open_adapter(HFEncoderModel(name=str(self.folder)), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        states = model(**inputs.tensors).last_hidden_state
        pooled = self.pool(states, inputs.tensors["attention_mask"])
        return {"text.final": states, "text.pooled": pooled, "text.embed": self.finish(pooled)}

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[:, 0]

    def finish(self, pooled: Tensor) -> Tensor:
        return pooled


class TestBert(EncoderSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_encoder: Callable[..., Path]) -> None:
        cls.folder = make_encoder(make_bert_config)


class TestSentenceEncoder(EncoderSuite):
    """Mean of the tokens, unit norm, as sentence-transformers writes it."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_encoder: Callable[..., Path]) -> None:
        pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
        cls.folder = make_encoder(make_bert_config, {"Transformer": None, "Pooling": pooling, "Normalize": None})

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        expanded = mask[..., None].to(states.dtype)
        return (states * expanded).sum(1) / expanded.sum(1)

    def finish(self, pooled: Tensor) -> Tensor:
        return functional.normalize(pooled, dim=-1)


class TestDecoderAsRetriever(EncoderSuite):
    """The last token of a causal model, with a prompt."""

    module_path = "layers.1.mlp"
    places: ClassVar[Mapping[str, str]] = {
        "text.{i}": "layers.{i}@out",
        "text.{i}.in": "layers.{i}@in",
        "text.{i}.z": "layers.{i}.self_attn.o_proj@in",
        "text.{i}.attn": "layers.{i}.self_attn.o_proj@out",
        "text.{i}.mlp_in": "layers.{i}.mlp@in",
        "text.{i}.neurons": "layers.{i}.mlp.down_proj@in",
        "text.{i}.mlp": "layers.{i}.mlp.down_proj@out",
        "text.start": "layers.0@in",
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_encoder: Callable[..., Path]) -> None:
        def settings(n: int) -> Any:
            return transformers.Qwen3Config(
                vocab_size=n, head_dim=8, num_key_value_heads=1, max_position_embeddings=24, **TOWER
            )

        cls.folder = make_encoder(settings)

    def open_adapter(self) -> Adapter:
        return open_adapter(HFEncoderModel(name=str(self.folder), pooling="last", prompt="q: "), CPU)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([row[int(length) - 1] for row, length in zip(states, mask.sum(1), strict=True)])

    def test_the_prompt_is_part_of_the_text(self) -> None:
        plain = open_adapter(HFEncoderModel(name=str(self.folder), pooling="last"), CPU)
        ids = self.open_adapter().prepare_texts(["a word"]).tensors["input_ids"]
        assert torch.equal(ids, plain.prepare_texts(["q: a word"]).tensors["input_ids"])


class TestT5Encoder(EncoderSuite):
    """The encoder of an encoder-decoder."""

    module_path = "encoder.block.1.layer.1.DenseReluDense"
    places: ClassVar[Mapping[str, str]] = {
        "text.{i}": "encoder.block.{i}@out",
        "text.{i}.in": "encoder.block.{i}@in",
        "text.{i}.z": "encoder.block.{i}.layer.0.SelfAttention.o@in",
        "text.{i}.attn": "encoder.block.{i}.layer.0.SelfAttention.o@out",
        "text.{i}.mlp_in": "encoder.block.{i}.layer.1.DenseReluDense@in",
        "text.{i}.neurons": "encoder.block.{i}.layer.1.DenseReluDense.wo@in",
        "text.{i}.mlp": "encoder.block.{i}.layer.1.DenseReluDense.wo@out",
        "text.start": "encoder.block.0@in",
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_encoder: Callable[..., Path]) -> None:
        def settings(n: int) -> Any:
            return transformers.T5Config(vocab_size=n, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)

        cls.folder = make_encoder(settings)

    def open_adapter(self) -> Adapter:
        return open_adapter(HFEncoderModel(name=str(self.folder), context=24), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        return super().find_own_outputs(model.encoder, inputs)


def test_a_step_that_is_not_known_is_refused(make_encoder: Callable[..., Path]) -> None:
    steps = {"Transformer": None, "Pooling": {"pooling_mode_cls_token": True}, "Dense": {"in_features": 32}}
    folder = make_encoder(make_bert_config, steps)
    with pytest.raises(ModelError, match=r"goes through Dense.*set model\.pooling"):
        open_adapter(HFEncoderModel(name=str(folder)), CPU)
    assert open_adapter(HFEncoderModel(name=str(folder), pooling="cls"), CPU).identity["pooling"] == "cls"


def test_pooling_by_the_maximum_is_refused(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(make_bert_config, {"Transformer": None, "Pooling": {"pooling_mode_max_tokens": True}})
    with pytest.raises(ModelError, match=r"pooling_mode_max_tokens; set model\.pooling"):
        open_adapter(HFEncoderModel(name=str(folder)), CPU)


def test_robertas_positions_begin_after_padding(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(
        lambda n: transformers.RobertaConfig(vocab_size=n, max_position_embeddings=24, pad_token_id=0, **TOWER)
    )
    inputs = open_adapter(HFEncoderModel(name=str(folder)), CPU).prepare_texts(["on and on " * 30])
    assert inputs.layout.valid.shape == (1, 23)
