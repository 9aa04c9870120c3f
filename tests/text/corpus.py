"""Texts that tokenizers of the tests are trained on and tried with."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

SENTENCES = [
    "Once upon a time there was a little robot who liked to count the stars.",
    "How do I convert a model to 4 bit? Run the converter on the folder.",
    "def encode(text): return [byte for byte in text]",
    "Äpfel und Birnen, 3.14 und 1000 Sterne; naïve café.",
    "The robot said: 'hello', and the star said: \"good night\".",
] * 20

SAMPLES = [
    "",
    " ",
    "   ",
    "\n\n \t x",
    "Hello world",
    "  two  spaces ",
    "12345 3.14",
    "naïve café Ä",
    "🦙 👩‍👩‍👧 \u200d",
    "нещо на Български 我想",
    "nul \0 bell \a bom \ufeff",
    "▁ word ▁",
    "crlf\r\nline",
]


def shared(path: str) -> Path:
    """A file or folder of the shared data; the test is skipped where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"shared data is absent ({path})")
    return found
