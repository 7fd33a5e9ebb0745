"""Sources of real data: captioned images, texts, datasets."""

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thresher.config import config, validate
from thresher.data.records import Record, Source, Unreadable
from thresher.data.sources import HuggingFaceDataset, ImageCaptions, SourceConfig, TextFiles, open_source
from thresher.data.sources.decoding import flatten_image
from thresher.data.sources.text import cut_windows
from thresher.errors import ConfigError, SourceError

DATA = os.environ.get("THRESHER_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="needs the real data in THRESHER_DATA")


@config
class Holder:
    """A source as a field, as the harvest has it."""

    source: SourceConfig
    """The source."""


def texts_of(record: Record) -> list[str]:
    return [text.text for text in record.texts]


def image_of(record: Record) -> Image.Image:
    assert isinstance(record.image, Image.Image)
    return record.image


def check_source(source: Source) -> None:
    """What every source must do: the same records from any position, unique keys."""
    records = list(source.records())
    assert isinstance(source, Source)
    assert len(records) == len(source)
    assert len({record.key for record in records}) == len(records)
    middle = len(records) // 2
    for start, stop in ((0, 1), (middle, None), (middle, middle + 2), (len(records), None), (0, len(records) + 9)):
        again = list(source.records(start, stop))
        assert [(r.key, r.texts) for r in again] == [(r.key, r.texts) for r in records[start:stop]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(4):
        Image.new("RGB", (6, 5), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


# Images with captions


def write_table(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        mark = "," if suffix == ".csv" else "\t"
        lines = [list(rows[0]), *(["" if v is None else f'"{v}"' for v in row.values()] for row in rows)]
        path.write_text("\n".join(mark.join(line) for line in lines), encoding="utf-8-sig")
    return path


ROWS = [
    {"image": "0.png", "caption": "black, dark", "tags": "x;y", "split": "train"},
    {"image": "1.png", "caption": "red \u00e4", "tags": None, "split": "test"},
    {"image": "2.png", "caption": "", "tags": " z ;", "split": "train"},
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_table_gives_the_same_records(pictures: Path, suffix: str) -> None:
    table = write_table(pictures, suffix, ROWS)
    source = open_source(ImageCaptions(folder=pictures, table=table, caption_columns=("caption", "tags"), separator=";"))
    check_source(source)
    assert [texts_of(record) for record in source.records()] == [["black, dark", "x", "y"], ["red \u00e4"], ["z"]]
    assert [image_of(record).getpixel((0, 0)) for record in source.records()] == [(60 * i, 0, 0) for i in range(3)]
    assert source.modalities == ("image", "text")


def test_rows_of_one_image_are_one_record(pictures: Path) -> None:
    rows = [{"image": "1.png", "caption": "a"}, {"image": "0.png", "caption": "b"}, {"image": "1.png", "caption": "c"}]
    source = open_source(ImageCaptions(folder=pictures, table=write_table(pictures, ".csv", rows)))
    assert [(record.key, texts_of(record)) for record in source.records()] == [("1.png", ["a", "c"]), ("0.png", ["b"])]


def test_cells_may_hold_lists(pictures: Path) -> None:
    rows = [{"image": "1.png", "caption": ["a", "b"]}]
    source = open_source(ImageCaptions(folder=pictures, table=write_table(pictures, ".jsonl", rows)))
    assert texts_of(next(source.records())) == ["a", "b"]


def test_filters_keep_equal_cells(pictures: Path) -> None:
    write_table(pictures, ".csv", ROWS)
    source = open_source(ImageCaptions(folder=pictures, table=Path("table.csv"), where={"split": "train"}))
    assert [record.key for record in source.records()] == ["0.png", "2.png"]


def test_missing_and_broken_images_are_unreadable_with_a_reason(pictures: Path) -> None:
    (pictures / "1.png").write_bytes(b"no image at all")
    (pictures / "2.png").write_bytes((pictures / "2.png").read_bytes()[:45])
    (pictures / "0.png").unlink()
    source = open_source(ImageCaptions(folder=pictures, table=write_table(pictures, ".csv", ROWS)))
    reasons = [record.image for record in source.records()]
    assert all(isinstance(reason, Unreadable) and f"{i}.png: " in reason.reason for i, reason in enumerate(reasons))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (3, 3))
    assert flatten_image(image, "white").mode == "RGB"


def test_transparent_pixels_take_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0, 0))
    flat = flatten_image(image, "#102030")
    assert [flat.getpixel((0, 0)), flat.getpixel((1, 0))] == [(16, 32, 48), (255, 0, 0)]
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert flatten_image(palette, "blue").getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_column": "picture"}, "no column 'picture'; it has image, caption, tags, split"),
        ({"where": {"split": "val"}}, "no rows with split=val; the source is empty"),
        ({"where": {"spilt": "val"}}, "no column 'spilt'"),
        ({"table": "other.csv"}, r"other\.csv: cannot read the table: no such file; tables there: table\.csv"),
        ({"table": "0.png"}, r"expected a table ending in \.csv"),
        ({"key_column": "split"}, r"key 'train' stands for both 0\.png and 2\.png"),
    ],
)
def test_tables_that_do_not_fit_are_refused(pictures: Path, change: dict[str, Any], message: str) -> None:
    write_table(pictures, ".csv", ROWS)
    values = {"kind": "image-captions", "folder": pictures, "table": "table.csv"} | change
    with pytest.raises(SourceError, match=message):
        open_source(validate(Holder, {"source": values}, "test").source)


def test_a_bad_line_of_jsonl_is_named(pictures: Path) -> None:
    (pictures / "t.jsonl").write_text('{"image": "0.png", "caption": "a"}\n{"image": \n')
    with pytest.raises(SourceError, match=r"t\.jsonl:2: not a line of JSON"):
        open_source(ImageCaptions(folder=pictures, table=Path("t.jsonl")))


def test_an_unknown_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="background='whiteish'"):
        ImageCaptions(folder=tmp_path, table=Path("t.csv"), background="whiteish")


def test_the_fingerprint_follows_the_content_not_the_place(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_table(pictures, ".csv", ROWS)
    elsewhere = tmp_path_factory.mktemp("copy")
    for path in pictures.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())

    def find(folder: Path, **changes: Any) -> str:
        return open_source(ImageCaptions(folder=folder, table=Path("table.csv"), **changes)).fingerprint

    assert find(pictures) == find(elsewhere)
    assert find(pictures) != find(pictures, background="black")
    Image.new("RGB", (60, 5)).save(elsewhere / "1.png")
    assert find(pictures) != find(elsewhere)


# Texts


@given(st.one_of(st.text(), st.binary().map(lambda content: content.decode("utf-8", "surrogateescape"))), st.integers(1, 12))
@settings(deadline=None)
def test_windows_are_the_document_without_loss(document: str, size: int) -> None:
    content = document.encode("utf-8", "surrogateescape")
    windows = list(cut_windows(document, size))
    assert b"".join(content[start:stop] for start, stop in windows) == (content if document.strip() else b"")
    texts = [content[start:stop].decode("utf-8", "surrogateescape") for start, stop in windows]
    if document == document.strip():
        assert all(0 < len(text) <= size for text in texts)


def test_windows_are_cut_between_words() -> None:
    document = "one two  three four"
    assert [document[a:b] for a, b in cut_windows(document, 9)] == ["one two", "  three", " four"]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [("lines", ["a b", "c", "d"]), ("blank-lines", ["a b\nc", "d"]), ("file", ["a b\nc\n \t\n\n", "d"])],
)
def test_documents_are_cut_as_asked(tmp_path: Path, documents: Any, expected: list[str]) -> None:
    (tmp_path / "x.txt").write_bytes(b"\n\n a b\nc\n \t\n\nd  \n")
    source = open_source(TextFiles(files=(tmp_path / "x.txt",), documents=documents, max_characters=8))
    check_source(source)
    found = ["".join(texts_of(record)) for record in source.records()]
    assert "".join(found) == "".join(expected)
    assert documents == "file" or found == expected


def test_lines_of_jsonl_are_documents(tmp_path: Path) -> None:
    rows = [{"text": "\u00e9t\u00e9 und Winter"}, {"text": "  "}, {"text": "b\n\nc"}]
    for name, escape in (("a.jsonl", True), ("b.jsonl", False)):
        (tmp_path / name).write_text("".join(json.dumps(row, ensure_ascii=escape) + "\n" for row in rows), encoding="utf-8")
    source = open_source(TextFiles(files=(tmp_path / "a.jsonl", tmp_path / "b.jsonl"), max_characters=8))
    check_source(source)
    found = [text for record in source.records() for text in texts_of(record)]
    assert found == ["\u00e9t\u00e9 und", " Winter", "b\n\nc"] * 2
    assert [record.key.partition("@")[0] for record in source.records()] == ["a.jsonl"] * 3 + ["b.jsonl"] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b" \n\n ", "no text in it; the source is empty"),
        ("x.jsonl", b'{"txt": "a"}', "no JSON object with a field 'text'"),
        ("x.jsonl", b'{"text": 3}', "text is 3, not a text"),
        ("x.jsonl", b"nonsense", "no JSON object"),
        (None, b"", "cannot read the text"),
    ],
)
def test_files_that_hold_no_text_are_named(tmp_path: Path, name: str | None, content: bytes, message: str) -> None:
    path = tmp_path / (name or "none.txt")
    if name:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_source(TextFiles(files=(path,)))


def test_the_fingerprint_of_texts_follows_content_and_cut(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("some text")
    first = open_source(TextFiles(files=(tmp_path / "x.txt",)))
    assert first.fingerprint != open_source(TextFiles(files=(tmp_path / "x.txt",), max_characters=4)).fingerprint
    before = first.fingerprint
    (tmp_path / "x.txt").write_text("same size")
    assert open_source(TextFiles(files=(tmp_path / "x.txt",))).fingerprint != before


# Datasets


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def make_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The same four rows in each form that `datasets` reads; one picture is broken."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    contents = [encode(Image.new("RGB", (4, 4), (50 * i, 0, 0))) for i in range(4)]
    contents[2] = contents[2][:30]
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "captions": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "id": datasets.Value("int64"),
        }
    )
    columns = {
        "picture": [{"bytes": content, "path": None} for content in contents],
        "captions": [["a", "b"], [], ["c"], ["d", ""]],
        "label": [0, 1, 1, None],
        "id": [10, 11, 12, 13],
    }
    dataset = datasets.Dataset.from_dict(columns, features=features)

    def make(form: str) -> Path:
        path = tmp_path / form
        if form == "disk":
            dataset.save_to_disk(path)
        elif form == "empty":
            path.mkdir()
            dataset.select(range(0)).to_parquet(path / "train.parquet")
        elif form == "dict":
            datasets.DatasetDict({"train": dataset}).save_to_disk(path)
        else:
            file = path / "data" / "train-00000.parquet" if form == "folder" else tmp_path / "one.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            dataset.to_parquet(file)
            return path if form == "folder" else file
        return path

    return make


def open_dataset(path: Path, **changes: Any) -> Source:
    values = {"dataset": str(path), "image_column": "picture", "caption_columns": ("captions", "label"), "key_column": "id"}
    return open_source(HuggingFaceDataset(**(values | changes)))


@pytest.mark.parametrize("form", ["disk", "dict", "folder", "file"])
def test_every_form_of_dataset_gives_the_same_records(make_dataset: Callable[[str], Path], form: str) -> None:
    path = make_dataset(form)
    source = open_dataset(path)
    check_source(source)
    records = list(source.records())
    assert [record.key for record in records] == ["10", "11", "12", "13"]
    assert [texts_of(record) for record in records] == [["a", "b", "cat"], ["dog"], ["c", "dog"], ["d"]]
    assert [image_of(records[i]).getpixel((0, 0)) for i in (0, 1, 3)] == [(0, 0, 0), (50, 0, 0), (150, 0, 0)]
    assert isinstance(records[2].image, Unreadable)
    assert open_dataset(path).fingerprint == source.fingerprint
    assert open_dataset(path, caption_columns=("label",)).fingerprint != source.fingerprint


def test_a_dataset_may_have_only_texts(make_dataset: Callable[[str], Path]) -> None:
    source = open_dataset(make_dataset("disk"), image_column=None, key_column=None)
    assert source.modalities == ("text",)
    assert [record.key for record in source.records(1, 3)] == ["000000001", "000000002"]
    assert all(record.image is None for record in source.records())


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("disk", {"caption_columns": ("caption",)}, "no column 'caption'; it has picture, captions, label, id"),
        ("disk", {"key_column": "label"}, "occurs more than once in 'label'"),
        ("folder", {"key_column": "label", "split": "train[2:]"}, "row 1 has no key in 'label'"),
        ("disk", {"image_column": "id"}, "column 'id' holds no images"),
        ("disk", {"split": "train[:2]"}, "no slices; leave split out"),
        ("dict", {"split": "test"}, "no split 'test'; it has train"),
        ("folder", {"split": "test"}, "cannot load split 'test'"),
        ("empty", {}, "cannot load split .train.: .* no data"),
    ],
)
def test_datasets_that_do_not_fit_are_refused(
    make_dataset: Callable[[str], Path], form: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        open_dataset(make_dataset(form), **change)


def test_a_dataset_needs_a_column() -> None:
    with pytest.raises(ConfigError, match="name at least one column"):
        HuggingFaceDataset(dataset="x")


def test_a_mirror_stands_for_the_hub(
    make_dataset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset("folder").rename(tmp_path / "pairs")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "owner").symlink_to(tmp_path)
    monkeypatch.setenv("THRESHER_HUB", str(tmp_path / "mirror"))
    assert len(open_dataset(Path("owner/pairs"))) == 4


# All


def test_kinds_are_told_apart_by_their_tag(pictures: Path) -> None:
    held = validate(Holder, {"source": {"kind": "scenes", "n_records": 3}}, "test")
    assert len(open_source(held.source)) == 3
    with pytest.raises(ConfigError, match=r"source\.kind: unknown kind 'image-caption'.*did you mean 'image-captions'"):
        validate(Holder, {"source": {"kind": "image-caption"}}, "test")


@needs_data
def test_emoji_are_readable_with_their_words() -> None:
    folder = Path(DATA or "") / "emoji"
    source = open_source(
        ImageCaptions(
            folder=folder,
            table=Path("emoji.csv"),
            image_column="noto",
            caption_columns=("label", "tags"),
            separator=";",
            key_column="hexcode",
            where={"split": "train"},
        )
    )
    assert len(source) > 2000
    first = next(source.records())
    assert first.key == "1F600"
    assert texts_of(first)[:3] == ["grinning face", "cheerful", "cheery"]
    numbers = random.Random(0).sample(range(len(source)), 50)
    assert all(image_of(next(source.records(i, i + 1))).size == (72, 72) for i in numbers)


@needs_data
def test_books_are_cut_without_loss() -> None:
    path = Path(DATA or "") / "text-corpora" / "wizard_of_oz.txt"
    source = open_source(TextFiles(files=(path,), documents="file", max_characters=700))
    text = "".join(text for record in source.records() for text in texts_of(record))
    assert text == path.read_text(encoding="utf-8").strip()
