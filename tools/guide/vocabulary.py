"""The guide's tokenizer: sentencepiece BPE, byte fallback, single digits, and a ChatML-like template.

    <s><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>Hello! ...<|end|><|user|> ...

The marks are control symbols: no text is ever encoded to one of them, so content cannot open a turn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

BOS, END = "<s>", "<|end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
CONTROLS = [*ROLES.values()]

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + message['role'] + '. Allowed: system, user, assistant.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> bytes:
    """The bytes of a tokenizer.model trained on `texts`.

    Ids 0..5 are <unk>, <s>, <|end|>, <|system|>, <|user|>, <|assistant|>; 256 byte pieces follow. Text is taken as it
    is (no normalization, no space put in front), so decoding gives back what was encoded.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        required_chars="".join(chr(code) for code in range(33, 127)),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        eos_piece=END,
        control_symbols=CONTROLS,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


class Vocabulary:
    """A tokenizer.model with the chat marks."""

    def __init__(self, path: str | Path) -> None:
        import sentencepiece

        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos, self.end = self.pieces.piece_to_id(BOS), self.pieces.piece_to_id(END)
        self.roles = {role: self.pieces.piece_to_id(mark) for role, mark in ROLES.items()}

    def __len__(self) -> int:
        return self.pieces.get_piece_size()

    def encode(self, messages: list[dict[str, str]], generate: bool = False) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and for each id whether the assistant writes it (what the loss counts)."""
        ids, written = [self.bos], [False]
        for message in messages:
            content = [*self.pieces.encode(message["content"].strip()), self.end]
            by_model = message["role"] == "assistant"
            ids += [self.roles[message["role"]], *content]
            written += [False, *[by_model] * len(content)]
        if generate:
            ids.append(self.roles["assistant"])
            written.append(False)
        return ids, written

    def covering(self, ids: list[int], pattern: str) -> list[int]:
        """The indices in `ids` of the pieces that a match of `pattern` in their text touches (ASCII text only)."""
        lengths = [len(self.pieces.id_to_piece(i)) for i in ids]
        ends = list(accumulate(lengths))
        spans = [match.span() for match in re.finditer(pattern, self.decode(ids))]
        return [
            i
            for i, (end, length) in enumerate(zip(ends, lengths, strict=True))
            if any(end - length < last and first < end for first, last in spans)
        ]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; the chat marks give none."""
        return self.pieces.decode(ids)


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """tokenizer_config.json: the marks, and the template that `Vocabulary.encode` follows."""
    special = ["<unk>", BOS, END, *CONTROLS]
    return {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {
            str(i): {
                "content": piece,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, piece in enumerate(special)
        },
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": BOS,
        "eos_token": END,
        "unk_token": "<unk>",
        "pad_token": END,
        "additional_special_tokens": CONTROLS,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
