"""Bad captions, folders without a table, streams, examples in memory."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from thresher.data.records import EncodedSource, Record, Source, Text, Unreadable
from thresher.data.sources import HuggingFaceDataset, ImageCaptions, InMemory, MemorySource, TextFiles, WebDataset, open_source
from thresher.errors import ConfigError, SourceError


def texts_of(record: Record) -> list[str]:
    return [text.text for text in record.texts]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(3):
        Image.new("RGB", (6, 5), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


# Captions that are no UTF-8


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("t.csv", b"image,caption\n0.png,fine\n1.png,caf\xe9\n2.png,last\n", 3),
        ("t.csv", b'image,caption\n0.png,"two\nlines"\n1.png,caf\xe9\n2.png,last\n', 4),
        ("t.tsv", b"image\tcaption\n0.png\tfine\n1.png\tcaf\xe9\n2.png\tlast\n", 3),
        ("t.jsonl", b'{"image": "0.png", "caption": "a"}\n\n{"image": "1.png", "caption": "caf\xe9"}\n', 3),
        ("t.jsonl", b'{"image": "1.png", "caption": "caf\\udc3d"}\n', 1),
    ],
)
def test_a_caption_that_is_no_utf8_is_unreadable_and_names_its_line(
    pictures: Path, name: str, content: bytes, line: int
) -> None:
    (pictures / name).write_bytes(content)
    source = open_source(ImageCaptions(folder=pictures, table=Path(name)))
    (record,) = (record for record in source.records() if record.key == "1.png")
    (text,) = record.texts
    assert text.text == "caf\ufffd"
    assert text.unreadable is not None
    assert text.unreadable.startswith(f"{name}:{line}, caption: not UTF-8 (")
    assert all(text.unreadable is None for other in source.records() if other != record for text in other.texts)
    replaced = open_source(ImageCaptions(folder=pictures, table=Path(name), encoding_errors="replace"))
    assert [(t.text, t.unreadable) for r in replaced.records() if r.key == "1.png" for t in r.texts] == [("caf\ufffd", None)]
    assert replaced.fingerprint != source.fingerprint
    assert json.dumps(source.fingerprint)


def test_an_image_name_that_is_no_utf8_is_found_and_has_a_clean_key(pictures: Path) -> None:
    (pictures / "0.png").rename(pictures / "caf\udce9.png")
    (pictures / "t.csv").write_bytes(b"image,caption\ncaf\xe9.png,a\n")
    source = open_source(ImageCaptions(folder=pictures, table=Path("t.csv")))
    (record,) = source.records()
    assert record.key.encode() == rb"caf\udce9.png"
    assert isinstance(record.image, Image.Image)
    assert len(source.fingerprint) == 64


@pytest.mark.parametrize("documents", ["lines", "blank-lines", "file"])
def test_only_the_windows_with_bad_bytes_are_unreadable(tmp_path: Path, documents: Any) -> None:
    content = b"one\n\ntwo \xc3\xa4\n\nthree b\xff d four\n\nfive"
    (tmp_path / "x.txt").write_bytes(content)
    source = open_source(TextFiles(files=(tmp_path / "x.txt",), documents=documents, max_characters=9))
    texts = [text for record in source.records() for text in record.texts]
    (bad,) = (text for text in texts if text.unreadable is not None)
    assert "b\ufffd" in bad.text
    assert bad.unreadable is not None
    assert bad.unreadable.startswith("x.txt:5: not UTF-8 (byte 0xff after ")
    whole = content.decode("utf-8", "replace")
    kept = "".join(text.text for text in texts)
    assert kept == (whole if documents == "file" else whole.replace("\n", ""))
    assert len({record.key for record in source.records()}) == len(texts)


def test_a_line_of_jsonl_that_is_no_utf8_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b\xff"}\n{"text": "c\\ud83d"}\n{"text": "d"}\n')
    texts = [text for record in open_source(TextFiles(files=(tmp_path / "x.jsonl",))).records() for text in record.texts]
    assert [text.text for text in texts] == ["a", "b\ufffd", "c\ufffd\ufffd\ufffd", "d"]
    assert [text.unreadable and text.unreadable.partition(" (")[0] for text in texts] == [
        None,
        "x.jsonl:2: not UTF-8",
        "x.jsonl:3: not UTF-8",
        None,
    ]


def test_a_missing_field_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"txt": "a", "id": 3}\n')
    with pytest.raises(SourceError, match=r"x\.jsonl: the line at byte 0 .* field 'text': it has txt, id"):
        open_source(TextFiles(files=(tmp_path / "x.jsonl",)))


def test_a_broken_table_names_its_line(pictures: Path) -> None:
    (pictures / "t.csv").write_text('image,caption\n0.png,a\n1.png,"never closed\n')
    with pytest.raises(SourceError, match=r"t\.csv:\d: cannot read the table"):
        open_source(ImageCaptions(folder=pictures, table=Path("t.csv")))


def test_a_text_that_a_comma_has_cut_is_refused_not_shortened(pictures: Path) -> None:
    (pictures / "t.csv").write_text("image,caption\n0.png,a,\n1.png,a dog, running\n")
    with pytest.raises(SourceError, match=r"t\.csv:3: .* more cells than the 2 columns; put a text that holds ','"):
        open_source(ImageCaptions(folder=pictures, table=Path("t.csv")))


def test_a_caption_that_is_no_text_is_refused_not_spelt_out(pictures: Path) -> None:
    (pictures / "t.jsonl").write_text('{"image": "0.png", "caption": ["a", 5]}\n{"image": "1.png", "caption": {"raw": "a"}}\n')
    with pytest.raises(SourceError, match=r"t\.jsonl:2: column 'caption': expected a text or a list of texts, found dict"):
        open_source(ImageCaptions(folder=pictures, table=Path("t.jsonl")))


def test_a_row_without_image_names_its_line(pictures: Path) -> None:
    (pictures / "t.csv").write_text("image,caption\n0.png,a\n,b\n")
    with pytest.raises(SourceError, match=r"t\.csv:3: column 'image' holds ''; expected the path of an image"):
        open_source(ImageCaptions(folder=pictures, table=Path("t.csv")))


@pytest.mark.parametrize(("empty", "expected"), [("drop", [["a"], []]), ("keep", [["a", ""], [""]])])
def test_empty_captions_follow_the_policy(pictures: Path, empty: Any, expected: list[list[str]]) -> None:
    (pictures / "t.csv").write_text("image,caption,more\n0.png,a, \n1.png,\n")
    columns = ("caption", "more")
    source = open_source(ImageCaptions(folder=pictures, table=Path("t.csv"), caption_columns=columns, empty_captions=empty))
    assert [texts_of(record) for record in source.records()] == expected


# Folders


def test_a_folder_without_a_table_is_its_images_by_path(pictures: Path) -> None:
    (pictures / "deep").mkdir()
    (pictures / "1.png").rename(pictures / "deep" / "1.PNG")
    (pictures / "notes.txt").write_text("no image")
    source = open_source(ImageCaptions(folder=pictures))
    assert source.modalities == ("image",)
    assert [record.key for record in source.records()] == ["0.png", "2.png", "deep/1.PNG"]
    assert all(isinstance(record.image, Image.Image) and record.texts == () for record in source.records())


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images in it"):
        open_source(ImageCaptions(folder=tmp_path))
    with pytest.raises(ConfigError, match="name the table"):
        ImageCaptions(folder=tmp_path, where={"split": "train"})


def test_reasons_do_not_depend_on_place_or_memory(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    for folder in (pictures, other):
        (folder / "0.png").write_bytes(b"nothing")
        (folder / "1.png").write_bytes(b"")
    reasons = [
        [record.image for record in open_source(ImageCaptions(folder=folder)).records(0, 2)] for folder in (pictures, other)
    ]
    assert reasons[0] == reasons[1]
    assert all(isinstance(reason, Unreadable) and str(pictures) not in reason.reason for reason in reasons[0])


# Undecoded records


def make_sources(folder: Path) -> list[Source]:
    (folder / "t.csv").write_text("image,caption\n0.png,a\nmissing.png,b\n2.png,c\n")
    images = [Image.open(folder / f"{n}.png").convert("RGB") for n in range(3)]
    columns = {"image": [str(folder / "0.png"), str(folder / "2.png")], "caption": ["a", "c"]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset.save_to_disk(folder / "saved")
    table = HuggingFaceDataset(dataset=str(folder / "saved"), image_column="image", caption_columns=("caption",))
    return [
        open_source(ImageCaptions(folder=folder, table=Path("t.csv"))),
        open_source(table),
        MemorySource([(image, "a") for image in images]),
    ]


def test_undecoded_records_travel_and_decode_to_the_records(pictures: Path) -> None:
    for source in make_sources(pictures):
        assert isinstance(source, EncodedSource)
        for encoded, record in zip(source.read(), source.records(), strict=True):
            found = pickle.loads(pickle.dumps(encoded)).decode()
            assert (found.key, found.texts) == (record.key, record.texts)
            if isinstance(record.image, Image.Image):
                assert found.image.tobytes() == record.image.tobytes()
            else:
                assert found.image == record.image


# In memory


def test_examples_in_memory_are_records() -> None:
    red = Image.new("RGBA", (2, 2), (255, 0, 0, 255))
    record = Record("mine", texts=(Text("four"),))
    source = MemorySource(iter([red, "one", (red, "two"), (red, ["three", ""]), record]))
    assert len(source) == 5
    assert source.modalities == ("image", "text")
    records = list(source.records())
    assert [record.key for record in records] == [f"{n:09d}" for n in range(4)] + ["mine"]
    assert [texts_of(record) for record in records] == [[], ["one"], ["two"], ["three", ""], ["four"]]
    image = records[0].image
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
    assert [r.key for r in source.records(1, 3)] == [r.key for r in records[1:3]]
    assert isinstance(source, EncodedSource)


def test_the_fingerprint_of_examples_follows_their_content() -> None:
    def find(colour: str, text: str) -> str:
        return MemorySource([(Image.new("RGB", (2, 2), colour), text)]).fingerprint

    assert find("red", "a") == find("red", "a")
    assert len({find("red", "a"), find("blue", "a"), find("red", "b")}) == 3


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples given"),
        (iter([3]), "example 0 is int; expected a Record, a PIL image"),
        (iter(["a", (None, ["b"])]), "example 1 is tuple of NoneType, list; expected"),
        ([Image.new("RGB", (0, 5))], "example 0: an image of 0 x 5 pixels"),
        ([Record("a"), Record("a")], "key 'a' occurs more than once"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        MemorySource(examples)


def test_examples_in_memory_come_from_no_file() -> None:
    with pytest.raises(SourceError, match="only a Python program can give it"):
        open_source(InMemory())


# Streams


@pytest.fixture
def make_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HuggingFaceDataset]:
    """The same seven captioned rows, as Parquet or JSONL."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"id": f"r{n}", "captions": [f"a {n}", f"b {n}"], "more": "" if n == 2 else f"c {n}"} for n in range(7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.save_to_disk(tmp_path / "saved")

    def make(name: str, **changes: Any) -> HuggingFaceDataset:
        columns = {"caption_columns": ("captions", "more"), "key_column": "id"}
        return HuggingFaceDataset(**({"dataset": str(tmp_path / name)} | columns | changes))

    return make


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "saved"])
def test_a_stream_gives_the_records_of_the_dataset(make_rows: Callable[..., HuggingFaceDataset], name: str) -> None:
    local = open_source(make_rows(name))
    stream = open_source(make_rows(name, streaming=True, n_records=7))
    expected = [(record.key, texts_of(record)) for record in local.records()]
    assert [(record.key, texts_of(record)) for record in stream.records()] == expected
    assert len(stream) == 7
    for start, stop in ((0, 2), (2, 4), (5, 6), (6, None), (1, 3), (7, None)):
        assert [(r.key, texts_of(r)) for r in stream.records(start, stop)] == expected[start:stop]
    again = open_source(make_rows(name, streaming=True, n_records=7))
    assert [record.key for record in again.records(4)] == ["r4", "r5", "r6"]
    assert again.fingerprint == stream.fingerprint
    assert open_source(make_rows(name, streaming=True, n_records=5)).fingerprint != stream.fingerprint


def test_empty_texts_of_a_dataset_follow_the_policy(make_rows: Callable[..., HuggingFaceDataset]) -> None:
    for empty, expected in (("drop", ["a 2", "b 2"]), ("keep", ["a 2", "b 2", ""])):
        assert texts_of(next(open_source(make_rows("saved", empty_captions=empty)).records(2))) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "does not say how many rows it has; set source.n_records"),
        ({"n_records": 3, "caption_columns": ("caption",)}, "no column 'caption'; it has id, captions, more"),
    ],
)
def test_streams_that_do_not_fit_are_refused(
    make_rows: Callable[..., HuggingFaceDataset], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(make_rows("rows.jsonl", streaming=True, **changes))


def test_a_stream_that_ends_early_says_where(make_rows: Callable[..., HuggingFaceDataset]) -> None:
    source = open_source(make_rows("rows.jsonl", streaming=True, n_records=9))
    with pytest.raises(SourceError, match=r"the stream ends before row 7; set source\.n_records"):
        list(source.records())


@pytest.mark.parametrize(
    "changes", [{"n_records": 3}, {"streaming": True, "n_records": 0}, {"streaming": True, "split": "train[:3]"}]
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        HuggingFaceDataset(dataset="x", caption_columns=("a",), **changes)


def test_every_source_says_what_is_missing(tmp_path: Path) -> None:
    missing = (
        ImageCaptions(folder=tmp_path / "none"),
        ImageCaptions(folder=tmp_path, table=Path("none.csv")),
        TextFiles(files=(tmp_path / "none.txt",)),
        WebDataset(shards=(str(tmp_path / "none.tar"),)),
        HuggingFaceDataset(dataset=str(tmp_path / "none.parquet"), caption_columns=("a",)),
    )
    for settings in missing:
        with pytest.raises(SourceError, match="none"):
            open_source(settings)
