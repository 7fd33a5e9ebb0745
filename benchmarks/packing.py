"""Documents of mixed lengths through a language model by three ways to share a forward pass: `python benchmarks/packing.py`.

Random words, lengths log-normal as in web text (median about 110 tokens, cut at the context), a Llama with random weights, one
hook point in the middle. Each way runs the same batches through the reader of a harvest, without a store, in alternation; what
is printed is the median time, document tokens per second of CPU, and the share of places that a document fills. With
`--device cuda` the wall time is what counts; `--width` and `--blocks` should grow there.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from timing import alternate, describe_machine
from tokenizers import Tokenizer, models, pre_tokenizers

from thresher.config import validate
from thresher.data.sources import MemorySource
from thresher.devices import find_device
from thresher.harvest.adapters import Adapter, open_adapter
from thresher.harvest.forward import Reader
from thresher.harvest.prepare import Prepared, Preparer
from thresher.harvest.run import HarvestConfig

WORDS = 1000


def make_documents(n: int, context: int) -> list[str]:
    """Words by number, one token each."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(4.7, 1.0, n)), 8, context).astype(int)
    return [" ".join(f"w{word}" for word in generator.integers(0, WORDS, length)) for length in lengths]


def save_model(folder: Path, width: int, blocks: int, context: int) -> None:
    """A Llama with random weights and a tokenizer of words."""
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{word}": word + 2 for word in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "<eos>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": blocks}
    settings = transformers.LlamaConfig(
        vocab_size=len(vocabulary), num_attention_heads=width // 64, max_position_embeddings=context, pad_token_id=0, **sizes
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(settings).save_pretrained(folder)


def count_places(batches: list[Prepared]) -> int:
    """Places of all forward passes, padding included."""
    return sum(chunk.inputs.shape[0] * chunk.inputs.shape[1] for batch in batches for chunk in batch.chunks)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--length", type=int, default=1024, help="of a packed sequence")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    source = MemorySource(make_documents(arguments.documents, arguments.context))
    with tempfile.TemporaryDirectory() as scratch:
        save_model(Path(scratch), arguments.width, arguments.blocks, arguments.context)
        values: dict[str, Any] = {
            "out": Path(scratch) / "store",
            "model": {"kind": "hf-causal-lm", "name": scratch, "precision": arguments.precision},
            "source": {"kind": "in-memory"},
            "hook_points": [f"text.{arguments.blocks - 1}"],
            "batch_size": arguments.batch,
            "packed_length": arguments.length,
        }
        config = validate(HarvestConfig, values, "benchmark")
        adapter = open_adapter(config.model, find_device(arguments.device))
        adapter.check_packing(arguments.length, adapter.resolve(config.hook_points, ["text"]))
        compare(values, adapter, source, arguments.rounds)


def compare(values: dict[str, Any], adapter: Adapter, source: MemorySource, rounds: int) -> None:
    """Time the ways in alternation and print one line for each."""
    prepared: dict[str, list[Prepared]] = {}
    readers: dict[str, Reader] = {}
    for passes in ("source", "length", "packed"):
        config = validate(HarvestConfig, values | {"text_passes": passes}, "benchmark")
        preparer = Preparer(config, source, adapter, ["text"])
        prepared[passes] = [preparer.prepare(batch, preparer.read(batch)) for batch in range(preparer.n_batches)]
        readers[passes] = Reader(config, adapter, adapter.resolve(config.hook_points, ["text"]), {})

    def read(passes: str) -> None:
        for _ in readers[passes].read(prepared[passes]):
            pass

    taken = alternate({passes: lambda passes=passes: read(passes) for passes in prepared}, rounds)
    n_tokens = sum(len(chunk.tokens.item) for batch in prepared["source"] for chunk in batch.chunks)
    print(f"{describe_machine()}, on {adapter.device}; {n_tokens} tokens of {len(source)} documents; median of {rounds}")
    print("| text_passes | wall s | CPU s | tokens per CPU s | places filled |\n|---|---|---|---|---|")
    for passes, found in taken.items():
        wall, cpu = statistics.median(found.wall) / 1e3, found.median / 1e3
        share = n_tokens / count_places(prepared[passes])
        print(f"| {passes} | {wall:.3f} | {cpu:.3f} | {n_tokens / cpu:.0f} | {share:.2f} |")


if __name__ == "__main__":
    main()
