"""Vision-language decoders obey the laws of adapters; image tokens and text tokens are told apart."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from PIL import Image
from tiny_vlm import CLIP_VISION, QWEN_TEXT, QWEN_TOKENS, TEXT, make_tokenizer, save, save_qwen, save_qwen25
from torch import Tensor

from thresher.config import validate
from thresher.data.sources import MemorySource, open_source
from thresher.data.store import open_store
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters import Adapter, HFVisionLanguageModel, open_adapter
from thresher.harvest.adapters.base import Inputs, TokenKind
from thresher.harvest.run import HarvestConfig, run
from thresher.testing.adapter import AdapterSuite

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""Some image processors hand tensors of torch to numpy."""
CHAT = (
    "{% for message in messages %}<bos>user\n{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<eos>\n{% endfor %}"
)


class VisionLanguageSuite(AdapterSuite):
    module_path = "model.language_model.layers.1.mlp"
    stream = "model.language_model.layers"
    encoder = "model.vision_tower"
    options: ClassVar[dict[str, Any]] = {}
    folder: Path
    n_image_tokens = 16
    """Of an image of 40 x 30 pixels."""

    @property
    def places(self) -> Mapping[str, str]:
        block = f"{self.stream}.{{i}}"
        text = {
            "text.{i}.in": f"{block}@in",
            "text.{i}": f"{block}@out",
            "text.{i}.z": f"{block}.self_attn.o_proj@in",
            "text.{i}.attn": f"{block}.self_attn.o_proj@out",
            "text.{i}.mlp_in": f"{block}.mlp@in",
            "text.{i}.neurons": f"{block}.mlp.down_proj@in",
            "text.{i}.mlp": f"{block}.mlp.down_proj@out",
        }
        tower = f"{self.encoder}.encoder.layers.{{i}}"
        vision = {
            "vision.{i}.in": f"{tower}@in",
            "vision.{i}": f"{tower}@out",
            "vision.{i}.z": f"{tower}.self_attn.out_proj@in",
            "vision.{i}.attn": f"{tower}.self_attn.out_proj@out",
            "vision.{i}.mlp_in": f"{tower}.mlp@in",
            "vision.{i}.neurons": f"{tower}.mlp.fc2@in",
            "vision.{i}.mlp": f"{tower}.mlp.fc2@out",
            "vision.start": f"{self.encoder}.embeddings@out",
            "vision.final": f"{self.encoder}.post_layernorm@out",
        }
        return text | vision

    def open_adapter(self) -> Adapter:
        return open_adapter(HFVisionLanguageModel(name=str(self.folder), **self.options), CPU)

    def find_own_outputs(self, model: Any, inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.modality == "image":
            return {}
        states = model(**inputs.tensors, output_hidden_states=True, use_cache=False).hidden_states
        return {"text.start": states[0], "text.0": states[1], "text.final": states[-1]}

    def test_image_and_text_tokens_are_told_apart(self, adapter: Adapter) -> None:
        image = Image.new("RGB", (40, 30), "red")
        layout = adapter.prepare_pairs([image, None], ["a red square", "two small green circles"]).layout
        assert layout.token_id is not None
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        for item, text in enumerate(("a red square", "two small green circles")):
            own = layout.token_id[item][layout.kind[item] == TokenKind.TEXT]
            assert tokenizer.decode(own) == text
            n_image = int((layout.kind[item] == TokenKind.IMAGE).sum())
            assert n_image == (self.n_image_tokens if item == 0 else 0)

    def test_the_rows_of_a_text_depend_on_its_image(self, adapter: Adapter) -> None:
        (point,) = adapter.resolve(["text.1"], ["text"])
        images = [Image.new("RGB", (40, 30), "red"), Image.linear_gradient("L").resize((40, 30)).convert("RGB")]
        with torch.inference_mode():
            found = [adapter.capture(adapter.prepare_pairs([image], ["a word"]), [point])["text.1"] for image in images]
        assert found[0].shape == found[1].shape
        assert not torch.equal(found[0][:, -1], found[1][:, -1])


def clip_processor(cls: Any = transformers.CLIPImageProcessor) -> Any:
    if cls is transformers.SiglipImageProcessor:
        return cls(size={"height": 32, "width": 32})
    return cls(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def make_llava(folder: Path, **changes: Any) -> Path:
    tokenizer = make_tokenizer(image_token="<image>")
    settings = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP_VISION),
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        image_token_index=3,
    )
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1} | changes
    return save(folder, settings, transformers.LlavaProcessor(clip_processor(), tokenizer, **options))


class TestLlava(VisionLanguageSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = make_llava(tmp_path_factory.mktemp("llava"))

    @property
    def places(self) -> Mapping[str, str]:
        # CLIP norms only what it has pooled.
        return {name: place for name, place in super().places.items() if name != "vision.final"}


class TestLlavaNext(TestLlava):
    """The whole image and crops of it are in the sequence of a text; `vision.*` is the whole image."""

    n_image_tokens = 44

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        tokenizer, pinpoints = make_tokenizer(image_token="<image>"), [[32, 64], [64, 32]]
        settings = transformers.LlavaNextConfig(
            vision_config=transformers.CLIPVisionConfig(**CLIP_VISION),
            text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
            image_token_index=3,
            image_grid_pinpoints=pinpoints,
        )
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_grid_pinpoints": pinpoints}
        options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        processor = transformers.LlavaNextProcessor(transformers.LlavaNextImageProcessor(**sizes), tokenizer, **options)
        cls.folder = save(tmp_path_factory.mktemp("next"), settings, processor)

    def test_patches_and_image_tokens_know_their_place_and_nothing_else_does(self, adapter: Adapter) -> None:
        patches = adapter.prepare_images([Image.new("RGB", (40, 30))]).layout
        assert patches.grid is not None
        assert torch.equal((patches.grid >= 0).all(dim=-1), patches.kind == TokenKind.PATCH)
        cut = adapter.prepare_pairs([Image.new("RGB", (64, 44))], ["a word"]).layout
        assert cut.grid is not None
        assert (cut.grid == -1).all()

    def test_the_vision_tower_sees_the_whole_image(self, adapter: Adapter) -> None:
        image = Image.linear_gradient("L").resize((64, 32)).convert("RGB")
        (pixels,) = adapter.prepare_images([image]).tensors.values()
        crops = adapter.prepare_pairs([image], ["a word"]).tensors["pixel_values"]
        assert crops.shape[:2] == (1, 3)
        assert torch.equal(pixels, crops[:, 0])


class TestLlavaOnevision(TestLlavaNext):
    """As LLaVA-NeXT, with SigLIP and all its patches."""

    n_image_tokens = 44

    @property
    def places(self) -> Mapping[str, str]:
        return VisionLanguageSuite.places.fget(self)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        tokenizer = make_tokenizer(image_token="<image>", video_token="<video>")
        pinpoints = [[32, 64], [64, 32]]
        settings = transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(**CLIP_VISION, vision_use_head=False),
            text_config=transformers.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
            image_token_index=3,
            video_token_index=8,
            image_grid_pinpoints=pinpoints,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        size = {"height": 32, "width": 32}
        processor = transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
        )
        cls.folder = save(tmp_path_factory.mktemp("onevision"), settings, processor)


class TestLlavaChat(TestLlava):
    """The checkpoint's chat template is around the text."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = make_llava(tmp_path_factory.mktemp("llava"), chat_template=CHAT)


class TestGemma3(VisionLanguageSuite):
    """Images attend to all of themselves; pooled patches; SigLIP."""

    n_image_tokens = 4

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        tokenizer = make_tokenizer(image_token="<image>", boi_token="<start>", eoi_token="<end>")
        settings = transformers.Gemma3Config(
            vision_config=transformers.SiglipVisionConfig(**CLIP_VISION, vision_use_head=False),
            text_config=transformers.Gemma3TextConfig(vocab_size=len(tokenizer), **TEXT),
            mm_tokens_per_image=4,
            image_token_index=3,
            boi_token_index=4,
            eoi_token_index=5,
        )
        processor = transformers.Gemma3Processor(
            transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32}), tokenizer, image_seq_length=4
        )
        cls.folder = save(tmp_path_factory.mktemp("gemma3"), settings, processor)


class TestPaliGemma(VisionLanguageSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        tokenizer = make_tokenizer(image_token="<image>")
        settings = transformers.PaliGemmaConfig(
            vision_config=transformers.SiglipVisionConfig(**CLIP_VISION, vision_use_head=False),
            text_config=transformers.GemmaConfig(vocab_size=len(tokenizer), **TEXT),
            image_token_index=3,
            projection_dim=32,
        )
        image_processor = clip_processor(transformers.SiglipImageProcessor)
        image_processor.image_seq_length = 16
        processor = transformers.PaliGemmaProcessor(image_processor, tokenizer)
        cls.folder = save(tmp_path_factory.mktemp("paligemma"), settings, processor)


class PatchRowSuite(VisionLanguageSuite):
    """The vision encoder takes the patches of all images in one row."""

    neurons = "mlp.down_proj"
    final: ClassVar[dict[str, str]] = {}

    @property
    def places(self) -> Mapping[str, str]:
        text = {name: place for name, place in super().places.items() if name.startswith("text.")}
        block = "model.visual.blocks.{i}"
        vision = {
            "vision.{i}.in": f"{block}@in",
            "vision.{i}": f"{block}@out",
            "vision.{i}.z": f"{block}.attn.proj@in",
            "vision.{i}.attn": f"{block}.attn.proj@out",
            "vision.{i}.mlp_in": f"{block}.mlp@in",
            "vision.{i}.neurons": f"{block}.{self.neurons}@in",
            "vision.{i}.mlp": f"{block}.{self.neurons}@out",
            "vision.start": "model.visual.blocks.0@in",
        }
        return text | vision | self.final

    def test_a_patch_is_where_its_row_and_column_say(self, adapter: Adapter) -> None:
        """Of a picture with a colour of its own at every patch, each row of an early hook point is that of its colour."""
        shapes = ((6, 8), (10, 4))
        colours = [torch.arange(rows * columns).view(rows, columns) for rows, columns in shapes]
        pictures = [
            Image.fromarray((found * 3).to(torch.uint8).numpy()).resize((8 * found.shape[1], 8 * found.shape[0]), 0)
            for found in colours
        ]
        inputs = adapter.prepare_images([picture.convert("RGB") for picture in pictures])
        assert inputs.packing is not None
        values = inputs.tensors["hidden_states"][:, 0]
        (point,) = adapter.resolve(["vision.start"], ["image"])
        with torch.inference_mode():
            found = adapter.capture(inputs, [point])["vision.start"][0] - self.find_offset(adapter, inputs)
            embedded = adapter.model.model.visual.patch_embed(inputs.tensors["hidden_states"])
        by_value = dict(zip(values.tolist(), embedded, strict=False))
        levels = sorted(by_value)
        for item, colour in enumerate(colours):
            n = int(inputs.layout.valid[item].sum())
            assert n == colour.numel()
            assert inputs.layout.grid is not None
            start = int(inputs.packing.start[item])
            for position in range(n):
                row, column = inputs.layout.grid[item, position].tolist()
                expected = by_value[levels[int(colour[row, column])]]
                torch.testing.assert_close(found[start + position], expected, rtol=1e-4, atol=1e-4)

    def find_offset(self, adapter: Adapter, inputs: Inputs) -> Tensor:
        """What the model adds to embedded patches before its first block."""
        return torch.zeros(())


class TestQwen25VL(PatchRowSuite):
    n_image_tokens = 4

    def test_a_module_before_the_windows_is_refused(self, adapter: Adapter) -> None:
        with pytest.raises(ModelError, match=r"not yet in the order of windows; read vision\.start"):
            adapter.resolve(["module:model.visual.patch_embed"], ["image"])

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = save_qwen25(tmp_path_factory.mktemp("qwen25vl"))

    def test_image_tokens_lie_in_the_grid_of_their_picture(self, adapter: Adapter) -> None:
        pictures = [Image.new("RGB", size) for size in ((32, 64), (64, 32))]
        layout = adapter.prepare_pairs(pictures, ["a", "b"]).layout
        assert layout.grid is not None
        shapes = [(layout.grid[item].amax(dim=0) + 1).tolist() for item in (0, 1)]
        assert shapes == [[4, 2], [2, 4]]


class TestQwen3VL(PatchRowSuite):
    n_image_tokens = 4
    neurons = "mlp.linear_fc2"
    final: ClassVar[dict[str, str]] = {"vision.final": "model.visual.merger.norm@out"}

    def find_offset(self, adapter: Adapter, inputs: Inputs) -> Tensor:
        (point,) = adapter.resolve(["vision.start"], ["image"])
        visual: Any = adapter.model.model.visual
        black = dict(inputs.tensors) | {"hidden_states": torch.zeros_like(inputs.tensors["hidden_states"])}
        blank = Inputs("image", black, inputs.layout, inputs.packing)
        with torch.inference_mode():
            return adapter.capture(blank, [point])["vision.start"][0] - visual.patch_embed(black["hidden_states"])

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        def settings(n: int) -> Any:
            vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
            vision |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
            return transformers.Qwen3VLConfig(text_config=QWEN_TEXT | {"vocab_size": n}, vision_config=vision, **QWEN_TOKENS)

        cls.folder = save_qwen(tmp_path_factory.mktemp("qwen3vl"), settings, transformers.Qwen3VLProcessor, patch_size=8)


class TestIdefics3(VisionLanguageSuite):
    """Crops of one image, marked by tokens of their own; `vision.*` is the whole image."""

    module_path = "model.text_model.layers.1.mlp"
    stream = "model.text_model.layers"
    encoder = "model.vision_model"
    family = "Idefics3"
    n_image_tokens = 4

    def test_the_vision_tower_sees_the_whole_image(self, tmp_path: Path) -> None:
        """The last of what the decoder gets when images are cut."""
        transformers.AutoModelForImageTextToText.from_pretrained(self.folder).save_pretrained(tmp_path)
        processor = transformers.AutoProcessor.from_pretrained(self.folder)
        processor.image_processor.do_image_splitting = True
        processor.image_processor.size = {"longest_edge": 64}
        processor.save_pretrained(tmp_path)
        adapter = open_adapter(HFVisionLanguageModel(name=str(tmp_path)), CPU)
        pictures = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((64, 32), (64, 64), (32, 64))]
        inputs = adapter.prepare_images(pictures)
        for item, picture in enumerate(pictures):
            cut = adapter.prepare_pairs([picture], ["a"]).tensors["pixel_values"]
            assert cut.shape[1] > 1
            assert torch.equal(inputs.tensors["pixel_values"][item], cut[0, -1])
        (point,) = adapter.resolve(["vision.final"], ["image"])
        with torch.inference_mode():
            own = adapter.model.model.get_image_features(inputs.tensors["pixel_values"][:, None]).last_hidden_state
            assert torch.equal(adapter.capture(inputs, [point])["vision.final"], own)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def use_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        def of_family(name: str) -> Any:
            return getattr(transformers, cls.family + name)

        marks = {"image_token": "<image>", "fake_image_token": "<fake>", "global_image_token": "<global>"}
        tokenizer = make_tokenizer(**marks, end_of_utterance_token="<end>")
        sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": False}
        # It adds tokens of its own to the tokenizer.
        more = (transformers.SmolVLMVideoProcessor(),) if cls.family == "SmolVLM" else ()
        processor = of_family("Processor")(of_family("ImageProcessor")(**sizes), tokenizer, *more, image_seq_len=4)
        settings = of_family("Config")(
            vision_config=CLIP_VISION,
            text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), **TEXT),
            image_token_id=3,
            scale_factor=2,
        )
        cls.folder = save(tmp_path_factory.mktemp("idefics3"), settings, processor)


@pytest.mark.skipif(find_spec("num2words") is None, reason="transformers' processor of SmolVLM needs num2words")
class TestSmolVLM(TestIdefics3):
    family = "SmolVLM"


def test_an_image_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    adapter = open_adapter(HFVisionLanguageModel(name=str(make_llava(tmp_path)), context=10), CPU)
    with pytest.raises(ModelError, match=r"an image takes more than the context of 10 tokens"):
        adapter.prepare_pairs([Image.new("RGB", (32, 32))], ["a"])


def test_a_template_needs_its_places() -> None:
    with pytest.raises(ConfigError, match=r"it needs \{image\} and \{text\}"):
        HFVisionLanguageModel(name="x", template="{text}")


def test_a_template_of_ones_own_stands_around_the_text(tmp_path: Path) -> None:
    folder = make_llava(tmp_path)
    adapter = open_adapter(HFVisionLanguageModel(name=str(folder), template="look: {image} it is {text}."), CPU)
    inputs = adapter.prepare_pairs([Image.new("RGB", (32, 32))], ["a circle"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids, kind = inputs.tensors["input_ids"][0], inputs.layout.kind[0]
    assert tokenizer.decode(ids[kind != TokenKind.IMAGE], skip_special_tokens=True) == "look:  it is a circle."
    assert tokenizer.decode(ids[kind == TokenKind.TEXT]).strip() == "a circle"


def test_a_harvest_keeps_image_and_text_tokens_of_both_towers(tmp_path: Path) -> None:
    settings = {
        "out": tmp_path / "store",
        "model": {"kind": "hf-vlm", "name": str(make_llava(tmp_path))},
        "source": {"kind": "scenes", "n_records": 3, "image_size": 24, "captions_per_image": 2},
        "hook_points": ["vision.1", "text.1"],
    }
    store = open_store(run(validate(HarvestConfig, settings, "test")))
    assert store.rows("vision.1") == 3 * 17
    kinds = store.column_of("text.1", "kind")
    assert (kinds == TokenKind.IMAGE).sum() == 6 * 16
    adapter = open_adapter(HFVisionLanguageModel(name=str(tmp_path)), CPU)
    (point,) = adapter.resolve(["text.1"], ["text"])
    record = next(iter(open_source(validate(HarvestConfig, settings, "test").source).records(0, 1)))
    assert isinstance(record.image, Image.Image)
    with torch.inference_mode():
        inputs = adapter.prepare_pairs([record.image], [record.texts[1].text])
        expected = adapter.capture(inputs, [point])["text.1"][0]
    rows = (store.item_of("text.1") == 1).nonzero()[0]
    torch.testing.assert_close(store.read("text.1", int(rows[0]), int(rows[-1]) + 1), expected)


def test_a_harvest_keeps_the_patches_of_images_of_any_size(tmp_path: Path) -> None:
    """Of an encoder with all images in one row: the store has each image's own patches, alone or among others."""
    folder = save_qwen25(tmp_path / "model")
    pictures = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((48, 32), (32, 80), (64, 64))]
    examples = MemorySource([(picture, "a word") for picture in pictures])
    stores = [
        open_store(run(validate(HarvestConfig, settings, "test"), source=examples))
        for batch_size in (1, 3)
        for settings in [
            {
                "out": tmp_path / f"store{batch_size}",
                "model": {"kind": "hf-vlm", "name": str(folder)},
                "source": {"kind": "in-memory"},
                "hook_points": ["vision.*"],
                "batch_size": batch_size,
            }
        ]
    ]
    for store in stores:
        assert store.item_of("vision.1").tolist() == [0] * 24 + [1] * 40 + [2] * 64
        assert store.position_of("vision.1").tolist() == [*range(24), *range(40), *range(64)]
        places = list(zip(store.column_of("vision.1", "patch_row"), store.column_of("vision.1", "patch_column"), strict=True))
        assert sorted(places[24:64]) == [(row, column) for row in range(10) for column in range(4)]
    for name in stores[0].hook_points:
        alone, among = (store.read(name, 0, store.rows(name)) for store in stores)
        torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-5)
