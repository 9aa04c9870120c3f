"""How soon a long prompt is left: by `cancel` from another thread, by Ctrl-C in the terminal, by closing the model.

The model has two layers of Llama 2's 7B shape: a step of its prefill takes a tenth of a second on a fast machine and
seconds on a slow or busy one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.errors import EngineClosed
from tools.make_synthetic import Storage, make_synthetic, model_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]
PROMPT = 2000
WITHIN_S = 0.25
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**model_config("llama-2-7b"), "vocab_size": 2048, "max_position_embeddings": 2 * PROMPT}
    return make_synthetic(config, tmp_path_factory.mktemp("models") / "wide", Storage(), layers=2)


@pytest.fixture(scope="module")
def llm(folder: Path):
    with edgellm.load(folder, backend="cpu", context=2 * PROMPT) as loaded:
        loaded.generate([5, 6, 7] * 10, max_tokens=2)  # everything compiled
        yield loaded


def prompt(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(300, 2000, PROMPT).tolist()


@pytest.mark.parametrize("after_s", [0.3, 0.52, 0.77])
def test_cancel_from_another_thread(llm, after_s: float) -> None:
    cancel, asked = threading.Event(), []

    def soon() -> None:
        time.sleep(after_s)
        asked.append(time.perf_counter())
        cancel.set()

    threading.Thread(target=soon).start()
    result = llm.generate(prompt(int(after_s * 100)), max_tokens=4, cancel=cancel)
    took = time.perf_counter() - asked[0]
    print(f"cancelled in {1000 * took:.0f} ms")
    assert (result.finish_reason, result.tokens) == ("cancelled", [])
    assert took < WITHIN_S


def test_the_prompt_goes_on_where_it_was_left(llm) -> None:
    ids = prompt(11)
    cancel = threading.Event()
    threading.Timer(1.5, cancel.set).start()
    assert llm.generate(ids, max_tokens=4, cancel=cancel).finish_reason == "cancelled"
    again = llm.generate(ids, max_tokens=1)
    assert 0 < again.usage.cached_tokens < PROMPT
    assert again.usage.cached_tokens % 128 == 0  # whole steps, none of them half


def test_ctrl_c_in_the_terminal(folder: Path) -> None:
    code = "import os, sys; from edgellm.cli.main import entry; sys.exit(entry())"
    # --stats tells on stderr when the answer has ended
    command = [sys.executable, "-c", code, "run", str(folder), "-", "--no-template", "--backend", "cpu", "--stats"]
    with subprocess.Popen(
        [*command, "--context", str(2 * PROMPT)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(b"the quick brown fox, " * 300)  # 3600 tokens
        process.stdin.close()
        heard = threading.Event()
        lines: list[tuple[float, bytes]] = []

        def listen() -> None:
            for line in process.stderr:
                lines.append((time.perf_counter(), line))
                heard.set()

        listener = threading.Thread(target=listen)
        listener.start()
        assert heard.wait(300)  # the line about device and model: prefill begins
        time.sleep(0.8)
        before = len(lines)
        pressed = time.perf_counter()
        process.send_signal(signal.SIGINT)
        listener.join(60)
        process.wait(60)
    (answered, line), *_ = lines[before:]
    print(f"exit code {process.returncode}, heard of it after {1000 * (answered - pressed):.0f} ms: {line.decode()}")
    assert process.returncode == 130
    assert b"gen 0 tok" in line  # no token was there yet: this was prefill
    assert answered - pressed < WITHIN_S


def test_closing_ends_a_prefill(folder: Path) -> None:
    loaded = edgellm.load(folder, backend="cpu", context=2 * PROMPT)
    asked = []

    def soon() -> None:
        time.sleep(0.4)
        asked.append(time.perf_counter())
        loaded.close()

    threading.Thread(target=soon).start()
    with pytest.raises(EngineClosed):
        loaded.generate(prompt(1), max_tokens=4)
    assert time.perf_counter() - asked[0] < WITHIN_S
