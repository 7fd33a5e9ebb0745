"""Train a small CLIP, measure it on held-out pairs, and write it as a folder that open_clip loads."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thresher.config import to_dict
from thresher.data.records import Source
from thresher.data.sources.scenes import ScenesSource
from thresher.errors import ConfigError
from thresher.files import write_atomic
from thresher.harvest.pretrain.evaluate import (
    embed_images,
    embed_texts,
    find_leaves,
    measure_gap,
    measure_retrieval,
    measure_zero_shot,
)
from thresher.harvest.pretrain.loop import fit
from thresher.harvest.pretrain.model import create_clip, load_tokenizer, make_transform, save_weights, write_layout
from thresher.harvest.pretrain.pairs import Pairs, read_pairs, tokenize_captions
from thresher.harvest.pretrain.settings import PretrainConfig
from thresher.harvest.pretrain.vocabulary import save_tokenizer, train_tokenizer
from thresher.progress import progress
from thresher.runs import describe_code

LOG_EVERY = 50
"""Steps per line of `training.jsonl`; the loss is read from the device only then."""


def run(config: PretrainConfig) -> Path:
    """Train as `config` says and return the folder: weights, layout, tokenizer, `training.jsonl` and `card.json`.

    The weights are written every `save_every` steps, so an interrupted run leaves a usable folder without a card.
    Raises ConfigError (held-out records, roots of zero-shot prompts) and SourceError (no pairs).
    """
    source = ScenesSource(config.source)
    n_train = _check(config, source)
    start = time.monotonic()
    transform = make_transform(config.vision.image_size)
    pairs = read_pairs(source, 0, n_train, transform)
    model = _prepare(config, pairs)
    _train(config, model, pairs)
    trained = time.monotonic()
    held_out = read_pairs(source, n_train, len(source), transform)
    measured = _measure(config, model, held_out, source)
    card = {
        "recipe": to_dict(config),
        "data_fingerprint": source.fingerprint,
        "made_with": describe_code(),
        "pairs_trained_on": len(pairs),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(trained - start),
        "threads": torch.get_num_threads(),
        "measured_on_held_out": measured,
    }
    write_atomic(config.out / "card.json", [(json.dumps(card, indent=1) + "\n").encode()])
    return config.out


def _check(config: PretrainConfig, source: Source) -> int:
    """The number of records to train on."""
    n_train = len(source) - config.held_out
    if n_train < 2:
        raise ConfigError(f"held_out={config.held_out}: the source has {len(source)} records, none is left to train on")
    for root in config.zero_shot:
        if not find_leaves(source.concepts, root):
            raise ConfigError(f"zero_shot.{root}: the source knows no concept below {root!r}; remove the prompt")
    return n_train


def _prepare(config: PretrainConfig, pairs: Pairs) -> nn.Module:
    """Write tokenizer and layout to the folder and build the model that they describe."""
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "card.json").unlink(missing_ok=True)
    tokenizer = train_tokenizer((text for texts in pairs.texts for text in texts), config.text.max_words)
    save_tokenizer(tokenizer, config.out, config.text.context_length)
    write_layout(config, config.out, tokenizer.get_vocab_size())
    return create_clip(config.out, config.seed).to(config.device)


def _train(config: PretrainConfig, model: nn.Module, pairs: Pairs) -> None:
    captions = tokenize_captions(pairs.texts, load_tokenizer(config.out))
    size = min(config.batch_size, len(pairs))
    log = (config.out / "training.jsonl").open("w", encoding="utf-8")
    with log, progress("training CLIP", total=config.steps * size, unit="pairs") as advance:
        for step, loss in fit(model, pairs.images, captions, config):
            if step % LOG_EVERY == 0 or step == config.steps:
                log.write(json.dumps({"step": step, "loss": round(loss.item(), 5)}) + "\n")
                log.flush()
                advance(size, loss=loss.item())
            else:
                advance(size)
            if step % config.save_every == 0 or step == config.steps:
                save_weights(model, config.out)


def _measure(config: PretrainConfig, model: nn.Module, pairs: Pairs, source: Source) -> dict[str, Any]:
    """Retrieval by each record's first caption, zero-shot accuracy and modality gap."""
    tokenizer = load_tokenizer(config.out)
    image = embed_images(model, pairs.images, config.device)
    text = embed_texts(model, [texts[0] for texts in pairs.texts], tokenizer, config.device)
    retrieval = measure_retrieval(image, text)
    zero_shot = measure_zero_shot(
        pairs, image, source.concepts, config.zero_shot, lambda prompts: embed_texts(model, prompts, tokenizer, config.device)
    )
    return {
        "pairs": len(pairs),
        "retrieval_among_256": {name: value._asdict() for name, value in retrieval.items()},
        "zero_shot": zero_shot,
        "modality_gap": measure_gap(image, text),
    }
