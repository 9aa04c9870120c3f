"""The border to the tokenizer libraries: what may go in, and what their failures become.

`tokenizers` reports a Rust panic as `PanicException`, which is a BaseException that `except Exception` does not
catch; sentencepiece raises RuntimeError, OSError or UnicodeEncodeError. All of them are met here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from edgellm.errors import EdgeLLMError, TokenizerError, UsageError
from edgellm.text.panics import without_panic_text

MAX_TEXT_BYTES = 16 << 20  # far above any context; the libraries need up to 100 bytes a character
MAX_EXPANSION = 64  # characters a normalizer may make of one; Unicode's own NFKC needs 18
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def library_errors(file: str, what: str, *, may_panic: bool = False) -> Iterator[None]:
    """Turns any failure of a tokenizer library into a `TokenizerError` that names `file`.

    With `may_panic` the text goes too that a panic writes to stderr by itself, see `panics`.
    """
    try:
        with without_panic_text() if may_panic else nullcontext():
            yield
    except EdgeLLMError:
        raise
    except Exception as error:
        raise TokenizerError(f"{what} ({error})", file=file) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what} (the tokenizer library failed: {error})", file=file) from None


def clean_text(text: str) -> str:
    """`text` with lone surrogates as U+FFFD. Raises `UsageError` above `MAX_TEXT_BYTES` or where it is no string."""
    if not isinstance(text, str):
        raise UsageError("text to encode must be a string", found=type(text).__name__)
    if len(text) > MAX_TEXT_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise UsageError(
            "text to encode is too long", found=f"{len(text):,} characters", allowed=f"{MAX_TEXT_BYTES:,} bytes"
        )
    return _SURROGATE.sub("\ufffd", text)


def check_charsmap(charsmap: bytes, file: str) -> None:
    """Refuses a sentencepiece character map that turns one character into more than `MAX_EXPANSION`.

    Layout: little-endian u32 byte length of a double-array trie, the trie, then the replacements, each ended by NUL.
    """
    if not charsmap:
        return
    trie_bytes = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 or trie_bytes > len(charsmap) - 4:
        raise TokenizerError("precompiled_charsmap is truncated", file=file)
    longest = max(map(len, charsmap[4 + trie_bytes :].split(b"\0")))
    if longest > 4 * MAX_EXPANSION:
        raise TokenizerError(
            "precompiled_charsmap makes too much of one character", file=file, found=f"{longest:,} bytes"
        )
