"""Streaming: whole characters only, nothing lost, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.text import StopMatcher, TextStream

DRAWN = st.lists(st.integers(0, 9999), max_size=30)


@given(drawn=DRAWN, skip=st.booleans())
@settings(max_examples=150, deadline=None)
def test_pushes_join_to_decode(byte_level, llama, spm, drawn, skip):
    for tokenizer in (byte_level, llama, spm):
        ids = [number % tokenizer.vocab_size for number in drawn]
        stream = tokenizer.decoder(skip_special_tokens=skip)
        pushes = [stream.push(token_id) for token_id in ids]
        assert "".join(pushes) + stream.finish() == tokenizer.decode(ids, skip_special_tokens=skip)
        kept = [token_id for token_id in ids if not skip or token_id not in tokenizer.special_ids]
        whole = b"".join(tokenizer.piece_bytes(token_id) for token_id in kept).decode(errors="replace")
        assert tokenizer.decode(ids, skip_special_tokens=skip) in (whole, whole.removeprefix(" "))


def test_a_character_comes_when_it_is_whole():
    stream = TextStream(lambda byte: bytes([byte]))
    assert [stream.push(byte) for byte in "é🦙".encode()] == ["", "é", "", "", "", "🦙"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"


def test_broken_bytes_keep_their_neighbours(llama):
    ids = [llama.encode("a", add_special_tokens=False)[-1], 3 + 0xF0, 3 + 0xC3, 3 + 0xA9]
    assert llama.decode(ids).endswith("\ufffdé")


def test_leading_space_is_dropped_once(llama, spm):
    for tokenizer in (llama, spm):
        ids = tokenizer.encode("  two", add_special_tokens=False)
        assert tokenizer.decode(ids) == "  two"
        assert tokenizer.decode(ids * 2) == "  two   two"


def outcome(stops, pieces):
    matcher, shown = StopMatcher(stops), []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown.append(text)
        if stopped:
            return "".join(shown), matcher.matched
    return "".join(shown) + matcher.finish(), None


@given(
    stops=st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4),
    pieces=st.lists(st.text("ab<é", max_size=5), max_size=10),
)
@settings(max_examples=300, deadline=None)
def test_stop_strings_do_not_depend_on_the_pieces(stops, pieces):
    text = "".join(pieces)
    shown, matched = outcome(stops, pieces)
    assert (shown, matched) == outcome(stops, [text])
    assert (shown, matched) == outcome(stops, list(text))
    if matched is None:
        assert shown == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(shown + matched)
        assert not any(stop in (shown + matched)[:-1] for stop in stops)


def test_nothing_of_a_stop_string_is_shown():
    matcher = StopMatcher(["</s>", "\nUser:"])
    assert matcher.push("Hi\nUs") == ("Hi", False)
    assert matcher.push("ually </") == ("\nUsually ", False)
    assert matcher.push("s> more") == ("", True)
    assert matcher.push("again") == ("", True)
    assert matcher.finish() == ""
    held = StopMatcher("</s>")
    assert held.push("a</s") == ("a", False)
    assert held.finish() == "</s"


@pytest.mark.parametrize("stops", [[""], ["a", 3], ["x"] * 65, ["x" * 2000]])
def test_unusable_stop_strings(stops):
    with pytest.raises(UsageError):
        StopMatcher(stops)
