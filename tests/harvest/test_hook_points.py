"""Names, globs and modules: what they stand for, and what is said when they stand for nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from thresher.config import validate
from thresher.errors import ConfigError, ModelError
from thresher.harvest.adapters import Adapter, HFCausalLMModel, HFClipModel, HFVisionLanguageModel, OpenClipModel, open_adapter
from thresher.harvest.adapters.base import Inputs, Layout, TokenKind
from thresher.harvest.adapters.hooks import HookedModel
from thresher.harvest.adapters.taps import Tower, tap_output
from thresher.harvest.rows import select_tokens
from thresher.harvest.run import HarvestConfig, run
from thresher.testing.probes import count_hooks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapter(open_clip_folder: Path) -> Adapter:
    return open_adapter(OpenClipModel(name=f"local-dir:{open_clip_folder}"), CPU)


def names(adapter: Adapter, *patterns: str) -> list[str]:
    return [point.name for point in adapter.resolve(patterns, adapter.modalities)]


def test_globs_and_names_mix(adapter: Adapter) -> None:
    assert names(adapter, "vision.[01]") == ["vision.0", "vision.1"]
    assert names(adapter, "text.embed", "*.pooled") == ["text.embed", "vision.pooled", "text.pooled"]
    assert names(adapter, "module:visual.transformer.resblocks.*.mlp") == [
        f"module:visual.transformer.resblocks.{i}.mlp" for i in range(2)
    ]


def test_globs_speak_of_the_towers_that_have_input(adapter: Adapter) -> None:
    assert {point.modality for point in adapter.resolve(["*"], ["text"])} == {"text"}
    with pytest.raises(ModelError, match=r"vision\.0: the source has nothing for this tower"):
        adapter.resolve(["vision.0"], ["text"])
    with pytest.raises(ModelError, match="nothing matches"):
        adapter.resolve(["vision.*"], ["text"])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("vision.7", "vision.1"), ("vison.pooled", "vision.pooled"), ("text.embedding", "text.embed")],
)
def test_an_unknown_name_lists_the_nearest(adapter: Adapter, name: str, nearest: str) -> None:
    with pytest.raises(ModelError, match=f"{name}: this model has no such place; nearest: .*{nearest}"):
        names(adapter, name)


def test_an_unknown_module_lists_the_nearest(adapter: Adapter) -> None:
    with pytest.raises(ModelError, match=r"nearest: .*visual\.transformer\.resblocks\.1"):
        names(adapter, "module:visual.transformer.resblocks.5")


def test_a_module_knows_its_tower_and_level(adapter: Adapter) -> None:
    paths = ["module:visual.transformer.resblocks.0.ln_1", "module:visual", "module:ln_final"]
    found = adapter.resolve(paths, adapter.modalities)
    assert [point.space for point in found] == ["image.tokens", "image.items", "text.tokens"]


def test_a_module_that_is_never_called_is_named(adapter: Adapter) -> None:
    with pytest.raises(ModelError, match=r"module:visual\.transformer\.resblocks: never fires"):
        names(adapter, "module:visual.transformer.resblocks")


def test_a_module_with_another_shape_is_refused(adapter: Adapter) -> None:
    with pytest.raises(ModelError, match=r"module:visual\.conv1: gives \[1, 32, 4, 4\]; expected \[item, d\]"):
        names(adapter, "module:visual.conv1")


def test_the_eot_position_of_the_old_rule_is_the_largest_token_id(make_hf_clip: Callable[..., Path]) -> None:
    folder = make_hf_clip(("<pad>", "<bos>", "<eos>"), eos=2)
    inputs = open_adapter(HFClipModel(name=str(folder)), CPU).prepare_texts(["a red square"])
    ids = inputs.tensors["input_ids"][0]
    assert inputs.layout.summary is not None
    assert ids[-1] == 2
    assert inputs.layout.summary[0] == ids.argmax() != len(ids) - 1


@pytest.mark.parametrize("padding", [True, "max_length"])
def test_token_ids_are_the_tokenizers_own(hf_clip_folder: Path, siglip_folder: Path, padding: bool | str) -> None:
    folder = hf_clip_folder if padding is True else siglip_folder
    texts = ["a red square", "one word after another and no end, short or long", "x"]
    found = open_adapter(HFClipModel(name=str(folder)), CPU).prepare_texts(texts)
    own = AutoTokenizer.from_pretrained(folder)(texts, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    assert torch.equal(found.tensors["input_ids"], own["input_ids"])
    assert torch.equal(found.layout.valid, own["attention_mask"].bool())


def test_padding_that_is_read_stands_where_the_tokenizer_puts_it(siglip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    shutil.copytree(siglip_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(folder)
    found = open_adapter(HFClipModel(name=str(folder)), CPU).prepare_texts(["a red square", "x"])
    own = tokenizer(["a red square", "x"], padding="max_length", max_length=16, return_tensors="pt")
    assert torch.equal(found.tensors["input_ids"], own["input_ids"])
    assert torch.equal(found.layout.valid, own["attention_mask"].bool())
    assert found.layout.summary is not None
    assert found.layout.summary.tolist() == [15, 15]


def test_siglip_has_no_cls(siglip_folder: Path) -> None:
    adapter = open_adapter(HFClipModel(name=str(siglip_folder)), CPU)
    layout = adapter.prepare_images([Image.new("RGB", (32, 32))]).layout
    assert layout.valid.shape == (1, 16)
    with pytest.raises(ModelError, match="no CLS token"):
        select_tokens(layout, "cls")


def test_siglip_pools_texts_at_the_last_position_padding_or_not(siglip_folder: Path) -> None:
    layout = open_adapter(HFClipModel(name=str(siglip_folder)), CPU).prepare_texts(["a"]).layout
    rows = select_tokens(layout, "eot")
    assert rows.position.tolist() == [15]
    assert select_tokens(layout, "all").position.tolist() == list(range(int(layout.valid.sum())))


def test_other_model_types_are_refused(llama_folder: Path) -> None:
    with pytest.raises(
        ModelError, match="'llama' has no pair of towers for images and texts; for a language model use kind hf-causal-lm"
    ):
        open_adapter(HFClipModel(name=str(llama_folder)), CPU)


def test_weights_must_be_named() -> None:
    with pytest.raises(ConfigError, match="only an architecture"):
        OpenClipModel(name="ViT-B-32")
    with pytest.raises(ConfigError, match="brings its own weights"):
        OpenClipModel(name="scenes", pretrained="openai")


def test_an_unknown_architecture_lists_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no architecture 'ViT-B-33'; nearest: .*ViT-B-32"):
        open_adapter(OpenClipModel(name="ViT-B-33", pretrained="openai"), CPU)


def test_untrained_weights_follow_the_seed() -> None:
    first, second = (
        open_adapter(OpenClipModel(name="ViT-S-32-alt", pretrained="random", seed=seed), CPU).identity["weights"]
        for seed in (0, 1)
    )
    assert first != second


def test_missing_weights_are_an_error_not_a_random_model(tmp_path: Path, open_clip_folder: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text((open_clip_folder / "open_clip_config.json").read_text())
    with pytest.raises(ModelError, match="cannot load"):
        open_adapter(OpenClipModel(name=f"local-dir:{tmp_path}"), CPU)


def test_damaged_weights_are_refused_and_a_path_is_no_hub_id(
    tmp_path: Path, open_clip_folder: Path, llama_folder: Path
) -> None:
    for folder, weights in ((open_clip_folder, "open_clip_model.safetensors"), (llama_folder, "model.safetensors")):
        shutil.copytree(folder, tmp_path / folder.name, symlinks=False)
        path = tmp_path / folder.name / weights
        path.write_bytes(path.read_bytes()[:-40])
    for model in (
        OpenClipModel(name=f"local-dir:{tmp_path / open_clip_folder.name}"),
        HFCausalLMModel(name=str(tmp_path / llama_folder.name)),
    ):
        with pytest.raises(ModelError, match=r"cannot load .*(deserializ|incomplete|corrupt)"):
            open_adapter(model, CPU)
    with pytest.raises(ModelError, match=r"\./nowhere: no such file or folder; give one that is there, or a hub id"):
        open_adapter(HFCausalLMModel(name="./nowhere"), CPU)
    with pytest.raises(
        ModelError, match=r"as AutoModelForImageTextToText: Unrecognized .*; name the family it is of by model\.kind"
    ):
        open_adapter(HFVisionLanguageModel(name=str(llama_folder)), CPU)


def test_a_mirror_stands_for_the_hub(open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "clip").symlink_to(open_clip_folder)
    monkeypatch.setenv("THRESHER_HUB", str(tmp_path))
    direct = open_adapter(OpenClipModel(name=f"local-dir:{open_clip_folder}"), CPU)
    for model in (OpenClipModel(name="hf-hub:someone/clip"), OpenClipModel(name="ViT-B-32", pretrained="someone/clip")):
        mirrored = open_adapter(model, CPU)
        assert mirrored.identity["weights"] == direct.identity["weights"]
        assert mirrored.identity["name"] == model.name


class Toy(nn.Module):
    """A model with the habits that break captures: in-place writes, a module called twice, a module that branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.rare = nn.Linear(4, 4)
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x.mul_(2.0)
        x = self.twice(self.twice(x))
        x = self.pair(x)["x"]
        return self.rare(x) if len(x) == 1 else x


class Pair(nn.Module):
    """Gives no tensor."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


@pytest.fixture
def toy() -> HookedModel:
    torch.manual_seed(0)
    model = Toy()
    tower = Tower(lambda inputs: model(inputs.tensors["x"]), {"text.0": tap_output(model.first)}, lambda: toy_inputs(1))
    return HookedModel(model, {"text": tower}, CPU)


def toy_inputs(n: int) -> Inputs:
    kind = torch.full((n, 3), TokenKind.TEXT, dtype=torch.int8)
    return Inputs("text", {"x": torch.ones(n, 3, 4)}, Layout(kind, None, None, (False,) * n))


def test_an_activation_that_the_model_overwrites_is_kept_as_it_was(toy: HookedModel) -> None:
    (point,) = toy.resolve(["text.0"], ["text"])
    assert point.is_overwritten
    inputs = toy_inputs(1)
    with torch.inference_mode():
        expected = toy.model.get_submodule("first")(inputs.tensors["x"])
        assert torch.equal(toy.capture(inputs, [point])["text.0"], expected)


def test_a_module_that_is_called_twice_is_refused(toy: HookedModel) -> None:
    with pytest.raises(ModelError, match="module:twice: fires 2 times"):
        toy.resolve(["module:twice"], ["text"])


def test_a_module_that_gives_no_tensor_is_refused(toy: HookedModel) -> None:
    with pytest.raises(ModelError, match="module:pair: the module gives dict, not a tensor"):
        toy.resolve(["module:pair"], ["text"])


def test_a_module_that_stops_firing_is_named(toy: HookedModel) -> None:
    (point,) = toy.resolve(["module:rare"], ["text"])
    with torch.inference_mode(), pytest.raises(ModelError, match="module:rare: never fires"):
        toy.capture(toy_inputs(2), [point])


# Inputs, elements, heads


def capture_one(adapter: Adapter, name: str, text: str = "a red square") -> Tensor:
    (point,) = adapter.resolve([name], adapter.modalities)
    inputs = adapter.prepare_texts([text])
    with torch.inference_mode():
        return adapter.capture(inputs, [point])[name]


def test_what_goes_into_a_module_and_what_comes_out(adapter: Adapter) -> None:
    before = capture_one(adapter, "module:transformer.resblocks.0@out")
    assert torch.equal(capture_one(adapter, "module:transformer.resblocks.1@in"), before)
    assert torch.equal(capture_one(adapter, "module:transformer.resblocks.1@in[0]"), before)
    assert torch.equal(capture_one(adapter, "text.1.in"), capture_one(adapter, "text.0"))


def test_elements_are_named_by_place_argument_or_field(llama_folder: Path) -> None:
    adapter = open_adapter(HFCausalLMModel(name=str(llama_folder)), CPU)
    final = capture_one(adapter, "text.final")
    assert torch.equal(capture_one(adapter, "module:model@out[last_hidden_state]"), final)
    assert torch.equal(capture_one(adapter, "module:model@out[0]"), final)
    normed = capture_one(adapter, "module:model.layers.1.input_layernorm")
    assert torch.equal(capture_one(adapter, "module:model.layers.1.self_attn@in[hidden_states]"), normed)


def test_an_element_that_is_not_there_lists_those_that_are(llama_folder: Path) -> None:
    adapter = open_adapter(HFCausalLMModel(name=str(llama_folder)), CPU)
    with pytest.raises(ModelError, match=r"model@out\[states\]: there is no element \[states\].* with last_hidden_state"):
        adapter.resolve(["module:model@out[states]"], ["text"])
    with pytest.raises(ModelError, match=r"self_attn@in\[x\]: there is no argument \[x\].* with \[hidden_states\]"):
        adapter.resolve(["module:model.layers.1.self_attn@in[x]"], ["text"])
    with pytest.raises(ModelError, match=r"layers\.1@in\[hidden_states\]: .* it is called with \[0\], \["):
        adapter.resolve(["module:model.layers.1@in[hidden_states]"], ["text"])


def test_heads_are_equal_parts_of_any_hook_point(adapter: Adapter) -> None:
    assert names(adapter, "text.0.z/heads") == ["text.0.z/head=0/2", "text.0.z/head=1/2"]
    assert names(adapter, "text.*.z/head=1/2") == ["text.0.z/head=1/2", "text.1.z/head=1/2"]
    whole = capture_one(adapter, "module:transformer.resblocks.0.ln_1")
    part = capture_one(adapter, "module:transformer.resblocks.0.ln_1/head=2/4")
    assert torch.equal(part, whole[..., 16:24])


def test_one_head_can_be_replaced_alone(adapter: Adapter) -> None:
    before = capture_one(adapter, "text.0.z")
    with adapter.splice("text.0.z/head=1/2", torch.zeros_like):
        after = capture_one(adapter, "text.0.z")
    assert torch.equal(after[..., :16], before[..., :16])
    assert not after[..., 16:].any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.0/heads", "how many heads text.0 has is not known; write /heads=12"),
        ("text.0/heads=5", r"text\.0/head=0/5: a width of 32 does not fall into 5 equal parts"),
        ("text.0/head=2/2", "there is no such part"),
        ("text.0/head", "'head' is no split; write /heads=12"),
        ("module:transformer@left", "'@left' is no side of a module; write @in or @out"),
        ("module:transformer@out[0", "is no side of a module"),
        ("text.z", r"nearest: .*text\.0\.z"),
        ("text.*.query", "nothing matches"),
    ],
)
def test_a_malformed_name_says_how_to_write_it(adapter: Adapter, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        adapter.resolve([name], adapter.modalities)


def test_globs_do_not_cross_dots_unless_they_shall(adapter: Adapter) -> None:
    assert names(adapter, "text.*") == ["text.start", "text.0", "text.1", "text.final", "text.pooled", "text.embed"]
    assert names(adapter, "text.*.attn") == ["text.0.attn", "text.1.attn"]
    assert names(adapter, "text.0.**") == [f"text.0.{part}" for part in ("in", "z", "attn", "mlp_in", "neurons", "mlp")]
    assert names(adapter, "*") == [name for name in adapter.hook_points if name.count(".") == 1]
    assert names(adapter, "**") == list(adapter.hook_points)


# Where a forward pass ends, and what is left of it


def test_a_forward_pass_ends_where_the_last_capture_is(adapter: Adapter) -> None:
    reached: list[str] = []
    model: nn.Module = adapter.model
    for path in ("transformer.resblocks.0", "transformer.resblocks.1", "ln_final"):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: reached.append(path))
    for name, expected in (("text.0.mlp", 0), ("text.0", 1), ("text.1.in", 1), ("text.1", 2), ("text.embed", 3)):
        reached.clear()
        capture_one(adapter, name)
        # Resolving runs the whole tower once before.
        assert len(reached) - 3 == expected, name


def test_no_hook_is_left_when_an_element_is_missing(llama_folder: Path) -> None:
    adapter = open_adapter(HFCausalLMModel(name=str(llama_folder)), CPU)
    before = count_hooks(adapter.model)
    with pytest.raises(ModelError):
        adapter.resolve(["text.*", "module:model@out[states]"], ["text"])
    assert count_hooks(adapter.model) == before


class Growing(nn.Module):
    """Gives as many columns as there are items, and the same places flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Identity()
        self.flat = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.flat(x.flatten(0, 1))
        return self.wide(x.repeat(1, 1, len(x)))


@pytest.fixture
def growing() -> HookedModel:
    model = Growing()
    taps = {"text.0": tap_output(model.wide)}
    return HookedModel(model, {"text": Tower(lambda i: model(i.tensors["x"]), taps, lambda: toy_inputs(1))}, CPU)


def test_a_width_that_changes_between_batches_is_refused(growing: HookedModel) -> None:
    (point,) = growing.resolve(["text.0"], ["text"])
    with pytest.raises(ModelError, match=r"text\.0: its width is 8 in this batch, 4 in the first"):
        growing.capture(toy_inputs(2), [point])


def test_places_of_a_flattened_batch_are_told_apart(growing: HookedModel) -> None:
    (point,) = growing.resolve(["module:flat"], ["text"])
    inputs = toy_inputs(2)
    assert point.level == "tokens"
    assert torch.equal(growing.capture(inputs, [point])["module:flat"], inputs.tensors["x"])


@pytest.mark.parametrize(("precision", "advice"), [("bfloat16", "compute in float32 "), ("float32", "leave such rows out")])
def test_nan_names_the_hook_point_and_the_precision(
    open_clip_folder: Path, tmp_path: Path, precision: str, advice: str
) -> None:
    folder = tmp_path / "sick"
    shutil.copytree(open_clip_folder, folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.ln_post.weight"][3] = torch.nan
    save_file(weights, folder / "open_clip_model.safetensors")
    settings = {
        "out": tmp_path / "store",
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}", "precision": precision},
        "source": {"kind": "scenes", "n_records": 2, "image_size": 24},
        "hook_points": ["vision.0", "vision.pooled"],
    }
    with pytest.raises(ModelError, match=rf"hook point vision\.pooled, .*: the model gives NaN in {precision}; {advice}"):
        run(validate(HarvestConfig, settings, "test"))
