"""How byte-level tokenizers cut a text into words, for texts in ASCII: there `\\p{L}` is A-Z and a-z, `\\p{N}` is 0-9,
and Python's `re` finds what the libraries' Oniguruma finds. Only the expressions of published families are known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = _LATER_WORDS % r"\p{N}"
LLAMA3_WORDS = _LATER_WORDS % r"\p{N}{1,3}"
KNOWN = (GPT2_WORDS, QWEN2_WORDS, LLAMA3_WORDS)

_CLASS_OR_PROPERTY = re.compile(r"\[[^\]]*\]|\\p\{[LN]\}")
_RANGES = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9"}


def expressions_of(pre_tokenizer: Any) -> list[str] | None:
    """The expressions, each of which cuts what the one before left whole; None for a pre-tokenizer that is not known.

    Args:
        pre_tokenizer: the entry of a tokenizer.json.
    """
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*steps, last]}:
            before, behind = [_expression(step) for step in steps], expressions_of(last)
            return None if behind is None or None in before else [*before, *behind]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(expression)}:
            return [GPT2_WORDS] if expression else []
        case {"type": "ByteLevel", "add_prefix_space": False} if "use_regex" not in pre_tokenizer:
            return [GPT2_WORDS]
    return None


def _expression(step: Any) -> str | None:
    match step:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern if pattern in KNOWN else None
        case {"type": "Digits", "individual_digits": bool(individual)}:
            return r"\p{N}" if individual else r"\p{N}+"
    return None


class WordCutter:
    """Cuts ASCII texts into words.

    Args:
        expressions: what `expressions_of` gave.
    """

    def __init__(self, expressions: Sequence[str]) -> None:
        self._patterns = [re.compile(f"({_in_ascii(expression)})", re.ASCII) for expression in expressions]

    def __call__(self, text: str) -> list[str]:
        words = [text]
        for pattern in self._patterns:
            words = [word for piece in words for word in pattern.split(piece) if word]
        return words


def _in_ascii(expression: str) -> str:
    def translated(found: re.Match[str]) -> str:
        text = found[0]
        for name, ranges in _RANGES.items():
            text = text.replace(name, ranges)
        return text if found[0].startswith("[") else f"[{text}]"

    return _CLASS_OR_PROPERTY.sub(translated, expression)
