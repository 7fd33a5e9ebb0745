"""The harvest on inputs of every kind, good and bad, and the rows it is asked for."""

import io
import json
import multiprocessing
import os
import select
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from thresher.config import validate
from thresher.data.records import Record, Text
from thresher.data.sources import MemorySource
from thresher.data.sources.decoding import EncodedImage
from thresher.data.store import Store, TokenKind, open_store, verify_store
from thresher.errors import ConfigError, ModelError, SourceError
from thresher.harvest.decoding import Decoded, DecodingProcesses, decode_images
from thresher.harvest.run import HarvestConfig, run

SCENES: dict[str, Any] = {"kind": "scenes", "n_records": 11, "image_size": 24, "captions_per_image": 2}


def make_config(out: Path, folder: Path, **changes: Any) -> HarvestConfig:
    values: dict[str, Any] = {
        "out": out,
        "model": {"kind": "open-clip", "name": f"local-dir:{folder}"},
        "source": SCENES,
        "hook_points": ("vision.1", "text.1", "text.embed"),
        "batch_size": 4,
        "thumbnail": 8,
    }
    return validate(HarvestConfig, values | changes, "test")


def harvest(out: Path, folder: Path, **changes: Any) -> Store:
    return open_store(run(make_config(out, folder, **changes)))


def read_all(store: Store, hook_point: str) -> Tensor:
    return store.read(hook_point, 0, store.rows(hook_point))


def status_of(store: Store, modality: Any) -> list[str]:
    table: pa.Table = store.items(modality, columns=["status"])
    return table["status"].to_pylist()


def places_of(store: Store, hook_point: str) -> list[tuple[int, int]]:
    return list(zip(store.item_of(hook_point).tolist(), store.position_of(hook_point).tolist(), strict=True))


# Rows


def test_rows_know_what_they_are_and_where_their_patch_is(open_clip_folder: Path, tmp_path: Path) -> None:
    store = harvest(tmp_path / "s", open_clip_folder)
    kinds = [TokenKind.CLS] + [TokenKind.PATCH] * 16
    assert store.column_of("vision.1", "kind").tolist() == [int(kind) for kind in kinds] * 11
    position = store.position_of("vision.1")
    expected = np.where(position > 0, (position - 1) // 4, -1), np.where(position > 0, (position - 1) % 4, -1)
    np.testing.assert_array_equal(store.column_of("vision.1", "patch_row"), expected[0])
    np.testing.assert_array_equal(store.column_of("vision.1", "patch_column"), expected[1])
    is_special = np.isin(store.token_id_of("text.1"), (1, 2))
    found = np.where(is_special, int(TokenKind.SPECIAL), int(TokenKind.TEXT))
    np.testing.assert_array_equal(store.column_of("text.1", "kind"), found)
    assert store.columns_of("text.1") == ("kind",)
    assert store.columns_of("text.embed") == ()


def test_a_random_choice_of_positions_does_not_depend_on_batches(open_clip_folder: Path, tmp_path: Path) -> None:
    everything = harvest(tmp_path / "all", open_clip_folder)
    changes = {"positions_per_item": 3, "text_rows": "content"}
    some, other = (harvest(tmp_path / f"{n}", open_clip_folder, **changes, batch_size=n) for n in (4, 3))
    rows = {place: row for row, place in enumerate(places_of(everything, "vision.1"))}
    for name in ("vision.1", "text.1"):
        assert places_of(some, name) == places_of(other, name)
        assert np.bincount(some.item_of(name)).tolist() == [3] * (11 if name == "vision.1" else 22)
    kept = torch.tensor([rows[place] for place in places_of(some, "vision.1")])
    assert torch.equal(read_all(some, "vision.1"), read_all(everything, "vision.1")[kept])
    shifted = harvest(tmp_path / "seed", open_clip_folder, **changes, seed=1)
    assert places_of(shifted, "vision.1") != places_of(some, "vision.1")


def test_means_are_the_means_of_the_rows(open_clip_folder: Path, tmp_path: Path) -> None:
    changes = {"image_rows": "patches", "text_rows": "content"}
    rows = harvest(tmp_path / "rows", open_clip_folder, **changes)
    means = harvest(tmp_path / "means", open_clip_folder, **changes, pool="mean")
    assert {info.name: info.space for info in means.hook_points.values()} == {
        "vision.1": "image.means",
        "text.1": "text.means",
        "text.embed": "text.items",
    }
    for name in ("vision.1", "text.1"):
        x, item = read_all(rows, name), torch.from_numpy(rows.item_of(name))
        expected = torch.stack([x[item == i].mean(dim=0) for i in item.unique()])
        torch.testing.assert_close(read_all(means, name), expected)
        assert means.item_of(name).tolist() == item.unique().tolist()
        assert set(means.position_of(name).tolist()) == {-1}
    assert torch.equal(read_all(means, "text.embed"), read_all(rows, "text.embed"))
    assert verify_store(means.path, level="checksums") == []


def test_outliers_are_dropped_or_clipped_by_the_median_of_a_reference(
    open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = harvest(tmp_path / "whole", open_clip_folder)
    norms = read_all(whole, "vision.1").norm(dim=1)
    bound = 1.02 * whole.moments("vision.1").norm_quantiles[0.5]
    above = norms > bound
    assert 0 < above.sum() < len(norms)
    rule = {"above": {"vision.*": 1.02}, "reference": whole.path}
    stores = {
        (action, size): harvest(
            tmp_path / f"{action}{size}", open_clip_folder, outliers={"action": action, **rule}, batch_size=size
        )
        for action, size in (("drop", 4), ("drop", 3), ("clip", 4))
    }
    dropped, clipped = stores["drop", 4], stores["clip", 4]
    assert torch.equal(read_all(dropped, "vision.1"), read_all(whole, "vision.1")[~above])
    assert places_of(dropped, "vision.1") == places_of(stores["drop", 3], "vision.1")
    assert places_of(clipped, "vision.1") == places_of(whole, "vision.1")
    assert torch.equal(read_all(clipped, "vision.1")[~above], read_all(whole, "vision.1")[~above])
    torch.testing.assert_close(read_all(clipped, "vision.1")[above].norm(dim=1), torch.full((int(above.sum()),), bound))
    counts = np.bincount(whole.item_of("vision.1")[above.numpy()], minlength=11)
    for store, word in ((dropped, "outlier"), (clipped, "clipped")):
        assert status_of(store, "image") == [f"{word}: {n} rows" if n else "ok" for n in counts]
        assert torch.equal(read_all(store, "text.1"), read_all(whole, "text.1"))
        assert store.identity["outliers"]["bounds"] == {"vision.1": pytest.approx(bound)}
    err = capsys.readouterr().err
    assert f"{(counts > 0).sum()} outlier ({counts.sum()} rows)" in err
    assert f"{(counts > 0).sum()} clipped ({counts.sum()} rows)" in err


def test_texts_of_one_length_in_one_pass_give_the_rows_of_the_source_order(llama_folder: Path, tmp_path: Path) -> None:
    words = ["one", "word", "after", "another", "and", "no", "end"]
    lines = [" ".join(words[: 1 + n * 5 % 7]) * (1 + n % 3) for n in range(17)]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    changes: dict[str, Any] = {
        "model": {"kind": "hf-causal-lm", "name": str(llama_folder)},
        "source": {"kind": "text", "files": [tmp_path / "x.txt"], "documents": "lines"},
        "hook_points": ["text.1", "text.final"],
    }
    plain, sorted_ = (
        harvest(tmp_path / f"{order}{size}", llama_folder, **changes, text_passes=order, batch_size=size)
        for order, size in (("source", 5), ("length", 7))
    )
    assert places_of(sorted_, "text.1") == places_of(plain, "text.1")
    assert sorted_.token_id_of("text.1").tolist() == plain.token_id_of("text.1").tolist()
    assert sorted_.items("text") == plain.items("text")
    for name in ("text.1", "text.final"):
        torch.testing.assert_close(read_all(sorted_, name), read_all(plain, name), rtol=1e-5, atol=1e-5)


def test_rows_that_a_model_cannot_give_are_refused_before_work(open_clip_folder: Path, tmp_path: Path) -> None:
    for changes, message in (
        (
            {"image_rows": "registers"},
            "image_rows=registers: this model has no register token in its images; use one of all, cls",
        ),
        ({"text_rows": "image"}, "text_rows=image: this model reads texts without images"),
    ):
        with pytest.raises(ModelError, match=message):
            harvest(tmp_path / "s", open_clip_folder, **changes)
    assert not (tmp_path / "s").exists()


# Sources


def make_jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((40 + number, 30)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_bad_tar(path: Path) -> Path:
    """Six samples: 1 has no image, 2 a corrupt one, 3 an odd caption, 4 an empty one; cut off in the image of 5."""
    members = []
    for number in range(6):
        captions = {3: b"caf\xe9", 4: b""}
        members.append((f"{number}.txt", captions.get(number, f"caption {number}".encode())))
        if number != 1:
            members.append((f"{number}.jpg", make_jpeg(number)[: -40 if number == 2 else None]))
    write_tar(path, members)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"5.jpg") + 512 + 300])
    return path


def test_a_bad_tar_is_harvested_as_far_as_it_is_readable(
    open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bad_tar(tmp_path / "x.tar")
    source = {"kind": "webdataset", "shards": [str(path)], "empty_captions": "keep"}
    store = harvest(tmp_path / "s", open_clip_folder, source=source)
    image, text = status_of(store, "image"), status_of(store, "text")
    size = path.stat().st_size
    assert image == [
        "ok",
        "unreadable: x.tar/1: no image; the sample has txt",
        image[2],
        "ok",
        "ok",
        f"unreadable: x.tar/5.jpg: cut off after 300 of {len(make_jpeg(5))} bytes",
        f"unreadable: x.tar: the file is cut off at byte {size}, without the end mark of a tar file",
    ]
    assert image[2].startswith("unreadable: x.tar/2.jpg: image file is truncated")
    assert text == ["ok", "ok", "ok", "unreadable: x.tar/3.txt: not UTF-8 (byte 0xe9 after 3 characters)", "ok", "ok"]
    assert sorted(set(store.item_of("vision.1").tolist())) == [0, 3, 4]
    assert store.item_of("text.embed").tolist() == [0, 1, 2, 4, 5]
    # An empty caption is BOS and EOS.
    assert store.token_id_of("text.1")[store.item_of("text.1") == 4].tolist() == [1, 2]
    assert store.pairs().tolist() == [[i, i] for i in range(6)]
    assert "5 unreadable" in capsys.readouterr().err
    assert verify_store(store.path, level="checksums") == []


def test_a_text_that_is_no_utf8_stops_when_it_shall(open_clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"fine\ncaf\xe9\n")
    source = {"kind": "text", "files": [tmp_path / "x.txt"], "documents": "lines"}
    with pytest.raises(SourceError, match=r"x\.txt:2: not UTF-8 .*; mend it, or set on_unreadable=skip"):
        harvest(tmp_path / "s", open_clip_folder, source=source, hook_points=["text.1"], on_unreadable="stop")


def test_a_missing_caption_column_is_refused_with_the_columns_found(open_clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,text\n0.png,a\n")
    with pytest.raises(SourceError, match=r"no column 'caption'; it has image, text") as caught:
        harvest(tmp_path / "s", open_clip_folder, source={"kind": "image-captions", "folder": tmp_path, "table": "t.csv"})
    assert caught.value.exit_code == 2
    assert not (tmp_path / "s").exists()


def test_examples_in_memory_are_harvested(open_clip_folder: Path, tmp_path: Path) -> None:
    pictures = [Image.effect_noise((30, 30), 50 + n).convert("RGB") for n in range(3)]
    source = MemorySource([(picture, [f"a {n}", f"b {n}"]) for n, picture in enumerate(pictures)])
    config = make_config(tmp_path / "s", open_clip_folder, source={"kind": "in-memory"})
    store = open_store(run(config, source=source))
    assert store.items("text")["text"].to_pylist() == ["a 0", "b 0", "a 1", "b 1", "a 2", "b 2"]
    assert store.identity["source"] == {"kind": "in-memory", "fingerprint": source.fingerprint, "n_records": 3}
    assert run(config, source=source) == store.path
    with pytest.raises(SourceError, match="only a Python program can give it"):
        run(config)
    with pytest.raises(ConfigError, match=r"records are given, but source\.kind is 'scenes'"):
        run(make_config(tmp_path / "t", open_clip_folder), source=source)


class OnlyRecords:
    """A source as a third party writes it: decoded records, nothing more."""

    modalities = ("image", "text")
    concepts = ()
    fingerprint = "1"

    def __len__(self) -> int:
        return 5

    def records(self, start: int = 0, stop: int | None = None):
        numbers = range(5)[start:stop]
        return (Record(f"{n}", Image.new("RGB", (8, 8), (n, 0, 0)), texts=(Text(f"t {n}"),)) for n in numbers)


def test_a_source_needs_only_records(open_clip_folder: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path / "s", open_clip_folder, source={"kind": "in-memory"}, order="shuffled")
    store = open_store(run(config, source=OnlyRecords()))
    assert sorted(store.items("image")["key"].to_pylist()) == list("01234")


class Fingerprinted(OnlyRecords):
    """Counts how often somebody wants its fingerprint, for which a folder has to look at every file."""

    n_asked = 0

    @property
    def fingerprint(self) -> str:
        self.n_asked += 1
        return "1"


def test_the_fingerprint_of_a_source_is_not_asked_for_with_every_record(open_clip_folder: Path, tmp_path: Path) -> None:
    asked = []
    for limit in (1, 5):
        source = Fingerprinted()
        settings = {"order": "shuffled", "batch_size": 1, "limit": limit}
        run(make_config(tmp_path / str(limit), open_clip_folder, source={"kind": "in-memory"}, **settings), source=source)
        asked.append(source.n_asked)
    assert asked[0] == asked[1]


def test_a_stream_is_harvested_like_the_dataset(
    open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"caption {n}"}) for n in range(11)))
    source = {"kind": "huggingface", "dataset": str(tmp_path / "rows.jsonl"), "caption_columns": ["text"]}
    local = harvest(tmp_path / "local", open_clip_folder, source=source, hook_points=["text.1"], workers=3)
    stream = source | {"streaming": True, "n_records": 11}
    found = harvest(tmp_path / "stream", open_clip_folder, source=stream, hook_points=["text.1"], workers=3)
    assert found.items("text") == local.items("text")
    assert torch.equal(read_all(found, "text.1"), read_all(local, "text.1"))
    with pytest.raises(ConfigError, match="order=shuffled: a stream is read in its own order"):
        make_config(tmp_path / "x", open_clip_folder, source=stream, order="shuffled")


# Decoding processes


def encode_images(folder: Path) -> list[EncodedImage]:
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(make_jpeg(number)[: 99 if number == 1 else None])
    return [EncodedImage(folder / f"{number}.jpg", f"{number}.jpg", "white") for number in range(3)]


def as_bytes(decoded: Decoded) -> list[bytes]:
    return [image.tobytes() for image in decoded.transformed]


def test_processes_decode_like_threads_and_a_killed_one_is_named(tmp_path: Path) -> None:
    images = encode_images(tmp_path)
    here = decode_images(images, 8, list)
    with DecodingProcesses(1) as processes:
        there = processes(images, 8, list)
        assert (there.reasons, there.thumbnails, as_bytes(there)) == (here.reasons, here.thumbnails, as_bytes(here))
        assert [reason is None for reason in there.reasons] == [True, False, True]
        (child,) = multiprocessing.active_children()
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        with pytest.raises(SourceError, match=r"died by signal 9 \(SIGKILL; out of memory\?\); what is stored is safe: rerun"):
            processes(images, 8, list)


def test_where_images_are_decoded_does_not_change_the_store(open_clip_folder: Path, tmp_path: Path) -> None:
    source = {"kind": "webdataset", "shards": [str(make_bad_tar(tmp_path / "x.tar"))]}
    stores = [
        harvest(tmp_path / decode, open_clip_folder, source=source, decode=decode, workers=2)
        for decode in ("threads", "processes")
    ]
    assert stores[0].fingerprint == stores[1].fingerprint
    assert not multiprocessing.active_children()


class Killing:
    """A source that kills the decoding processes when the third batch is read for the first time."""

    modalities = ("image",)
    concepts = ()
    fingerprint = "2"

    def __init__(self) -> None:
        self.is_done = False

    def __len__(self) -> int:
        return 16

    def records(self, start: int = 0, stop: int | None = None):
        if start >= 8 and not self.is_done:
            self.is_done = True
            for child in multiprocessing.active_children():
                child.kill()
                child.join()
        return (Record(f"{n}", Image.new("RGB", (8, 8), (n, 0, 0))) for n in range(16)[start:stop])


def test_a_harvest_whose_decoding_process_is_killed_ends_and_resumes(open_clip_folder: Path, tmp_path: Path) -> None:
    changes = {"source": {"kind": "in-memory"}, "hook_points": ["vision.embed"], "items_per_shard": 4, "workers": 1}
    source = Killing()
    config = make_config(tmp_path / "s", open_clip_folder, **changes, decode="processes")
    with pytest.raises(SourceError, match=r"a decoding process died by signal 9 \(SIGKILL"):
        run(config, source=source)
    assert source.is_done
    # Where images are decoded is no part of what is harvested.
    killed = open_store(run(make_config(tmp_path / "s", open_clip_folder, **changes), source=source))
    whole = open_store(run(make_config(tmp_path / "t", open_clip_folder, **changes), source=source))
    assert killed.fingerprint == whole.fingerprint
    assert whole.rows("vision.embed") == 16


PARENT = """
import multiprocessing, os, sys
from pathlib import Path
from thresher.data.sources.decoding import EncodedImage
from thresher.harvest.decoding import DecodingProcesses

if __name__ == "__main__":
    processes = DecodingProcesses(1)
    processes([EncodedImage(Path(sys.argv[1]), "x", "white")], 0, list)
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to wait for a process that is no child")
def test_decoding_processes_end_with_a_killed_parent(tmp_path: Path, python: Path) -> None:
    encode_images(tmp_path)
    (tmp_path / "parent.py").write_text(PARENT)
    command = [python, str(tmp_path / "parent.py"), str(tmp_path / "0.jpg")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        waiting = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    ended, _, _ = select.select([waiting], [], [], 600)
    os.close(waiting)
    assert ended
