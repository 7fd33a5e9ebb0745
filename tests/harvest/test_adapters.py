"""Every family obeys the laws of adapters, on tiny models and on small trained ones."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from thresher.harvest.adapters import Adapter, HFCausalLMModel, HFClipModel, OpenClipModel, open_adapter
from thresher.harvest.adapters.base import Inputs, TokenKind
from thresher.testing.adapter import AdapterSuite

TINY_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

CPU = torch.device("cpu")
DATA = os.environ.get("THRESHER_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="needs the trained models in THRESHER_DATA")


def block_places(tower: str, block: str, attention: str, mlp: str, hidden: str) -> dict[str, str]:
    """Where the usual parts of a block are: the output projection of attention, the MLP, its last layer."""
    return {
        f"{tower}.{{i}}.in": f"{block}@in",
        f"{tower}.{{i}}": f"{block}@out",
        f"{tower}.{{i}}.z": f"{block}.{attention}@in",
        f"{tower}.{{i}}.attn": f"{block}.{attention}@out",
        f"{tower}.{{i}}.mlp_in": f"{block}.{mlp}@in",
        f"{tower}.{{i}}.neurons": f"{block}.{hidden}@in",
        f"{tower}.{{i}}.mlp": f"{block}.{hidden}@out",
    }


OPEN_CLIP = ("attn.out_proj", "mlp", "mlp.c_proj")
OPEN_CLIP_VISION = block_places("vision", "visual.transformer.resblocks.{i}", *OPEN_CLIP) | {
    "vision.start": "visual.ln_pre@in",
    "vision.final": "visual.ln_post@out",
}


class OpenClipSuite(AdapterSuite):
    module_path = "visual.transformer.resblocks.1.mlp"
    folder: Path
    text = ""

    @property
    def places(self) -> Mapping[str, str]:
        text = block_places("text", f"{self.text}transformer.resblocks.{{i}}", *OPEN_CLIP)
        starts = {"text.start": f"{self.text}transformer.resblocks.0@in", "text.final": f"{self.text}ln_final@out"}
        return OPEN_CLIP_VISION | text | starts

    def open_adapter(self) -> Adapter:
        return open_adapter(OpenClipModel(name=f"local-dir:{self.folder}"), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.modality == "image":
            pixels = inputs.tensors["pixels"]
            return watch(model.visual.transformer.resblocks, "vision", lambda: model.encode_image(pixels)) | {
                "vision.pooled": own_vision_pooled(model.visual, pixels)
            }
        ids = inputs.tensors["ids"]
        text = getattr(model, "text", model)
        return watch(text.transformer.resblocks, "text", lambda: model.encode_text(ids)) | {
            "text.pooled": own_text_pooled(model, ids)
        }


def watch(blocks: Any, prefix: str, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Outputs of blocks by plain hooks, and what `forward` returns as the embedding."""
    seen: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _m, _a, output, i=i: seen.update({f"{prefix}.{i}": output}))
        for i, block in enumerate(blocks)
    ]
    seen[f"{prefix}.embed"] = forward()
    for handle in handles:
        handle.remove()
    return seen


def own_vision_pooled(visual: Any, pixels: Tensor) -> Tensor:
    projection, visual.proj = visual.proj, None
    pooled = visual(pixels)
    visual.proj = projection
    return pooled


def own_text_pooled(model: Any, ids: Tensor) -> Tensor:
    text = getattr(model, "text", model)
    projection, text.text_projection = text.text_projection, None
    pooled = model.encode_text(ids)
    text.text_projection = projection
    return pooled


class TestOpenClip(OpenClipSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, open_clip_folder: Path) -> None:
        cls.folder = open_clip_folder


class TestShippedClip(OpenClipSuite):
    def open_adapter(self) -> Adapter:
        return open_adapter(OpenClipModel(), CPU)


class TestOpenClipWithMeanPooling(OpenClipSuite):
    text = "text."

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path]) -> None:
        text = {"pool_type": "last", "no_causal_mask": True}
        cls.folder = make_open_clip({"pool_type": "avg"}, text, custom_text=True)


class TestOpenClipWithPoolingBeforeTheNorm(OpenClipSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path]) -> None:
        cls.folder = make_open_clip({"final_ln_after_pool": True}, {"pool_type": "argmax"})


class TestOpenClipWithAnAppendedTextToken(OpenClipSuite):
    text = "text."

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path]) -> None:
        vision = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
        cls.folder = make_open_clip(vision, {"embed_cls": True}, custom_text=True)


class TestCoCa(OpenClipSuite):
    """CoCa itself, with its decoder of captions; its text embedding is normalised only on the way to the loss."""

    text = "text."

    @property
    def places(self) -> Mapping[str, str]:
        return {name: place for name, place in super().places.items() if not name.endswith(".final")}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path]) -> None:
        vision = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True}
        text = {"embed_cls": True, "output_tokens": True, "pad_id": 0}
        multimodal = {"context_length": 16, "vocab_size": 300, "width": 24, "heads": 2, "layers": 1, "mlp_ratio": 1}
        cls.folder = make_open_clip(vision, text, multimodal_cfg=multimodal, custom_text=True)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.modality == "image":
            pixels = inputs.tensors["pixels"]
            own = watch(model.visual.transformer.resblocks, "vision", lambda: model.visual(pixels)[0])
            return own | {"vision.pooled": own_vision_pooled(model.visual, pixels)[0]}
        ids = inputs.tensors["ids"]
        own = watch(model.text.transformer.resblocks, "text", lambda: model.text(ids)[0])
        projection, model.text.text_projection = model.text.text_projection, None
        pooled = model.text(ids)[0]
        model.text.text_projection = projection
        return own | {"text.pooled": pooled}


TIMM_PLACES = (
    block_places("vision", "visual.trunk.blocks.{i}", "attn.proj", "mlp", "mlp.fc2")
    | {"vision.start": "visual.trunk.norm_pre@in"}
    | block_places("text", "text.transformer.resblocks.{i}", *OPEN_CLIP)
    | {"text.start": "text.transformer.resblocks.0@in", "text.final": "text.ln_final@out"}
)


class TimmTowerSuite(AdapterSuite):
    """A vision tower of timm in open_clip."""

    module_path = "visual.trunk.blocks.1.mlp"
    places = TIMM_PLACES
    folder: Path

    def open_adapter(self) -> Adapter:
        return open_adapter(OpenClipModel(name=f"local-dir:{self.folder}"), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.modality == "text":
            return OpenClipSuite.find_own_outputs(self, model, inputs)
        pixels = inputs.tensors["pixels"]
        return watch(model.visual.trunk.blocks, "vision", lambda: model.encode_image(pixels)) | {
            "vision.pooled": model.visual.trunk(pixels)
        }


class TestOpenClipWithATimmTower(TimmTowerSuite):
    places = TIMM_PLACES | {"vision.final": "visual.trunk.norm@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path], make_timm: Callable[..., Path]) -> None:
        trunk = make_timm("vit_tiny_patch16_224", **TINY_VIT)
        vision = {"timm_model_name": f"local-dir:{trunk}", "timm_pool": "token", "timm_proj": "linear", "image_size": 32}
        cls.folder = make_open_clip(vision, {}, custom_text=True)


class TestEvaClip(TimmTowerSuite):
    """EVA: rotary positions, gated MLP, the mean of the patches."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path], make_timm: Callable[..., Path]) -> None:
        trunk = make_timm("eva02_tiny_patch14_224", **TINY_VIT)
        vision = {"timm_model_name": f"local-dir:{trunk}", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
        cls.folder = make_open_clip(vision, {}, custom_text=True)


class TestOpenClipSiglip(TimmTowerSuite):
    """SigLIP in open_clip: an attention head pools the patches, texts are pooled at their last position."""

    places = TIMM_PLACES | {"vision.final": "visual.trunk.norm@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path], make_timm: Callable[..., Path]) -> None:
        trunk = make_timm("vit_base_patch16_siglip_224", **TINY_VIT)
        vision = {"timm_model_name": f"local-dir:{trunk}", "timm_pool": "map", "timm_proj": "none", "image_size": 32}
        text = {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}
        cls.folder = make_open_clip(vision, text, custom_text=True, embed_dim=32)

    def test_no_token_stands_for_an_image(self, adapter: Adapter) -> None:
        layout = adapter.prepare_images([Image.new("RGB", (32, 32))]).layout
        assert layout.summary is None
        assert layout.kind[0].tolist() == [TokenKind.PATCH] * 16


CLIP_BLOCK = ("self_attn.out_proj", "mlp", "mlp.fc2")
CLIP_PLACES = (
    block_places("vision", "vision_model.encoder.layers.{i}", *CLIP_BLOCK)
    | block_places("text", "text_model.encoder.layers.{i}", *CLIP_BLOCK)
    | {"text.start": "text_model.embeddings@out", "vision.start": "vision_model.embeddings@out"}
    | {"text.final": "text_model.final_layer_norm@out"}
)


class HFClipSuite(AdapterSuite):
    module_path = "vision_model.encoder.layers.1.mlp"
    places = CLIP_PLACES
    folder: Path

    def open_adapter(self) -> Adapter:
        return open_adapter(HFClipModel(name=str(self.folder)), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        prefix = "vision" if inputs.modality == "image" else "text"
        tower = model.vision_model if inputs.modality == "image" else model.text_model
        found = tower(**inputs.tensors, output_hidden_states=True)
        blocks = {f"{prefix}.{i}": state for i, state in enumerate(found.hidden_states[1:])}
        features = model.get_image_features if inputs.modality == "image" else model.get_text_features
        embed = features(**inputs.tensors)
        embed = embed if isinstance(embed, Tensor) else embed.pooler_output
        return blocks | {f"{prefix}.pooled": self.find_pooled(found), f"{prefix}.embed": embed}

    def find_pooled(self, found: Any) -> Tensor:
        """What the tower's own rule pools, before the projection."""
        return found.pooler_output


class TestHFClip(HFClipSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, hf_clip_folder: Path) -> None:
        cls.folder = hf_clip_folder


class TestHFClipWithTheOldEOS(HFClipSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_hf_clip: Callable[..., Path]) -> None:
        cls.folder = make_hf_clip(("<pad>", "<bos>", "<eos>"), eos=2)


class TestSiglip(HFClipSuite):
    places = CLIP_PLACES | {"vision.final": "vision_model.post_layernorm@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, siglip_folder: Path) -> None:
        cls.folder = siglip_folder


class TestSiglip2(TestSiglip):
    """NaFlex: as many patches as an image's shape gives, padded to the most."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_two_towers: Callable[..., Path]) -> None:
        def settings(vocabulary: int) -> Any:
            text = TOWER | {"vocab_size": vocabulary, "max_position_embeddings": 16, "projection_size": 32}
            return transformers.Siglip2Config(text_config=text, vision_config=TOWER | {"patch_size": 8, "num_patches": 16})

        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=20)
        cls.folder = make_two_towers(settings, processor, "$A <eos>", unknown=True)


class TestAimv2(HFClipSuite):
    module_path = "vision_model.encoder.layers.1.ffn"
    places = (
        block_places("vision", "vision_model.encoder.layers.{i}", "attention.out_proj", "ffn", "ffn.down_proj")
        | block_places("text", "text_model.encoder.layers.{i}", "attention.out_proj", "ffn", "ffn.down_proj")
        | {"text.start": "text_model.embeddings@out", "vision.start": "vision_model.embeddings@out"}
        | {"text.final": "text_model.rms_norm@out", "vision.final": "vision_model.rms_norm@out"}
    )

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_two_towers: Callable[..., Path]) -> None:
        def settings(vocabulary: int) -> Any:
            text = TOWER | {"vocab_size": vocabulary, "max_position_embeddings": 16, "eos_token_id": 2}
            return transformers.Aimv2Config(
                text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}, projection_dim=24
            )

        cls.folder = make_two_towers(settings, clip_processor())


BERT_BLOCK = ("attention.output.dense", "intermediate", "output.dense")


class TestAlign(HFClipSuite):
    """A convolutional vision tower and a BERT."""

    module_path = "text_model.encoder.layer.1.intermediate"
    places = block_places("text", "text_model.encoder.layer.{i}", *BERT_BLOCK) | {"text.start": "text_model.embeddings@out"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_two_towers: Callable[..., Path]) -> None:
        def settings(vocabulary: int) -> Any:
            text = TOWER | {"vocab_size": vocabulary, "max_position_embeddings": 16, "pad_token_id": 0}
            stages = {"in_channels": [32, 8], "out_channels": [8, 16], "depthwise_padding": [], "strides": [1, 2]}
            stages |= {"kernel_sizes": [3, 3], "num_block_repeats": [1, 1], "expand_ratios": [1, 2], "hidden_dim": 32}
            vision = {"image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 1.0, "initializer_range": 0.5, **stages}
            return transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=16)

        cls.folder = make_two_towers(settings, clip_processor())

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.modality == "text":
            return super().find_own_outputs(model, inputs)
        pooled = model.get_image_features(**inputs.tensors).pooler_output
        return {"vision.pooled": pooled, "vision.embed": pooled}

    def find_pooled(self, found: Any) -> Tensor:
        return found.last_hidden_state[:, 0]


class TestChineseClip(HFClipSuite):
    """A two-tower model that no rule here was written for."""

    places = (
        block_places("vision", "vision_model.encoder.layers.{i}", *CLIP_BLOCK)
        | block_places("text", "text_model.encoder.layer.{i}", *BERT_BLOCK)
        | {"text.start": "text_model.embeddings@out", "vision.start": "vision_model.embeddings@out"}
    )

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_two_towers: Callable[..., Path]) -> None:
        def settings(vocabulary: int) -> Any:
            text = TOWER | {"vocab_size": vocabulary, "max_position_embeddings": 16, "pad_token_id": 0}
            return transformers.ChineseCLIPConfig(
                text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}, projection_dim=24
            )

        cls.folder = make_two_towers(settings, clip_processor())

    def find_pooled(self, found: Any) -> Tensor:
        is_vision = found.pooler_output is not None
        return found.pooler_output if is_vision else found.last_hidden_state[:, 0]


def clip_processor() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@needs_data
class TestTrainedHFClip(HFClipSuite):
    folder = Path(DATA or "") / "clip-tiny-hf"


class CausalLMSuite(AdapterSuite):
    folder: Path

    def open_adapter(self) -> Adapter:
        return open_adapter(HFCausalLMModel(name=str(self.folder), context=24), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        found = model(**inputs.tensors, output_hidden_states=True, use_cache=False)
        # The last state that transformers gives is taken after the final norm: the last block is in `places`.
        states = {f"text.{i}": state for i, state in enumerate(found.hidden_states[1:-1])}
        return {"text.start": found.hidden_states[0]} | states | {"text.final": found.hidden_states[-1]}


LLAMA_BLOCK = ("self_attn.o_proj", "mlp", "mlp.down_proj")


class TestLlama(CausalLMSuite):
    module_path = "model.layers.1.mlp"
    places = block_places("text", "model.layers.{i}", *LLAMA_BLOCK)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, llama_folder: Path) -> None:
        cls.folder = llama_folder


class TestGPT2(CausalLMSuite):
    module_path = "transformer.h.1.mlp"
    places = block_places("text", "transformer.h.{i}", "attn.c_proj", "mlp", "mlp.c_proj")

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_causal_lm: Callable[..., Path]) -> None:
        cls.folder = make_causal_lm(make_gpt2_config, with_bos=False)


class TestGPTNeoX(CausalLMSuite):
    """Attention and MLP side by side."""

    module_path = "gpt_neox.layers.1.mlp"
    places = block_places("text", "gpt_neox.layers.{i}", "attention.dense", "mlp", "mlp.dense_4h_to_h")

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_causal_lm: Callable[..., Path]) -> None:
        cls.folder = make_causal_lm(lambda n: transformers.GPTNeoXConfig(vocab_size=n, max_position_embeddings=24, **TOWER))


class TestGemma3(CausalLMSuite):
    """Scaled embeddings, norms after attention and MLP, windows; the heads together are wider than the stream."""

    module_path = "model.layers.1.mlp"
    places = block_places("text", "model.layers.{i}", *LLAMA_BLOCK)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_causal_lm: Callable[..., Path]) -> None:
        def settings(n: int) -> Any:
            return transformers.Gemma3TextConfig(
                vocab_size=n, head_dim=24, num_key_value_heads=1, sliding_window=4, max_position_embeddings=24, **TOWER
            )

        cls.folder = make_causal_lm(settings)


class TestQwen3MoE(CausalLMSuite):
    """A mixture of experts has no one set of neurons."""

    module_path = "model.layers.1.mlp"
    places: ClassVar[Mapping[str, str]] = {
        name: place
        for name, place in block_places("text", "model.layers.{i}", "self_attn.o_proj", "mlp", "mlp").items()
        if not name.endswith("neurons")
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_causal_lm: Callable[..., Path]) -> None:
        def settings(n: int) -> Any:
            experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
            heads = {"head_dim": 16, "num_key_value_heads": 1, "max_position_embeddings": 24}
            return transformers.Qwen3MoeConfig(vocab_size=n, **heads, **experts, **TOWER)

        cls.folder = make_causal_lm(settings)


class TestMamba(CausalLMSuite):
    """State spaces: no attention and no MLP, the stream only."""

    module_path = "backbone.layers.1.mixer"
    places: ClassVar[Mapping[str, str]] = {
        "text.{i}": "backbone.layers.{i}@out",
        "text.{i}.in": "backbone.layers.{i}@in",
        "text.start": "backbone.layers.0@in",
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_causal_lm: Callable[..., Path]) -> None:
        cls.folder = make_causal_lm(
            lambda n: transformers.MambaConfig(vocab_size=n, hidden_size=32, num_hidden_layers=2, state_size=4)
        )

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        # Its states begin after the first block.
        names = ("text.0", "text.1", "text.final")
        return dict(zip(names, model(**inputs.tensors, output_hidden_states=True).hidden_states, strict=True))


@needs_data
class TestTrainedLlama(CausalLMSuite):
    module_path = "model.layers.3.mlp"
    places = block_places("text", "model.layers.{i}", *LLAMA_BLOCK)
    folder = Path(DATA or "") / "stories260K-hf"


def make_gpt2_config(vocabulary: int) -> Any:
    return transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0
    )
