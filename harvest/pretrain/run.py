"""Train a small CLIP, measure it on held-out pairs, and write it as a folder that open_clip loads."""

import difflib
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thresher.config import to_dict
from thresher.data.records import Source
from thresher.data.sources import SourceConfig, open_source
from thresher.devices import find_device
from thresher.errors import ConfigError, ModelError
from thresher.files import write_atomic
from thresher.harvest.pretrain.evaluate import (
    Task,
    embed_images,
    embed_texts,
    find_leaves,
    measure_gap,
    measure_retrieval,
    measure_zero_shot,
)
from thresher.harvest.pretrain.loop import fit
from thresher.harvest.pretrain.model import create_clip, load_tokenizer, save_weights, write_layout
from thresher.harvest.pretrain.pairs import Captions, Pairs, read_pairs, tokenize_captions
from thresher.harvest.pretrain.settings import PretrainConfig
from thresher.harvest.pretrain.vocabulary import count_cut, save_tokenizer, train_tokenizer
from thresher.progress import log, progress
from thresher.runs import describe_code

LOG_EVERY = 50
"""Steps per line of `training.jsonl`; the loss is read from the device only then."""


class Prepared(NamedTuple):
    """What stands before the first step."""

    model: nn.Module
    captions: Captions
    n_cut: int
    """Captions that are longer than the context."""


def run(config: PretrainConfig) -> Path:
    """Train as `config` says and return the folder: weights, layout, tokenizer, `training.jsonl` and `card.json`.

    The weights are written every `save_every` steps, so an interrupted run leaves a usable folder without a card. A
    folder whose card tells of the same recipe is left as it is. Raises ConfigError (device, held-out records, roots of
    zero-shot prompts), SourceError (no pairs) and ModelError (the loss is not finite).
    """
    source = open_source(config.source)
    held_out, n_train = _split(config, source)
    _check(config, source)
    if _is_done(config):
        log(f"{config.out}: trained already by this recipe; remove the folder to train again")
        return config.out
    code, start = describe_code(), time.monotonic()
    pairs = read_pairs(source, 0, n_train, config.vision.image_size)
    prepared = _prepare(config, pairs)
    _train(config, prepared, pairs)
    seconds = time.monotonic() - start
    start_held_out = n_train if held_out is source else 0
    unseen = read_pairs(held_out, start_held_out, len(held_out), config.vision.image_size)
    card = {
        "recipe": _recipe(config),
        "data_fingerprint": source.fingerprint,
        "made_with": code,
        "pairs_trained_on": len(pairs),
        "captions_cut": prepared.n_cut,
        "parameters": sum(parameter.numel() for parameter in prepared.model.parameters()),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "measured_on_held_out": _measure(config, prepared.model, unseen, source),
    }
    write_atomic(config.out / "card.json", [(json.dumps(card, indent=1) + "\n").encode()])
    return config.out


def _split(config: PretrainConfig, source: Source) -> tuple[Source, int]:
    """Where the held-out records are, and how many records of `source` to train on."""
    if not isinstance(config.held_out, int):
        return _open_held_out(config.held_out, source), len(source)
    n_train = len(source) - config.held_out
    if n_train < 2:
        raise ConfigError(f"held_out={config.held_out}: the source has {len(source)} records; leave at least 2 to train on")
    return source, n_train


def _open_held_out(settings: SourceConfig, source: Source) -> Source:
    """The source of the held-out records. Raises ConfigError when it is another world, or the one to train on."""
    held_out = open_source(settings)
    if held_out.fingerprint == source.fingerprint:
        raise ConfigError("held_out: these are the records to train on; give others, for instance another split of the table")
    if held_out.concepts != source.concepts:
        raise ConfigError("held_out: its concepts are not those of the source; give a source of the same kind")
    return held_out


def _check(config: PretrainConfig, source: Source) -> None:
    """Raise ConfigError on a device or a concept that is not there."""
    find_device(config.device)
    for root in config.zero_shot:
        if not find_leaves(source.concepts, root):
            raise ConfigError(f"zero_shot.{root}: the source knows no concept below {root!r}; remove the prompt")
    names = [concept.name for concept in source.concepts]
    for name in set(config.zero_shot_among) - set(names):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]!r}?" if near else "it knows none"
        raise ConfigError(f"zero_shot_among: the source knows no concept {name!r}; {hint}")


def _is_done(config: PretrainConfig) -> bool:
    card = config.out / "card.json"
    return card.is_file() and json.loads(card.read_text(encoding="utf-8"))["recipe"] == _recipe(config)


def _recipe(config: PretrainConfig) -> dict[str, Any]:
    """The settings without the place of the folder, which may be moved."""
    return {name: value for name, value in to_dict(config).items() if name != "out"}


def _prepare(config: PretrainConfig, pairs: Pairs) -> Prepared:
    """Write tokenizer and layout to the folder and build the model that they describe."""
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "card.json").unlink(missing_ok=True)
    texts = [text for texts in pairs.texts for text in texts]
    tokenizer = train_tokenizer(texts, config.text.max_words)
    n_cut = count_cut(texts, tokenizer, config.text.context_length)
    if n_cut:
        log(f"{n_cut} of {len(texts)} captions are longer than context_length={config.text.context_length} and are cut")
    save_tokenizer(tokenizer, config.out, config.text.context_length)
    write_layout(config, config.out, tokenizer.get_vocab_size())
    captions = tokenize_captions(pairs.texts, load_tokenizer(config.out))
    return Prepared(create_clip(config.out, config.seed).to(config.device), captions, n_cut)


def _train(config: PretrainConfig, prepared: Prepared, pairs: Pairs) -> None:
    size = min(config.batch_size, len(pairs))
    lines = (config.out / "training.jsonl").open("w", encoding="utf-8")
    with lines, progress("training CLIP", total=config.steps * size, unit="pairs") as advance:
        for step, loss in fit(prepared.model, pairs.images, prepared.captions, config):
            if step % LOG_EVERY == 0 or step == config.steps:
                value = loss.item()
                if not math.isfinite(value):
                    raise ModelError(f"step {step}: the loss is {value}; lower learning_rate={config.learning_rate}")
                lines.write(json.dumps({"step": step, "loss": round(value, 5)}) + "\n")
                lines.flush()
                advance(size, loss=value)
            else:
                advance(size)
            if step % config.save_every == 0 or step == config.steps:
                save_weights(prepared.model, config.out)


def _measure(config: PretrainConfig, model: nn.Module, pairs: Pairs, source: Source) -> dict[str, Any]:
    """Retrieval by each record's first caption, zero-shot accuracy and modality gap."""
    tokenizer = load_tokenizer(config.out)

    def embed(texts: list[str]) -> Float[Tensor, "text d"]:
        return embed_texts(model, texts, tokenizer, config.device)

    image, text = embed_images(model, pairs.images, config.device), embed(list(pairs.first_texts()))
    # Neighbours in a table are often alike; a draw of them would be harder than a random one.
    drawn = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(config.seed))
    among = {concept.name: index for index, concept in enumerate(source.concepts)}
    required = {among[name] for name in config.zero_shot_among}
    rows = [row for row, shown in enumerate(pairs.concepts) if required <= shown]
    tasks = [Task(root, tuple(find_leaves(source.concepts, root)), forms) for root, forms in config.zero_shot.items()]
    return {
        "pairs": len(pairs),
        "retrieval_among_256": {name: value._asdict() for name, value in measure_retrieval(image[drawn], text[drawn]).items()},
        "zero_shot": measure_zero_shot(image[rows], [pairs.concepts[row] for row in rows], tasks, source.concepts, embed),
        "modality_gap": measure_gap(image, text),
    }
