"""Every code block of the README works as written; hub ids are found in a local mirror through THRESHER_HUB."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from thresher.data.sources import Scenes, open_source
from thresher.harvest.pretrain import checkpoint_path
from thresher.hub import MIRROR

ROOT = Path(__file__).resolve().parent.parent
CLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
CAPTIONS = "lmms-lab/COCO-Caption2017"
LANGUAGE_MODEL = "EleutherAI/pythia-70m-deduped"
TEXTS = "NeelNanda/pile-10k"


class Block(NamedTuple):
    language: str
    text: str


def blocks() -> Iterator[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield Block(language, body)


def save_language_model(folder: Path, words: list[str]) -> None:
    vocabulary = {word: index for index, word in enumerate(["<|endoftext|>", *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    settings = GPTNeoXConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(settings).save_pretrained(folder)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stand-ins for the hub's models and datasets, under the same names and with the same columns."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(checkpoint_path(), folder / CLIP)
    records = list(open_source(Scenes(n_records=160, seed=3, captions_per_image=5)).records())
    captions = [[text.text for text in record.texts] for record in records]
    images = [record.image for record in records]
    assert all(isinstance(image, Image.Image) for image in images)
    table = datasets.Dataset.from_dict(
        {"image": images, "answer": captions},
        features=datasets.Features({"image": datasets.Image(), "answer": datasets.List(datasets.Value("string"))}),
    )
    (folder / CAPTIONS / "data").mkdir(parents=True)
    table.to_parquet(folder / CAPTIONS / "data" / "val-00000-of-00001.parquet")
    documents = [" ".join(texts) for texts in captions]
    (folder / TEXTS / "data").mkdir(parents=True)
    datasets.Dataset.from_dict({"text": documents}).to_parquet(folder / TEXTS / "data" / "train-00000-of-00001.parquet")
    save_language_model(folder / LANGUAGE_MODEL, " ".join(documents).split())
    return folder


def test_every_block_of_the_readme_runs(mirror: Path, tmp_path: Path, python: Path) -> None:
    environment = os.environ | {
        MIRROR: str(mirror),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    n_run = 0
    for block in blocks():
        if block.language == "yaml":
            name = block.text.split("\n", 1)[0].removeprefix("# ")
            assert name.endswith(".yaml"), f"the first line of a YAML block names its file, found {name!r}"
            (tmp_path / name).write_text(block.text, encoding="utf-8")
            continue
        lines = block.text.splitlines() if block.language == "sh" else [f"{python} -c '{block.text}'"]
        for line in lines:
            if not line.strip():
                continue
            folder, command = (ROOT, f"make --dry-run {line[5:]}") if line.startswith("make ") else (tmp_path, line)
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            n_run += 1
    assert n_run > 10


def test_pictures_and_files_the_readme_points_to_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing
