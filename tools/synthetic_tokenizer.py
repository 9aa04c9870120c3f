"""The tokenizer of synthetic checkpoints: a byte-level BPE of made-up syllables that fills a vocabulary of any size.

Any text goes in, at two to three letters a token, and any id comes out as letters; it is as large, and as slow to load,
as a real one of that many tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from string import ascii_lowercase
from typing import Any

from edgellm.errors import UsageError

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
START_ID, END_ID = 0, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_files(vocab_size: int, max_length: int) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json. Raises `UsageError` where bytes and special tokens do not fit."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(SPECIAL_TOKENS) + len(alphabet):
        hint = "Leave the tokenizer out."
        raise UsageError("too small for a byte-level tokenizer", key="vocab_size", found=vocab_size, hint=hint)
    merges = list(islice(_merges(), vocab_size - len(SPECIAL_TOKENS) - len(alphabet)))
    words = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    library = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **special} for number, text in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: number for number, word in enumerate(words)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[START_ID],
        "eos_token": SPECIAL_TOKENS[END_ID],
        "pad_token": SPECIAL_TOKENS[START_ID],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return {"tokenizer.json": _json(library), "tokenizer_config.json": _json(config)}


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of letters, the same behind a space, then pairs of pairs: 457,678 words that differ."""
    pairs = [left + right for left in ascii_lowercase for right in ascii_lowercase]
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from (("Ġ", pair) for pair in pairs)
    yield from ((left, right) for left in pairs for right in pairs)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()
