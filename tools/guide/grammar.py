"""Questions from patterns: `[a|b|]` is one of its alternatives, `<name>` one word of the macro `name`.

expand("how do i [open|start] <model>", random.Random(0), macros) -> "how do i start tinyllama"
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_MACRO = re.compile(r"<([a-z]+)>")
_ONSETS = [
    "b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr", "r",
    "s", "sh", "sk", "sl", "st", "t", "tr", "v", "w", "z",
]  # fmt: skip
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "oo", "ou"]
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "x", "ck", "nd", "st"]


@cache
def macros() -> dict[str, list[str]]:
    """The macros of words.txt."""
    lines = (HERE / "words.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines if line and not line.startswith("#"))
    return {name: words.split("|") for name, words in pairs}


def pseudo_word(rng: random.Random) -> str:
    """A word that no dictionary has: it teaches the model to answer by the sentence, not by a known name."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice([1, 2, 2, 2, 3]))
    )


def expand(pattern: str, rng: random.Random, words: Mapping[str, list[str]]) -> str:
    """One sentence of the pattern. Raises KeyError on an unknown macro."""
    text = pattern
    while match := _INNERMOST.search(text):
        text = text[: match.start()] + rng.choice(match.group(1).split("|")) + text[match.end() :]
    while match := _MACRO.search(text):
        name = match.group(1)
        word = pseudo_word(rng) if name == "pseudo" else rng.choice(words[name])
        text = text[: match.start()] + word + text[match.end() :]
    return " ".join(text.split())
