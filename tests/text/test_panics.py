from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from edgellm.text.panics import may_panic, without_panic_text
from tests.shared_data import SHARED_DATA, needs_shared_data

PANIC = b"""
thread '<unnamed>' (4711) panicked at src/utils/onig.rs:28:46:
called `Result::unwrap()` on an `Err` value:
Error(OnigError(-17))
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
"""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (GPT2, False),
        (LLAMA3, False),
        ("(a+)+$", True),
        ("(?:ab){2,}c", True),
        (r"\(a+\)+", False),
        ("[(+*)]+", False),
        ("a*a*a*b", True),
        (r"\p{L}{1,3}x", False),
    ],
)
def test_which_expressions_may_backtrack_without_end(pattern, expected):
    part = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}]}
    assert may_panic(None, part) == expected


@needs_shared_data
def test_no_published_tokenizer_is_suspected():
    files = sorted((SHARED_DATA / "tokenizers").rglob("tokenizer.json"))
    assert files
    for file in files:
        table = json.loads(file.read_text(encoding="utf-8"))
        assert not may_panic(table.get("normalizer"), table.get("pre_tokenizer")), file


def test_the_panic_goes_and_what_others_wrote_stays(capfd):
    with without_panic_text():
        os.write(2, b"before")
        os.write(2, PANIC + PANIC)
        os.write(2, b"after")
    assert capfd.readouterr().err == "beforeafter"
    os.write(2, b"later")
    assert capfd.readouterr().err == "later"


def test_an_error_puts_stderr_back(capfd):
    def fail() -> None:
        with without_panic_text():
            os.write(2, PANIC)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    os.write(2, b"here")
    assert capfd.readouterr().err == "here"


def test_threads_take_turns(capfd):
    def work(number: int) -> None:
        for _ in range(50):
            with without_panic_text():
                os.write(2, PANIC + str(number).encode())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    shown = capfd.readouterr().err
    assert {number: shown.count(number) for number in "0123"} == dict.fromkeys("0123", 50)
    assert "panicked" not in shown


@pytest.mark.skipif(sys.platform == "win32", reason="closes a descriptor as POSIX does")
def test_without_stderr_nothing_is_changed():
    code = (
        "import os; os.close(2); from edgellm.text.panics import without_panic_text\n"
        "with without_panic_text(): print(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "7\n")
