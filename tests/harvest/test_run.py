"""The harvest end to end: every stored value against the model's own, policies, resuming."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from thresher.config import load_config, validate
from thresher.data.sources import open_source
from thresher.data.store import Store, open_store, verify_store
from thresher.errors import ConfigError, ModelError, SourceError, StoreError
from thresher.harvest.adapters import open_adapter
from thresher.harvest.run import HarvestConfig, run

CPU = torch.device("cpu")
HOOK_POINTS = ("vision.0", "vision.1", "vision.pooled", "vision.embed", "text.1", "text.pooled", "text.embed")
SCENES: dict[str, Any] = {"kind": "scenes", "n_records": 13, "image_size": 24, "captions_per_image": 2}


def make_config(out: Path, folder: Path, **changes: Any) -> HarvestConfig:
    values: dict[str, Any] = {
        "out": out,
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
        "source": SCENES,
        "hook_points": HOOK_POINTS,
        "batch_size": 4,
        "thumbnail": 8,
    }
    return validate(HarvestConfig, values | changes, "test")


def read_all(store: Store, hook_point: str) -> Tensor:
    return store.read(hook_point, 0, store.rows(hook_point))


def item_table(store: Store, modality: Any) -> list[dict[str, Any]]:
    table: pa.Table = store.items(modality)
    return table.to_pylist()


def harvest_by_hand(settings: HarvestConfig) -> dict[str, Tensor]:
    """What the store must hold, by the model's own methods on the same batches, all tokens kept."""
    model: Any = open_adapter(settings.model, CPU)
    own, source = model.model, open_source(settings.source)
    found: dict[str, list[Tensor]] = {name: [] for name in settings.hook_points}
    blocks = {"vision.0": own.visual.transformer.resblocks[0], "vision.1": own.visual.transformer.resblocks[1]}
    blocks["text.1"] = own.transformer.resblocks[1]
    seen: dict[str, Tensor] = {}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _m, _a, output, name=name: seen.update({name: output}))
    for start in range(0, len(source), settings.batch_size):
        records = list(source.records(start, start + settings.batch_size))
        texts = [text.text for record in records for text in record.texts]
        with torch.inference_mode():
            found["vision.embed"].append(own.encode_image(model.prepare_images([r.image for r in records]).tensors["pixels"]))
            for name in ("vision.0", "vision.1"):
                found[name].append(seen[name].flatten(0, 1))
            for at in range(0, len(texts), settings.batch_size):
                inputs = model.prepare_texts(texts[at : at + settings.batch_size])
                found["text.embed"].append(own.encode_text(inputs.tensors["ids"]))
                found["text.1"].append(seen["text.1"][inputs.layout.valid])
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


def test_every_stored_value_is_the_models_own(open_clip_folder: Path, tmp_path: Path) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    store = open_store(run(settings))
    assert tuple(store.hook_points) == HOOK_POINTS
    expected = harvest_by_hand(settings)
    assert set(expected) == set(HOOK_POINTS) - {"vision.pooled", "text.pooled"}
    for name, values in expected.items():
        assert torch.equal(read_all(store, name), values), name
    assert verify_store(store.path, level="checksums") == []


def test_pooled_rows_project_onto_the_embeddings(open_clip_folder: Path, tmp_path: Path) -> None:
    store = open_store(run(make_config(tmp_path / "store", open_clip_folder)))
    own: Any = open_adapter(make_config(tmp_path, open_clip_folder).model, CPU)
    weights = {"vision": own.model.visual.proj, "text": own.model.text_projection}
    for tower, weight in weights.items():
        projected = read_all(store, f"{tower}.pooled") @ weight
        torch.testing.assert_close(projected, read_all(store, f"{tower}.embed"))


def test_rows_know_their_item_position_and_token(open_clip_folder: Path, tmp_path: Path) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    store = open_store(run(settings))
    assert store.item_of("vision.0").tolist() == [i for i in range(13) for _ in range(17)]
    assert store.position_of("vision.0").tolist() == list(range(17)) * 13
    assert store.position_of("vision.embed").tolist() == [-1] * 13
    adapter = open_adapter(settings.model, CPU)
    texts = [text.text for record in open_source(settings.source).records() for text in record.texts]
    layout = adapter.prepare_texts(texts).layout
    assert layout.token_id is not None
    assert store.token_id_of("text.1").tolist() == layout.token_id[layout.valid].tolist()
    assert store.item_of("text.1").tolist() == layout.valid.nonzero()[:, 0].tolist()
    assert store.position_of("text.1").tolist() == layout.valid.nonzero()[:, 1].tolist()


def test_items_pairs_and_truth_come_from_the_source(open_clip_folder: Path, tmp_path: Path) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    store = open_store(run(settings))
    records = list(open_source(settings.source).records())
    images, texts = item_table(store, "image"), item_table(store, "text")
    assert [item["key"] for item in images] == [record.key for record in records]
    assert [tuple(item["concepts"]) for item in images] == [record.image_concepts for record in records]
    assert [item["text"] for item in texts] == [text.text for record in records for text in record.texts]
    assert [item["record"] for item in texts] == [i for i in range(13) for _ in range(2)]
    assert store.pairs().tolist() == [[i // 2, i] for i in range(26)]
    assert all(item["thumbnail"].startswith(b"\x89PNG") for item in images)
    assert store.concepts == open_source(settings.source).concepts


@pytest.mark.parametrize(("policy", "positions"), [("cls", [0]), ("patches", list(range(1, 17)))])
def test_image_rows_are_those_asked_for(open_clip_folder: Path, tmp_path: Path, policy: str, positions: list[int]) -> None:
    everything = open_store(run(make_config(tmp_path / "all", open_clip_folder, hook_points=["vision.1"])))
    some = open_store(run(make_config(tmp_path / "some", open_clip_folder, hook_points=["vision.1"], image_rows=policy)))
    assert some.position_of("vision.1").tolist() == positions * 13
    expected = read_all(everything, "vision.1").unflatten(0, (13, 17))[:, positions].flatten(0, 1)
    assert torch.equal(read_all(some, "vision.1"), expected)


def test_eot_and_content_rows_split_the_text(open_clip_folder: Path, tmp_path: Path) -> None:
    stores = {
        policy: open_store(run(make_config(tmp_path / policy, open_clip_folder, hook_points=["text.1"], text_rows=policy)))
        for policy in ("all", "eot", "content")
    }
    tokens = {policy: store.token_id_of("text.1").tolist() for policy, store in stores.items()}
    assert tokens["eot"] == [2] * 26
    assert tokens["content"] == [token for token in tokens["all"] if token not in (1, 2)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_types_are_the_rounded_values(open_clip_folder: Path, tmp_path: Path, dtype: str) -> None:
    exact = open_store(run(make_config(tmp_path / "exact", open_clip_folder)))
    small = open_store(run(make_config(tmp_path / "small", open_clip_folder, dtype=dtype)))
    for name in HOOK_POINTS:
        assert torch.equal(read_all(small, name), read_all(exact, name).to(getattr(torch, dtype)))


@pytest.mark.parametrize("family", ["open-clip", "hf-clip", "hf-causal-lm"])
def test_a_model_in_bfloat16_is_harvested_as_it_computes(
    family: str, open_clip_folder: Path, hf_clip_folder: Path, llama_folder: Path, tmp_path: Path
) -> None:
    name = {"open-clip": f"local-dir:{open_clip_folder}", "hf-clip": hf_clip_folder, "hf-causal-lm": llama_folder}[family]
    changes = {"model": {"kind": family, "name": str(name), "precision": "bfloat16"}, "dtype": "bfloat16", "hook_points": ["*"]}
    settings = make_config(tmp_path / "store", open_clip_folder, **changes, batch_size=32)
    store = open_store(run(settings))
    adapter = open_adapter(settings.model, CPU)
    assert {parameter.dtype for parameter in adapter.model.parameters()} == {torch.bfloat16}
    records = list(open_source(settings.source).records())
    inputs = adapter.prepare_texts([text.text for record in records for text in record.texts])
    with torch.inference_mode():
        captured = adapter.capture(inputs, adapter.resolve(["text.1"], ["text"]))["text.1"]
    assert torch.equal(read_all(store, "text.1"), captured[inputs.layout.valid])


def test_autocast_runs_in_mixed_precision(open_clip_folder: Path, tmp_path: Path) -> None:
    exact = open_store(run(make_config(tmp_path / "exact", open_clip_folder, hook_points=["vision.embed"])))
    mixed = open_store(
        run(make_config(tmp_path / "mixed", open_clip_folder, hook_points=["vision.embed"], autocast="bfloat16"))
    )
    a, b = read_all(exact, "vision.embed"), read_all(mixed, "vision.embed")
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_a_limit_takes_the_first_records(open_clip_folder: Path, tmp_path: Path) -> None:
    store = open_store(run(make_config(tmp_path / "store", open_clip_folder, limit=5)))
    assert [item["record"] for item in item_table(store, "image")] == [0, 1, 2, 3, 4]


def test_a_shuffled_harvest_has_the_same_items_in_another_order(open_clip_folder: Path, tmp_path: Path) -> None:
    plain = open_store(run(make_config(tmp_path / "plain", open_clip_folder, hook_points=["vision.embed"])))
    changes = {"order": "shuffled", "seed": 3, "hook_points": ["vision.embed"]}
    mixed = open_store(run(make_config(tmp_path / "mixed", open_clip_folder, **changes)))
    records = [item["record"] for item in item_table(mixed, "image")]
    assert sorted(records) == list(range(13)) != records
    assert [item["key"] for item in item_table(mixed, "image")] == [f"scene-{record:09d}" for record in records]
    torch.testing.assert_close(read_all(mixed, "vision.embed"), read_all(plain, "vision.embed")[records])


def test_only_towers_with_hook_points_become_items(open_clip_folder: Path, tmp_path: Path) -> None:
    store = open_store(run(make_config(tmp_path / "store", open_clip_folder, hook_points=["text.embed"])))
    assert len(item_table(store, "text")) == 26
    assert item_table(store, "image") == []
    assert len(store.pairs()) == 0


def test_a_language_model_keeps_every_token_but_padding(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("one word after another\n\nand no end, short or long\n\n" + "on and on " * 30)
    model = {"kind": "hf-causal-lm", "name": str(llama_folder)}
    source = {"kind": "text", "files": [tmp_path / "book.txt"], "max_characters": 200}
    store = open_store(run(make_config(tmp_path / "s", llama_folder, model=model, source=source, hook_points=["text.*"])))
    adapter: Any = open_adapter(make_config(tmp_path, llama_folder, model=model).model, CPU)
    texts = [item["text"] for item in item_table(store, "text")]
    assert "".join(texts[2:]) == ("on and on " * 30).strip()
    inputs = adapter.prepare_texts(texts)
    with torch.inference_mode():
        states = adapter.model(**inputs.tensors, output_hidden_states=True, use_cache=False).hidden_states
    assert torch.equal(read_all(store, "text.0"), states[1][inputs.layout.valid])
    assert torch.equal(read_all(store, "text.final"), states[-1][inputs.layout.valid])
    status = [item["status"] for item in item_table(store, "text")]
    assert status == ["ok", "ok", "truncated", "truncated"]
    assert store.position_of("text.0").max() == 23


# Reuse


def test_a_finished_harvest_returns_at_once(open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    run(settings)
    before = {path: path.stat().st_mtime_ns for path in settings.out.rglob("*")}
    capsys.readouterr()
    assert run(validate(HarvestConfig, {**vars(settings), "workers": 1}, "again")) == settings.out
    assert "is complete" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in settings.out.rglob("*")} == before


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"batch_size": 5}, {"limit": 3}, {"image_rows": "cls"}, {"hook_points": ["vision.0"]}]
)
def test_another_harvest_does_not_touch_the_store(open_clip_folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    run(settings)
    with pytest.raises(StoreError, match=str(settings.out)):
        run(make_config(tmp_path / "store", open_clip_folder, **change))
    assert verify_store(settings.out, level="checksums") == []


def test_the_store_tells_what_it_was_made_from(open_clip_folder: Path, tmp_path: Path) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder)
    store = open_store(run(settings))
    assert store.identity["model"]["kind"] == "open-clip"
    assert store.identity["source"]["fingerprint"] == open_source(settings.source).fingerprint
    assert load_config(HarvestConfig, settings.out / "config.yaml") == settings
    inputs = json.loads((settings.out / "provenance.json").read_text())["inputs"]
    assert inputs == {"source": store.identity["source"]["fingerprint"], "model": store.identity["model"]["weights"]}


# Bad input


def make_images(folder: Path) -> dict[str, Any]:
    """Five images in a table: one truncated, one missing."""
    rows = ["image,caption"]
    for number in range(5):
        name = f"{number}.png"
        rows.append(f"{name},number {number}")
        if number != 3:
            Image.new("RGB", (20, 20), (number * 40, 0, 0)).save(folder / name)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "table.csv").write_text("\n".join(rows))
    return {"kind": "image-captions", "folder": folder, "table": "table.csv"}


def test_unreadable_images_are_skipped_and_counted(
    open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_config(
        tmp_path / "store", open_clip_folder, source=make_images(tmp_path), hook_points=["*.embed", "vision.0"]
    )
    store = open_store(run(settings))
    items = item_table(store, "image")
    assert [item["status"].partition(":")[0] for item in items] == ["ok", "unreadable", "ok", "unreadable", "ok"]
    assert "3.png: No such file" in items[3]["status"]
    assert store.item_of("vision.embed").tolist() == [0, 2, 4]
    assert store.rows("vision.0") == 3 * 17
    assert len(store.pairs()) == 5
    assert "2 unreadable" in capsys.readouterr().err


def test_an_unreadable_image_stops_when_it_shall(open_clip_folder: Path, tmp_path: Path) -> None:
    settings = make_config(tmp_path / "store", open_clip_folder, source=make_images(tmp_path), on_unreadable="stop")
    with pytest.raises(SourceError, match=r"1\.png: .*on_unreadable=skip"):
        run(settings)


def test_a_source_of_unreadable_images_is_told_and_alone_refused(
    open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_images(tmp_path) | {"where": {"caption": "number 3"}}
    store = open_store(run(make_config(tmp_path / "store", open_clip_folder, source=source)))
    assert store.rows("vision.embed") == 0
    assert store.rows("text.embed") == 1
    assert "no rows in image.items (unreadable: 3.png: No such file" in capsys.readouterr().err
    with pytest.raises(SourceError, match=r"no item gives a row \(unreadable: 3\.png: .*the store was not finished"):
        run(make_config(tmp_path / "other", open_clip_folder, source=source, hook_points=["vision.embed"]))
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_truncated_texts_are_counted(open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("short\n" + "one word after another and no end " * 9)
    source = {"kind": "text", "files": [tmp_path / "texts.txt"], "documents": "lines"}
    store = open_store(run(make_config(tmp_path / "store", open_clip_folder, source=source, hook_points=["text.*"])))
    assert [item["status"] for item in item_table(store, "text")] == ["ok", "truncated"]
    assert "1 truncated" in capsys.readouterr().err


def break_weights(folder: Path, to: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a model with other weights."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    weights = load_file(to / "open_clip_model.safetensors")
    change(weights)
    save_file(weights, to / "open_clip_model.safetensors")
    return to


@pytest.fixture
def sick_folder(open_clip_folder: Path, tmp_path: Path) -> Path:
    """A model whose embedding of one token is NaN: texts with it are not finite from there on."""
    (tmp_path / "sick").mkdir()
    adapter = open_adapter(make_config(tmp_path, open_clip_folder).model, CPU)
    (token,) = adapter.prepare_texts(["#"]).tensors["ids"][0, 1:2].tolist()

    def poison(weights: dict[str, Tensor]) -> None:
        weights["token_embedding.weight"][token] = torch.nan

    return break_weights(open_clip_folder, tmp_path / "sick", poison)


def write_texts(folder: Path) -> dict[str, Any]:
    (folder / "texts.txt").write_text("a red square\ntwo small # circles\none word\n")
    return {"kind": "text", "files": [folder / "texts.txt"], "documents": "lines"}


def test_nan_stops_with_the_hook_point_and_the_item(sick_folder: Path, tmp_path: Path) -> None:
    settings = make_config(tmp_path / "store", sick_folder, source=write_texts(tmp_path), hook_points=["text.1"])
    with pytest.raises(
        ModelError, match=r"hook point text\.1, item 'texts\.txt@13#0', position \d+: the model gives NaN.*float32"
    ):
        run(settings)


def test_rows_with_nan_are_dropped_when_they_shall(
    sick_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before_attention = "module:transformer.resblocks.0.ln_1"
    changes = {"source": write_texts(tmp_path), "hook_points": [before_attention, "text.embed"], "on_nonfinite": "drop"}
    store = open_store(run(make_config(tmp_path / "store", sick_folder, **changes)))
    # One token before attention, and the embedding.
    assert [item["status"] for item in item_table(store, "text")] == ["ok", "nonfinite: 2 rows", "ok"]
    assert store.item_of("text.embed").tolist() == [0, 2]
    assert read_all(store, before_attention).isfinite().all()
    # Before tokens meet, only the sick one is lost.
    adapter = open_adapter(make_config(tmp_path, sick_folder).model, CPU)
    kept = store.position_of(before_attention)[store.item_of(before_attention) == 1].tolist()
    n_tokens = int(adapter.prepare_texts(["two small # circles"]).layout.valid.sum())
    assert len(kept) == n_tokens - 1
    assert set(kept) < set(range(n_tokens))
    assert "1 nonfinite (2 rows)" in capsys.readouterr().err


def test_values_beyond_float16_say_so(open_clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()

    def enlarge(weights: dict[str, Tensor]) -> None:
        weights["visual.proj"] *= 1e6

    folder = break_weights(open_clip_folder, tmp_path / "big", enlarge)
    with pytest.raises(ModelError, match=r"vision\.embed, item 'scene-000000000': infinite as float16.*dtype=bfloat16"):
        run(make_config(tmp_path / "store", folder, dtype="float16"))
    run(make_config(tmp_path / "store2", folder, dtype="bfloat16"))


def test_a_source_without_what_the_model_reads_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    source = make_images(tmp_path) | {"caption_columns": []}
    model = {"kind": "hf-causal-lm", "name": str(llama_folder)}
    with pytest.raises(ConfigError, match="the source has image, the model reads text"):
        run(make_config(tmp_path / "store", llama_folder, model=model, source=source, hook_points=["*"]))


def test_no_store_is_begun_for_a_hook_point_that_is_not_there(open_clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nearest: .*vision\.1"):
        run(make_config(tmp_path / "store", open_clip_folder, hook_points=["vision.11"]))
    assert not (tmp_path / "store").exists()


def test_rows_that_the_model_does_not_have_are_refused_before_work(siglip_folder: Path, tmp_path: Path) -> None:
    model = {"kind": "hf-clip", "name": str(siglip_folder)}
    with pytest.raises(ModelError, match="no CLS token"):
        run(make_config(tmp_path / "store", siglip_folder, model=model, image_rows="cls", hook_points=["vision.0"]))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_points": []}, "hook_points: name at least one"),
        ({"batch_size": 0}, "batch_size=0: at least 1"),
        ({"limit": 0}, "limit=0: at least 1"),
        ({"dtype": "float8"}, "dtype: .*'float8'"),
        ({"hook_point": ["x"]}, "did you mean 'hook_points'"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, tmp_path, **change)
