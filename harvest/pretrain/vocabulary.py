"""A tokenizer over whole words, learned from captions and saved as transformers and open_clip read it."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<bos>", "<eos>"
WORD = r"[^\W_]+"
"""A word is a run of letters and digits; everything else parts words and is dropped."""


def train_tokenizer(texts: Iterable[str], max_words: int) -> Tokenizer:
    """A lower-casing word tokenizer with the `max_words` most frequent words of `texts`.

    `<eos>` has the highest id, so that CLIP's pooling by argmax of the ids finds it, even in a text that was cut.
    """
    splitter = _make_splitter()
    normalizer = _make_normalizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    vocabulary = {word: index for index, word in enumerate([PAD, UNKNOWN, BEGIN, *ranked, END])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([PAD, UNKNOWN, BEGIN, END])
    marks = [(BEGIN, vocabulary[BEGIN]), (END, vocabulary[END])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=marks)
    return tokenizer


def count_cut(texts: Iterable[str], tokenizer: Tokenizer, context_length: int) -> int:
    """How many texts are longer than the context, marks included."""
    return sum(len(encoding.ids) > context_length for encoding in tokenizer.encode_batch(list(texts)))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "bos_token": BEGIN,
        "eos_token": END,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _make_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


def _make_splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
