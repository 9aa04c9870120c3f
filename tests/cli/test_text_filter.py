from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.cli.text_filter import strip_controls


def test_escape_sequences_cannot_steer_the_terminal():
    hostile = "a\x1b[31mred\x1b]52;c;cm0gLXJm\x07 \x9b2J\rb\x08c\x00d\x7fe\x85f\u202eg\u2066h\u200fi"
    assert strip_controls(hostile) == "a[31mred]52;c;cm0gLXJm 2Jbcdefghi"


def test_newline_and_tab_and_every_script_stay():
    text = "one\n\ttwo naïve 北京 🙂 \u0301 \u200d שלום عربي"
    assert strip_controls(text) == text


@settings(max_examples=100)
@given(st.text(max_size=40), st.integers(0, 40))
def test_pieces_are_filtered_as_the_whole(text, at):
    assert strip_controls(text[:at]) + strip_controls(text[at:]) == strip_controls(text)
    assert all(c in "\n\t" or unicodedata.category(c) != "Cc" for c in strip_controls(text))
