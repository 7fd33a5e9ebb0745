"""Laws of training a small CLIP, and the one that ships."""

import json
import math
from importlib import resources
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from thresher.config import load_config, validate
from thresher.data.records import Record, Text, Unreadable
from thresher.data.sources import Scenes, open_source
from thresher.errors import ConfigError, ModelError, SourceError
from thresher.harvest.pretrain import PretrainConfig, checkpoint_path, run
from thresher.harvest.pretrain.evaluate import (
    embed_images,
    embed_texts,
    estimate,
    estimate_share,
    measure_retrieval,
    rank_partners,
)
from thresher.harvest.pretrain.loop import contrast, fit, shift
from thresher.harvest.pretrain.model import load_tokenizer, make_transform, normalize
from thresher.harvest.pretrain.pairs import quantize, read_pairs
from thresher.harvest.pretrain.run import _prepare, _recipe
from thresher.harvest.pretrain.vocabulary import END, save_tokenizer, train_tokenizer

CAPTIONS = ["A red square.", "two red circles, left of a square", "caf\u00e9 no. 7!"]


def make_config(out: Path, **fields: object) -> PretrainConfig:
    tiny = {
        "source": {"kind": "scenes", "n_records": 160, "image_size": 16, "captions_per_image": 2},
        "out": str(out),
        "held_out": 32,
        "vision": {"width": 32, "layers": 1, "heads": 2, "image_size": 16},
        "text": {"width": 32, "layers": 1, "heads": 2},
        "embed_dim": 16,
        "steps": 20,
        "batch_size": 32,
        "warmup_steps": 2,
        "learning_rate": 0.003,
        "zero_shot": {"shape": ["a picture of a {}"], "colour": ["a small {} thing", "a large {} thing"]},
        "zero_shot_among": ["count/one"],
    }
    return validate(PretrainConfig, tiny | fields, "here")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(make_config(tmp_path_factory.mktemp("clip") / "one"))


def fit_twenty_steps(out: Path, **fields: object) -> list[float]:
    tower = {"width": 64, "layers": 1, "heads": 2}
    small = {"vision": tower | {"image_size": 48}, "text": tower, "embed_dim": 32, "batch_size": 64, "learning_rate": 0.001}
    config = make_config(out, **small, **fields)
    pairs = read_pairs(open_source(config.source), 0, 128, 48)
    prepared = _prepare(config, pairs)
    return [step.loss.item() for step in fit(prepared.model, pairs.images, prepared.captions, config)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twenty_steps_lower_the_loss_below_chance(seed: int, tmp_path: Path) -> None:
    """Embeddings that collapse to one point reach chance, log(64), from the higher loss of random ones, and no less."""
    losses = fit_twenty_steps(tmp_path, seed=seed)
    assert np.mean(losses[-5:]) < math.log(64) - 0.1 < np.mean(losses[:5])


def test_the_same_settings_give_the_same_checkpoint(trained: Path, tmp_path: Path) -> None:
    again = run(make_config(tmp_path / "two"))
    names = ["open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json", "training.jsonl"]
    assert [(again / name).read_bytes() for name in names] == [(trained / name).read_bytes() for name in names]
    one, two = (json.loads((folder / "card.json").read_text()) for folder in (trained, again))
    assert one["measured_on_held_out"] == two["measured_on_held_out"]
    assert one["recipe"] == two["recipe"]


def test_another_seed_gives_another_checkpoint(trained: Path, tmp_path: Path) -> None:
    other = run(make_config(tmp_path / "other", seed=1))
    name = "open_clip_model.safetensors"
    assert (other / name).read_bytes() != (trained / name).read_bytes()


def test_a_finished_folder_is_left_alone_and_another_recipe_is_not(tmp_path: Path) -> None:
    config = make_config(tmp_path / "clip", steps=2)
    card = run(config) / "card.json"
    before = card.stat().st_mtime_ns
    run(config)
    assert card.stat().st_mtime_ns == before
    run(make_config(tmp_path / "clip", steps=3))
    assert json.loads(card.read_text())["recipe"]["steps"] == 3


def test_open_clip_loads_the_folder_and_repeats_its_measurement(trained: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{trained}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{trained}")
    card = json.loads((trained / "card.json").read_text())
    records = list(open_source(Scenes(n_records=160, image_size=16, captions_per_image=2)).records(128))
    with torch.inference_mode():
        image = model.eval().encode_image(torch.stack([preprocess(record.image) for record in records]), normalize=True)
        text = model.encode_text(tokenizer([record.texts[0].text for record in records]), normalize=True)
    found = measure_retrieval(image, text)["mean_r@1"].mean
    assert found == pytest.approx(card["measured_on_held_out"]["retrieval_among_256"]["mean_r@1"]["mean"])


def test_the_card_says_what_was_made_from_what(trained: Path) -> None:
    card = json.loads((trained / "card.json").read_text())
    assert card["pairs_trained_on"] == 128
    assert card["measured_on_held_out"]["pairs"] == 32
    assert card["captions_cut"] == 0
    assert set(card["measured_on_held_out"]["zero_shot"]) == {"shape", "colour"}
    assert card["data_fingerprint"] == open_source(make_config(trained).source).fingerprint
    assert "out" not in card["recipe"]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    layout = {"model_cfg": {"text_cfg": {"context_length": 8, "hf_tokenizer_name": "tokenizer"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(layout))
    save_tokenizer(train_tokenizer(CAPTIONS, max_words=100), tmp_path, 8)
    return tmp_path


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=5))
def test_argmax_of_the_ids_is_the_end_mark_of_any_text(texts: list[str]) -> None:
    tokenizer = train_tokenizer(CAPTIONS, max_words=100)
    end = tokenizer.token_to_id(END)
    assert end == tokenizer.get_vocab_size() - 1
    for encoding in tokenizer.encode_batch(texts):
        if END not in "".join(texts):
            assert encoding.ids.count(end) == 1
        assert int(np.argmax(encoding.ids)) == encoding.ids.index(end)


def test_texts_are_padded_cut_and_pooled_at_the_end_mark(words: Path) -> None:
    tokenizer = load_tokenizer(words)
    ids = tokenizer(["a red square", "two red circles left of a square and more words", "", "zebra"])
    assert ids.shape == (4, 8)
    end = ids.max().item()
    assert (ids == end).sum(dim=1).tolist() == [1, 1, 1, 1]
    assert ids.argmax(dim=1).tolist() == [4, 7, 1, 2]
    assert ids[3].tolist() == [2, 1, end, 0, 0, 0, 0, 0]


def test_case_and_punctuation_do_not_matter(words: Path) -> None:
    tokenizer = load_tokenizer(words)
    plain, shouted = tokenizer(["a red square", "  A RED, square!! "])
    assert plain.tolist() == shouted.tolist()


def test_the_vocabulary_keeps_the_most_frequent_words() -> None:
    vocabulary = train_tokenizer(CAPTIONS, max_words=3).get_vocab()
    assert set(vocabulary) == {"<pad>", "<unk>", "<bos>", "<eos>", "a", "red", "square"}


def test_pooling_picks_the_output_at_the_end_mark(trained: Path) -> None:
    model = open_clip.create_model(f"local-dir:{trained}").eval()
    tokenizer = load_tokenizer(trained)
    ids = tokenizer(["a red square", "two small blue circles left of a large green star"])
    seen: list[torch.Tensor] = []
    model.ln_final.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        text = model.encode_text(ids)
        end = [row.tolist().index(ids.max().item()) for row in ids]
        expected = seen[0][torch.arange(2), torch.tensor(end)] @ model.text_projection
    torch.testing.assert_close(text, expected)
    assert end == [4, 11]


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_contrast_is_the_mean_of_both_cross_entropies(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    image, text = (functional.normalize(torch.randn(rows, 5, generator=generator), dim=1) for _ in range(2))
    logits = 3.0 * image.double() @ text.double().T
    diagonal = logits.diagonal()
    expected = ((logits.logsumexp(1) - diagonal).mean() + (logits.logsumexp(0) - diagonal).mean()) / 2
    torch.testing.assert_close(contrast(image, text, torch.tensor(3.0)), expected.float())


@pytest.mark.parametrize(("rows", "reach"), [(1, 1), (7, 3), (3, 0)])
def test_a_shift_moves_the_inside_of_each_picture(rows: int, reach: int) -> None:
    images = torch.randint(0, 256, (rows, 3, 9, 11), dtype=torch.uint8)
    moved = shift(images, reach, torch.Generator().manual_seed(0))
    for before, after in zip(images, moved, strict=True):
        offsets = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
        inside = after[:, reach : 9 - reach, reach : 11 - reach]
        found = [before[:, reach + y : 9 - reach + y, reach + x : 11 - reach + x].equal(inside) for y, x in offsets]
        assert sum(found) == 1


def test_bytes_of_a_picture_of_the_right_size_are_kept() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    kept = quantize(make_transform(48)(Image.fromarray(pixels)))
    assert np.array_equal(kept.permute(1, 2, 0).numpy(), pixels)


def test_normalized_bytes_are_what_open_clip_feeds(trained: Path) -> None:
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{trained}")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    ours = normalize(quantize(make_transform(16)(picture))[None])[0]
    torch.testing.assert_close(ours, preprocess(picture), rtol=0, atol=1e-6)


def test_ties_count_against_the_model() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 0.4], [0.0, 0.9, 0.1]])
    assert rank_partners(scores).tolist() == [1, 0, 1]
    same = torch.ones(300, 4) / 2
    assert measure_retrieval(same, same)["mean_r@1"].mean == 0


def test_perfect_embeddings_are_found() -> None:
    unit = torch.eye(512)
    assert {value.mean for value in measure_retrieval(unit, unit).values()} == {1.0}


def test_the_interval_is_students() -> None:
    found = estimate([0.7, 0.8, 0.75])
    assert found.mean == pytest.approx(0.75)
    # t(0.975, 2) = 4.3027, deviation 0.05, three draws
    assert found.high - found.mean == pytest.approx(4.3027 * 0.05 / math.sqrt(3), rel=1e-4)
    assert estimate([0.5]) == (0.5, 0.0, 1.0)


def test_the_interval_of_a_single_draw_is_wilsons() -> None:
    # 10 of 100, z = 1.96: the textbook's 0.0552 to 0.1744
    assert estimate_share(0.1, 100) == pytest.approx((0.1, 0.05523, 0.17437), abs=1e-5)
    unit = torch.eye(64)
    found = measure_retrieval(unit, unit)["mean_r@1"]
    assert found == estimate_share(1.0, 64)
    assert 0.9 < found.low < found.high == pytest.approx(1)


def test_a_source_of_its_own_is_held_out_whole(tmp_path: Path) -> None:
    scenes = {"kind": "scenes", "image_size": 16, "seed": 5, "n_records": 24}
    card = json.loads((run(make_config(tmp_path, held_out=scenes, steps=2)) / "card.json").read_text())
    assert card["pairs_trained_on"] == 160
    assert card["measured_on_held_out"]["pairs"] == 24


class Listed:
    """A source of given records."""

    modalities = ("image", "text")
    concepts = ()
    fingerprint = "0"

    def __init__(self, *records: Record) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def records(self, start: int = 0, stop: int | None = None):
        return iter(self._records[start:stop])


def test_records_that_are_no_pairs_are_left_out() -> None:
    white = Image.new("RGB", (20, 30), (255, 255, 255))
    source = Listed(
        Record("a", white, texts=(Text("one"),)),
        Record("b", Unreadable("b.png: truncated"), texts=(Text("two"),)),
        Record("c", white),
        Record("d", None, texts=(Text("three"),)),
        Record("e", white, texts=(Text("four"), Text("five"))),
    )
    pairs = read_pairs(source, 0, 5, 16)
    assert pairs.texts == (("one",), ("four", "five"))
    assert pairs.images.shape == (2, 3, 16, 16)
    with pytest.raises(SourceError, match="no readable picture with a caption"):
        read_pairs(source, 1, 4, 16)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"held_out": 160}, "held_out=160"),
        (
            {"held_out": {"kind": "scenes", "n_records": 160, "image_size": 16, "captions_per_image": 2}},
            "the records to train on",
        ),
        ({"zero_shot": {"smell": ["a {}"]}}, "zero_shot.smell"),
        ({"zero_shot_among": ["count/on"]}, "did you mean .count/one"),
    ],
)
def test_a_recipe_that_does_not_fit_its_source_is_refused(fields: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        run(make_config(tmp_path, **fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"batch_size": 1}, "batch_size=1"),
        ({"vision": {"heads": 3}}, "heads=3"),
        ({"vision": {"patch_size": 7}}, "patch_size=7"),
        ({"text": {"context_length": 2}}, "context_length=2"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_nonsense_is_refused_by_name(fields: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        make_config(tmp_path, **fields)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lower learning_rate"):
        run(make_config(tmp_path, learning_rate=1e30, warmup_steps=0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='cuda'"):
        run(make_config(tmp_path, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda_lowers_the_loss_below_chance(tmp_path: Path) -> None:
    assert np.mean(fit_twenty_steps(tmp_path, device="cuda")[-5:]) < math.log(64) - 0.1


def test_captions_longer_than_the_context_are_counted(tmp_path: Path) -> None:
    folder = run(make_config(tmp_path, text={"width": 32, "layers": 1, "heads": 2, "context_length": 5}, steps=1))
    assert json.loads((folder / "card.json").read_text())["captions_cut"] > 100


MARGIN = 0.08
"""One draw of 256 pairs has a standard deviation of about 0.025 around the mean of many."""


def test_the_shipped_checkpoint_keeps_what_its_card_says() -> None:
    folder = checkpoint_path()
    card = json.loads((folder / "card.json").read_text())
    recipe = validate(PretrainConfig, card["recipe"] | {"out": "unused"}, "card")
    source = open_source(recipe.source)
    assert source.fingerprint == card["data_fingerprint"]
    pairs = read_pairs(source, len(source) - 256, len(source), recipe.vision.image_size)
    model, tokenizer = open_clip.create_model(f"local-dir:{folder}"), load_tokenizer(folder)
    image = embed_images(model, pairs.images, "cpu")
    text = embed_texts(model, [texts[0] for texts in pairs.texts], tokenizer, "cpu")
    stated = card["measured_on_held_out"]["retrieval_among_256"]
    for name, found in measure_retrieval(image, text).items():
        assert abs(found.mean - stated[name]["mean"]) < MARGIN, name
    assert stated["mean_r@1"]["low"] > 0.7


def test_the_shipped_checkpoint_is_small_and_was_made_by_the_recipe_in_configs() -> None:
    folder = checkpoint_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000
    card = json.loads((folder / "card.json").read_text())
    recipe = load_config(PretrainConfig, Path(str(resources.files("thresher") / "configs" / "clip-scenes.yaml")))
    assert _recipe(recipe) == card["recipe"]
    assert json.loads((folder / "training.jsonl").read_text().splitlines()[-1])["step"] == recipe.steps
