"""What others do with the rows that a harvest stores: Hugging Face datasets, SAELens."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from thresher.config import validate
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter, open_store
from thresher.harvest.run import HarvestConfig

WIDTH, CONTEXT, ITEMS = 768, 64, 64
LANGUAGE = {"vocab_size": 1000, "n_positions": 128, "n_embd": 512, "n_layer": 2, "n_head": 8}
HOOK = "text.1"
MODULE = "transformer.h.1"
"""The same place as SAELens names it."""
BUFFERS = 4


def make_writers(folder: Path, n_bytes: int) -> tuple[dict[str, Callable[[], object]], int]:
    """Ways to write the same float16 rows, and their bytes."""
    n_batches = max(1, n_bytes // (ITEMS * CONTEXT * WIDTH * 2))
    rows = torch.randn(ITEMS * CONTEXT, WIDTH).half()
    everything = rows.repeat(n_batches, 1).numpy()
    item, position = torch.arange(ITEMS).repeat_interleave(CONTEXT), torch.arange(CONTEXT).repeat(ITEMS).int()
    spec = HookPointSpec(HOOK, "image", "image.tokens", WIDTH, "float16")

    def write_raw() -> None:
        descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for _ in range(n_batches):
            os.write(descriptor, rows.view(torch.int16).numpy().data)
        os.fsync(descriptor)
        os.close(descriptor)
        (folder / "raw").unlink()

    def write_store() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        with StoreWriter(folder / "store", {"of": "a benchmark"}, [spec], ()) as writer:
            for index in range(n_batches):
                items = [Item(f"{index}/{i}", index * ITEMS + i, "ok", None, None, ()) for i in range(ITEMS)]
                space = {"image.tokens": Rows(item, position, None, {HOOK: rows})}
                writer.write(Batch(index, {"image": items}, [], space))
            writer.finish()

    def save_arrow() -> None:
        flat = pa.array(everything.reshape(-1))
        table = pa.table({"rows": pa.FixedSizeListArray.from_arrays(flat, WIDTH)})
        datasets.Dataset(table).save_to_disk(folder / "arrow")

    def save_as_saelens() -> None:
        features = datasets.Features({HOOK: datasets.Array2D(shape=(CONTEXT, WIDTH), dtype="float16")})
        buffer = torch.from_numpy(everything).unflatten(0, (-1, CONTEXT))
        datasets.Dataset.from_dict({HOOK: buffer}, features=features).save_to_disk(folder / "array2d", num_shards=1)

    datasets.disable_progress_bars()
    works: dict[str, Callable[[], object]] = {
        "raw file, fsync": write_raw,
        "store: moments, checksums, fsync": write_store,
        "datasets, ready Arrow table, no fsync": save_arrow,
        "datasets as SAELens calls it (Array2D), no fsync": save_as_saelens,
    }
    return works, everything.nbytes


def make_language(folder: Path, n_texts: int, device: str) -> HarvestConfig:
    """A random GPT-2 on disk and texts of exactly its context, as a harvest of one hook point."""
    model = folder / "model"
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**LANGUAGE, bos_token_id=0, eos_token_id=0)).save_pretrained(model)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(LANGUAGE["vocab_size"])}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", bos_token="w0").save_pretrained(model)
    lines = [json.dumps({"text": " ".join(f"w{token}" for token in tokens)}) for tokens in _draw_tokens(n_texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    values = {
        "out": folder / "store",
        "model": {"kind": "hf-causal-lm", "name": str(model)},
        "source": {"kind": "text", "files": [folder / "texts.jsonl"]},
        "hook_points": [HOOK],
        "batch_size": 16,
        "device": device,
    }
    return validate(HarvestConfig, values, "benchmark")


def describe_language(n_texts: int) -> str:
    """What `make_language` makes."""
    width, layers = LANGUAGE["n_embd"], LANGUAGE["n_layer"]
    return f"GPT-2 with {layers} blocks of width {width}, random; {n_texts} texts of {LANGUAGE['n_positions']} tokens, {HOOK}"


def make_runner(folder: Path, config: HarvestConfig, n_texts: int) -> Callable[[], object] | None:
    """SAELens' cache runner on the same model and tokens, in four buffers; None where it is not installed."""
    if importlib.util.find_spec("sae_lens") is None:
        return None
    from sae_lens.cache_activations_runner import CacheActivationsRunner
    from sae_lens.config import CacheActivationsRunnerConfig

    context = LANGUAGE["n_positions"]
    n_tokens = n_texts * context
    settings = CacheActivationsRunnerConfig(
        dataset_path="none",
        model_name=str(folder / "model"),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=config.batch_size,
        hook_name=MODULE,
        d_in=LANGUAGE["n_embd"],
        training_tokens=n_tokens,
        context_size=context,
        new_cached_activations_path=str(folder / "cache"),
        shuffle=False,
        device=config.device,
        buffer_size_gb=n_tokens * LANGUAGE["n_embd"] * 4 / BUFFERS / 1e9,
        streaming=False,
        prepend_bos=False,
    )
    tokens = datasets.Dataset.from_dict({"input_ids": _draw_tokens(n_texts).tolist()})

    def run() -> None:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        runner.activations_store.iterable_sequences = runner.activations_store._iterate_tokenized_sequences()
        runner.run()

    runner = CacheActivationsRunner(settings, override_dataset=tokens)
    return run


def compare(folder: Path, config: HarvestConfig) -> float:
    """Largest difference between what both have stored, as a share of the largest value."""
    store = open_store(Path(config.out))
    mine = store.read(HOOK, 0, store.rows(HOOK))
    cached = datasets.load_from_disk(folder / "cache").with_format("torch")[:][MODULE]
    return float((mine - cached.reshape(mine.shape)).abs().max() / mine.abs().max())


def _draw_tokens(n_texts: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, LANGUAGE["vocab_size"], (n_texts, LANGUAGE["n_positions"]))
