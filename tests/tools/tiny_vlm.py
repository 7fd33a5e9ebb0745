"""Vision-language decoders of a few thousand parameters, randomly initialised, with a tokenizer of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = TOWER | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 96, "pad_token_id": 0}
CLIP_VISION = TOWER | {"image_size": 32, "patch_size": 8}
MARKS = ("<image>", "<start>", "<end>", "<fake>", "<global>", "<video>")
CORPUS = ["a red square and two small green circles on a dark ground", "one word after another and no end, short or long"]
QWEN_TOKENS = {"image_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5, "video_token_id": 8}
QWEN_TEXT = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}


def make_tokenizer(**marks: str) -> Any:
    """A byte-level tokenizer with a BOS and tokens that mark images; 9 special ones with ids 0, 1, ..."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<bos>", "<eos>", *MARKS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "padding_side": "left"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, extra_special_tokens=marks)


def save(folder: Path, settings: Any, processor: Any) -> Path:
    """Save a randomly initialised model and its processor."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(settings)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            # Gemma 3 begins with an image projection of zeros: its texts would not see their image.
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_qwen(folder: Path, settings: Callable[[int], Any], processor: Any, **pixels: Any) -> Path:
    tokenizer = make_tokenizer(image_token="<image>", video_token="<video>")
    sizes = {"size": {"shortest_edge": 64, "longest_edge": 4096}, "merge_size": 2, "temporal_patch_size": 2} | pixels
    image_processor = transformers.Qwen2VLImageProcessor(**sizes)
    video_processor = transformers.Qwen2VLVideoProcessor(**sizes)
    return save(folder, settings(len(tokenizer)), processor(image_processor, tokenizer, video_processor))


def save_qwen25(folder: Path) -> Path:
    def settings(n: int) -> Any:
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
        vision |= {"out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]}
        return transformers.Qwen2_5_VLConfig(text_config=QWEN_TEXT | {"vocab_size": n}, vision_config=vision, **QWEN_TOKENS)

    return save_qwen(folder, settings, transformers.Qwen2_5_VLProcessor, patch_size=8)
