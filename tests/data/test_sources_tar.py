"""Tar shards: samples, captions, damage."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thresher.data.records import EncodedSource, Record, Source, Unreadable
from thresher.data.sources import ImageCaptions, WebDataset, open_source
from thresher.data.sources.decoding import EncodedImage
from thresher.data.sources.paths import expand_braces, expand_paths
from thresher.data.sources.tar import Damage, Member, scan_members
from thresher.errors import ConfigError, SourceError


def make_jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((24, 20), (-1, -1, 1, 1), 5 + number).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_members(start: int, stop: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for number in range(start, stop):
        found += [(f"{number:04d}.jpg", make_jpeg(number)), (f"{number:04d}.txt", f"caption {number}".encode())]
    return found


def open_tar(*shards: Path, **changes: Any) -> Source:
    return open_source(WebDataset(shards=tuple(map(str, shards)), **changes))


def texts_of(record: Record) -> list[str]:
    return [text.text for text in record.texts]


def reason_of(record: Record) -> str:
    assert isinstance(record.image, Unreadable), record
    return record.image.reason


# Reading


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_that_were_written(tmp_path: Path, form: int) -> None:
    folder = "a-long-folder-name/" * 9 if form != tarfile.USTAR_FORMAT else "./"
    members = [(folder + name, content) for name, content in make_members(0, 5)]
    source = open_tar(write_tar(tmp_path / "x.tar", members, form))
    records = list(source.records())
    assert isinstance(source, EncodedSource)
    assert source.modalities == ("image", "text")
    assert [record.key for record in records] == [f"x.tar/{folder.removeprefix('./')}{n:04d}" for n in range(5)]
    assert [texts_of(record) for record in records] == [[f"caption {n}"] for n in range(5)]
    for number, record in enumerate(records):
        assert isinstance(record.image, Image.Image)
        assert record.image.tobytes() == Image.open(io.BytesIO(make_jpeg(number))).tobytes()


def test_records_are_the_same_from_any_position(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{n}.tar", make_members(3 * n, 3 * n + 3)) for n in range(3)]
    source = open_tar(*shards)
    everything = list(source.records())
    assert len(source) == len(everything) == len({record.key for record in everything}) == 9
    for start, stop in ((0, 1), (2, 4), (5, None), (8, 20), (9, None)):
        assert [r.key for r in source.records(start, stop)] == [r.key for r in everything[start:stop]]


def test_a_sample_may_have_several_captions_and_json_fields(tmp_path: Path) -> None:
    extra = json.dumps({"short": "s", "all": ["a", " b ", None]}).encode()
    members = [("1.jpg", make_jpeg(1)), ("1.json", extra), ("1.txt", b"one;two"), ("1.seg.png", b"not an image of the sample")]
    path = write_tar(tmp_path / "x.tar", members)
    (record,) = open_tar(path, captions=("txt", "json:all", "json:short"), separator=";").records()
    assert texts_of(record) == ["one", "two", "a", "b", "s"]
    assert isinstance(record.image, Image.Image)


def test_a_source_may_have_only_texts_or_only_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", make_members(0, 2))
    texts, images = open_tar(path, images=()), open_tar(path, captions=())
    assert [(record.image, texts_of(record)) for record in texts.records()] == [(None, ["caption 0"]), (None, ["caption 1"])]
    assert texts.modalities == ("text",)
    assert [record.texts for record in images.records()] == [(), ()]


def test_an_empty_caption_is_none_or_kept(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("1.jpg", make_jpeg(1)), ("1.txt", b" \n")])
    assert texts_of(next(open_tar(path).records())) == []
    assert texts_of(next(open_tar(path, empty_captions="keep").records())) == [""]


def test_equal_names_in_one_shard_get_keys_of_their_own(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", make_members(0, 2) + make_members(0, 1))
    keys = [record.key for record in open_tar(path).records()]
    assert keys[:2] == ["x.tar/0000", "x.tar/0001"]
    assert keys[2].startswith("x.tar/0000@")


def test_archives_put_together_are_one(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{n}.tar", make_members(n, n + 1)).read_bytes() for n in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    assert [texts_of(record) for record in open_tar(tmp_path / "all.tar").records()] == [[f"caption {n}"] for n in range(3)]


def test_the_fingerprint_follows_content_and_settings_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, moved = (open_tar(write_tar(tmp_path / f / "x.tar", make_members(0, 2))) for f in "ab")
    assert first.fingerprint == moved.fingerprint
    assert open_tar(tmp_path / "a" / "x.tar", captions=()).fingerprint != first.fingerprint
    assert open_tar(write_tar(tmp_path / "b" / "x.tar", make_members(0, 3))).fingerprint != first.fingerprint


# Damage


def test_a_missing_image_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    members = [member for member in make_members(0, 4) if member[0] != "0002.jpg"]
    records = list(open_tar(write_tar(tmp_path / "x.tar", members)).records())
    assert reason_of(records[2]) == "x.tar/0002: no image; the sample has txt"
    assert [texts_of(record) for record in records] == [[f"caption {n}"] for n in range(4)]
    assert all(isinstance(records[n].image, Image.Image) for n in (0, 1, 3))


def test_a_corrupt_jpeg_names_its_shard_and_member(tmp_path: Path) -> None:
    members = make_members(0, 3)
    members[2] = ("0001.jpg", members[2][1][:-60])
    members[4] = ("0002.jpg", b"nothing like a picture")
    records = list(open_tar(write_tar(tmp_path / "x.tar", members)).records())
    assert reason_of(records[1]).startswith("x.tar/0001.jpg: image file is truncated")
    assert reason_of(records[2]) == "x.tar/0002.jpg: no image, or of a format that Pillow does not know"


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_what_is_readable_of_a_cut_tar_is_kept_and_the_rest_reported(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = write_tar(folder / "whole.tar", make_members(0, 4))
    found = [member for member in scan_members(whole) if isinstance(member, Member)]
    end = found[-1].data + found[-1].size
    cut = data.draw(st.integers(found[1].data + found[1].size, end - 1))
    (folder / "x.tar").write_bytes(whole.read_bytes()[:cut])
    n_whole = sum(member.data + member.size <= cut for member in found)
    records = list(open_tar(folder / "x.tar").records())
    assert reason_of(records[-1]) == f"x.tar: the file is cut off at byte {cut}, without the end mark of a tar file"
    assert [texts_of(record) for record in records[: n_whole // 2]] == [[f"caption {n}"] for n in range(n_whole // 2)]
    assert all(isinstance(record.image, Image.Image) for record in records[: n_whole // 2])
    assert len({record.key for record in records}) == len(records)


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_a_damaged_header_costs_only_its_member(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_tar(tmp_path_factory.mktemp("bad") / "x.tar", make_members(0, 4))
    found = [member for member in scan_members(path) if isinstance(member, Member)]
    hit = data.draw(st.sampled_from(range(len(found))))
    content = bytearray(path.read_bytes())
    content[found[hit].header + data.draw(st.integers(0, 99))] ^= 0x55
    path.write_bytes(content)
    scanned = list(scan_members(path))
    assert [entry for entry in scanned if isinstance(entry, Member)] == found[:hit] + found[hit + 1 :]
    (damage,) = (entry for entry in scanned if isinstance(entry, Damage))
    assert damage.offset == found[hit].header
    reasons = [record.image.reason for record in open_tar(path).records() if isinstance(record.image, Unreadable)]
    assert f"x.tar: no readable header at byte {damage.offset}" in reasons


def test_damage_in_a_source_of_texts_is_an_unreadable_text(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", make_members(0, 2))
    path.write_bytes(path.read_bytes()[:700])
    (record,) = open_tar(path, images=("jpg",), captions=()).records(1)
    assert "cut off at byte 700" in reason_of(record)
    path = write_tar(tmp_path / "y.tar", [("a.txt", b"fine"), ("b.txt", b"x" * 3000)])
    path.write_bytes(path.read_bytes()[:2000])
    records = list(open_tar(path, images=()).records())
    assert [text.unreadable for record in records for text in record.texts] == [
        None,
        "y.tar/b.txt: cut off after 464 of 3000 bytes",
        "y.tar: the file is cut off at byte 2000, without the end mark of a tar file",
    ]


def test_captions_that_are_no_utf8_or_no_json_name_their_member(tmp_path: Path) -> None:
    members = [("1.txt", b"caf\xe9 au lait"), ("1.json", b'{"c": "d"}'), ("2.json", b'{"c": '), ("3.json", b"[1]")]
    path = write_tar(tmp_path / "x.tar", members)
    texts = [text for record in open_tar(path, images=(), captions=("txt", "json:c")).records() for text in record.texts]
    assert texts[0].text == "caf\ufffd au lait"
    assert texts[0].unreadable == "x.tar/1.txt: not UTF-8 (byte 0xe9 after 3 characters)"
    assert texts[1].text == "d"
    assert texts[2].unreadable is not None
    assert texts[2].unreadable.startswith("x.tar/2.json: Expecting value")
    assert texts[3].unreadable == "x.tar/3.json: expected a JSON object, found list"
    replaced = next(open_tar(path, images=(), captions=("txt",), encoding_errors="replace").records())
    assert [(text.text, text.unreadable) for text in replaced.texts] == [("caf\ufffd au lait", None)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ("tif",)}, r"x\.tar: no member ends in tif; extensions: jpg, txt, json"),
        ({"captions": ("caption",)}, r"no member with captions ends in caption; extensions: jpg, txt, json"),
        ({"captions": ("json:text",)}, r"no field 'text' in the \.json members; fields: caption, url"),
        ({"shards": ("missing.tar",)}, r"missing\.tar: no such file"),
        ({"shards": ("/nowhere/*.tar",)}, r"/nowhere/\*\.tar: no file matches"),
    ],
)
def test_shards_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = json.dumps({"caption": "c", "url": "u"}).encode()
    path = write_tar(tmp_path / "x.tar", [*make_members(0, 1), ("0000.json", row)])
    with pytest.raises(SourceError, match=message):
        open_source(WebDataset(**({"shards": (str(path),)} | change)))


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.tar: no member ends in jpg, jpeg, png, webp; extensions: none"):
        open_tar(tmp_path / "x.tar")


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(SourceError, match="compressed with gzip; unpack it"):
        open_tar(tmp_path / "x.tar.gz")


def test_members_that_are_no_sample_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "x.tar", [("README.md", b"hello"), *make_members(0, 2)])
    assert len(open_tar(path)) == 2
    assert "1 samples without image or caption are left out, first 'README'" in capsys.readouterr().err


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="shards: name at least one"):
        WebDataset(shards=())
    with pytest.raises(ConfigError, match="images, captions: name at least one"):
        WebDataset(shards=("x.tar",), images=(), captions=())


DATA = os.environ.get("THRESHER_DATA")


@pytest.mark.skipif(DATA is None, reason="needs the real data in THRESHER_DATA")
def test_real_pictures_in_shards_are_those_in_the_folder(tmp_path: Path) -> None:
    folder = Path(DATA or "") / "emoji"
    columns = {"image_column": "noto", "caption_columns": ("label",), "key_column": "hexcode", "where": {"split": "train"}}
    table = open_source(ImageCaptions(folder=folder, table=Path("emoji.csv"), **columns))
    assert isinstance(table, EncodedSource)
    for shard in range(3):
        members = []
        for record in table.read(20 * shard, 20 * shard + 20):
            assert isinstance(record.image, EncodedImage)
            assert isinstance(record.image.content, Path)
            row = json.dumps({"label": [text.text for text in record.texts]}).encode()
            members += [(f"{record.key}.json", row), (f"{record.key}.png", record.image.content.read_bytes())]
        write_tar(tmp_path / f"emoji-{shard:03d}.tar", members)
    shards = open_tar(tmp_path / "emoji-{000..002}.tar", captions=("json:label",))
    for found, expected in zip(shards.records(), table.records(0, 60), strict=True):
        assert found.key.endswith(f".tar/{expected.key}")
        assert found.texts == expected.texts
        assert isinstance(found.image, Image.Image)
        assert isinstance(expected.image, Image.Image)
        assert found.image.tobytes() == expected.image.tobytes()


# Paths


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{000..001}", ["000", "001"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern: str, expected: list[str]) -> None:
    assert list(expand_braces(pattern)) == expected


def test_paths_come_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c1.tar", "c2.tar"):
        (tmp_path / name).touch()
    found = expand_paths([f"{tmp_path}/c{{2..1}}.tar", f"{tmp_path}/*.tar"])
    assert [path.name for path in found] == ["c2.tar", "c1.tar", "a.tar", "b.tar"]
