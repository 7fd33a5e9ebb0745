"""Every family obeys the laws of adapters, on tiny models and on small trained ones."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from thresher.harvest.adapters import Adapter, HFCausalLMModel, HFClipModel, OpenClipModel, open_adapter
from thresher.harvest.adapters.base import Inputs
from thresher.testing.adapter import AdapterSuite

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
    def places(self) -> Mapping[str, str]:  # type: ignore[override]
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


class TestOpenClipWithATimmTower(AdapterSuite):
    module_path = "visual.trunk.blocks.1.mlp"
    places = (
        block_places("vision", "visual.trunk.blocks.{i}", "attn.proj", "mlp", "mlp.fc2")
        | {"vision.start": "visual.trunk.norm_pre@in", "vision.final": "visual.trunk.norm@out"}
        | block_places("text", "text.transformer.resblocks.{i}", *OPEN_CLIP)
        | {"text.start": "text.transformer.resblocks.0@in", "text.final": "text.ln_final@out"}
    )

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_open_clip: Callable[..., Path]) -> None:
        vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
        cls.folder = make_open_clip(vision, {}, custom_text=True)

    def open_adapter(self) -> Adapter:
        return open_adapter(OpenClipModel(name=f"local-dir:{self.folder}"), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.modality == "text":
            return OpenClipSuite.find_own_outputs(self, model, inputs)  # type: ignore[arg-type]
        pixels = inputs.tensors["pixels"]
        return watch(model.visual.trunk.blocks, "vision", lambda: model.encode_image(pixels)) | {
            "vision.pooled": model.visual.trunk(pixels)
        }


class HFClipSuite(AdapterSuite):
    module_path = "vision_model.encoder.layers.1.mlp"
    folder: Path
    is_siglip = False

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
        return blocks | {f"{prefix}.pooled": found.pooler_output, f"{prefix}.embed": embed}


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
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, siglip_folder: Path) -> None:
        cls.folder = siglip_folder


@needs_data
class TestTrainedHFClip(HFClipSuite):
    folder = Path(DATA or "") / "clip-tiny-hf"


class CausalLMSuite(AdapterSuite):
    folder: Path

    def open_adapter(self) -> Adapter:
        return open_adapter(HFCausalLMModel(name=str(self.folder)), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        states = model(**inputs.tensors, output_hidden_states=True, use_cache=False).hidden_states
        n_blocks = len(states) - 1
        # The last hidden state of transformers is taken after the final norm: the last block has to be watched.
        lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_blocks]
        last: list[Any] = []
        handle = lists[0][-1].register_forward_hook(lambda _m, _a, output: last.append(output))
        model(**inputs.tensors, use_cache=False)
        handle.remove()
        output = last[0][0] if isinstance(last[0], tuple) else last[0]
        blocks = {f"text.{i}": state for i, state in enumerate(states[1:-1])}
        return blocks | {f"text.{n_blocks - 1}": output, "text.final": states[-1]}


class TestLlama(CausalLMSuite):
    module_path = "model.layers.1.mlp"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, llama_folder: Path) -> None:
        cls.folder = llama_folder


class TestGPT2(CausalLMSuite):
    module_path = "transformer.h.1.mlp"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, make_causal_lm: Callable[..., Path]) -> None:
        cls.folder = make_causal_lm(make_gpt2_config, with_bos=False)


@needs_data
class TestTrainedLlama(CausalLMSuite):
    module_path = "model.layers.3.mlp"
    folder = Path(DATA or "") / "stories260K-hf"


def make_gpt2_config(vocabulary: int) -> Any:
    return transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0
    )
