"""Models that come and go: many in one process, in any thread, in a process that forks or ends meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import edgellm
from tests.api.models import write_model
from tests.api.resources import held

ROOT = Path(__file__).parents[2]
OPTIONS = {"backend": "cpu", "context": 128, "threads": 2}  # teams: each model brings a thread
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads the process's own memory from /proc")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, 2.4 MB once packed: one that stays behind shows."""
    return write_model(tmp_path_factory.mktemp("models") / "wide", hidden_size=256, num_hidden_layers=4)


def answer(llm: edgellm.LLM, prompt: str = "Once upon a time", tokens: int = 4) -> list[int]:
    return llm.generate(prompt, max_tokens=tokens, ignore_eos=True, temperature=0).tokens


def reload(folder: Path, times: int) -> list[int]:
    """Load, ask and close; a model that is left open by its owner goes with him."""
    for i in range(times):
        llm = edgellm.load(folder, **OPTIONS)
        tokens = answer(llm)
        if i % 3:
            llm.close()
        del llm
    return tokens


@LINUX
@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_reloading_leaves_nothing_behind(wide: Path, tiny: Path, times: int) -> None:
    reload(wide, 3)
    before = held()
    first, other = reload(wide, times // 2), reload(tiny, 2)
    assert reload(wide, times // 2) == first
    assert reload(tiny, 2) == other
    left = held() - before
    print(times, left)
    assert left.memory <= 2 << 20
    assert (left.files, left.threads) == (0, 0)


def test_two_models_in_turns_and_at_once(wide: Path, tiny: Path) -> None:
    alone = []
    for folder in (wide, tiny):
        with edgellm.load(folder, **OPTIONS) as llm:
            alone.append(answer(llm, tokens=16))
    with edgellm.load(wide, **OPTIONS) as first, edgellm.load(tiny, **OPTIONS) as second:
        pair = (first, second)
        assert [answer(llm, tokens=16) for llm in pair for _ in range(2)] == [alone[0]] * 2 + [alone[1]] * 2
        streams = [llm.stream("Once upon a time", max_tokens=16, ignore_eos=True, temperature=0) for llm in pair]
        for _ in zip(*streams, strict=True):
            pass  # a token of one, a token of the other
        assert [stream.result.tokens for stream in streams] == alone
        found: dict[int, list[list[int]]] = {0: [], 1: []}
        threads = [
            threading.Thread(target=lambda i=i: found[i].extend(answer(pair[i], tokens=16) for _ in range(3)))
            for i in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {i: [alone[i]] * 3 for i in (0, 1)}
        first.close()
        assert answer(second, tokens=16) == alone[1]  # closing one leaves the other as it was


def test_any_thread_may_own_a_model_and_nobodys_signals_change(tiny: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    found = []

    def own() -> None:
        with edgellm.load(tiny, **OPTIONS) as llm:
            found.append(answer(llm))

    thread = threading.Thread(target=own)
    thread.start()
    thread.join()
    with edgellm.load(tiny, **OPTIONS) as llm:
        assert found == [answer(llm)]
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_an_event_loop_goes_on_while_threads_generate(tiny: Path) -> None:
    async def main(llm: edgellm.LLM) -> tuple[int, list[list[int]]]:
        ticks = 0
        work = asyncio.gather(*(asyncio.to_thread(answer, llm, tokens=30) for _ in range(3)))
        while not work.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks, await work

    with edgellm.load(tiny, slots=2, **OPTIONS) as llm:
        expected = answer(llm, tokens=30)
        ticks, found = asyncio.run(main(llm))
    assert ticks > 5
    assert found == [expected] * 3


def test_streams_left_early_free_their_slot(tiny: Path) -> None:
    def begun() -> edgellm.Stream:
        stream = llm.stream("Once upon", max_tokens=100_000, ignore_eos=True)
        next(stream)
        return stream

    with edgellm.load(tiny, slots=1, **OPTIONS) as llm:
        expected = answer(llm)
        for _ in begun():
            break
        with begun():
            pass
        begun().close()
        begun()
        assert answer(llm) == expected


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """`code` in an interpreter of its own, after `llm` has been loaded there."""
    prelude = f"""
        import os, sys, threading, time, edgellm
        llm = edgellm.load({str(folder)!r}, backend="cpu", context=128, threads=2)
        expected = llm.generate("Once", max_tokens=4, ignore_eos=True, temperature=0).tokens
    """
    text = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_interpreter_ends_while_a_model_answers(tiny: Path) -> None:
    done = python(
        """
        def endless():
            try:
                for _ in llm.stream("Once", max_tokens=10**6, ignore_eos=True):
                    pass
            except edgellm.EngineClosed:
                pass
        threading.Thread(target=endless, daemon=True).start()
        time.sleep(0.2)
        print(time.time(), flush=True)
        """,
        tiny,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.time() - float(done.stdout) < 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_and_the_parent_answers_on(tiny: Path) -> None:
    done = python(
        """
        import warnings
        warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
        pid = os.fork()
        if pid == 0:
            try:
                llm.generate("Once", max_tokens=4)
            except edgellm.EngineClosed as error:
                print("child", "spawn" in str(error), flush=True)
            sys.exit(7)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        print("parent", llm.generate("Once", max_tokens=4, ignore_eos=True, temperature=0).tokens == expected)
        """,
        tiny,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["child True", "exit 7", "parent True"]
