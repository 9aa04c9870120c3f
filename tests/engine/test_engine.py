"""The engine under several threads, pauses, errors, interrupts, forks and closing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from edgellm.engine.scheduler import COPY_AT_LEAST, READ_AHEAD
from edgellm.engine.stream import Stream
from edgellm.errors import ContextLengthError, EdgeLLMError, EngineBusy, EngineClosed, NumericalError, UsageError
from tests.engine.helpers import engine_of, greedy_ids, request_of
from tests.fakes import FakeTokenizer

REPOSITORY = Path(__file__).parents[2]
PROMPTS = [list(f"prompt number {i}".encode()) for i in range(8)]


def stream_of(engine, prompt=PROMPTS[0], **options):
    return Stream(engine, engine.submit(request_of(prompt, **options)))


def test_more_threads_than_slots_get_the_tokens_of_single_runs():
    engine = engine_of(slots=2, chunk=5)
    found = {}

    def work(at):
        found[at] = [stream_of(engine, PROMPTS[at], max_tokens=12).drain().tokens for _ in range(3)]

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {at: [greedy_ids(PROMPTS[at], 12)] * 3 for at in range(8)}


def test_sequences_share_steps():
    engine = engine_of(slots=4, chunk=32)
    streams = [stream_of(engine, prompt[:6], max_tokens=5) for prompt in PROMPTS[:4]]
    for stream in streams:
        next(stream)
    assert max(len(batch.states) for batch in engine.runner.batches) == 4
    assert len(engine.runner.batches[0].token_ids) == 24


def test_a_paused_consumer_blocks_nobody():
    engine = engine_of(slots=1)
    paused = stream_of(engine, PROMPTS[0], max_tokens=40)
    first = next(paused)
    other = stream_of(engine, PROMPTS[1], max_tokens=6).drain()
    assert other.tokens == greedy_ids(PROMPTS[1], 6)
    rest = [piece.token for piece in paused if piece.token is not None]
    assert [first.token, *rest] == greedy_ids(PROMPTS[0], 40)


def test_nobody_runs_far_ahead_of_a_consumer_while_slots_are_free():
    engine = engine_of(slots=2)
    paused = stream_of(engine, PROMPTS[0], max_tokens=100)
    next(paused)
    stream_of(engine, PROMPTS[1], max_tokens=60).drain()
    paused.close()
    assert 1 <= len(paused.result.tokens) <= READ_AHEAD + 1
    assert paused.result.finish_reason == "cancelled"


def test_a_long_prefill_does_not_hold_up_others():
    engine = engine_of(slots=2, chunk=4)
    speaking = stream_of(engine, PROMPTS[0], max_tokens=50)
    next(speaking)
    long = stream_of(engine, list(range(200)), max_tokens=1)
    for _ in range(10):
        before = len(engine.runner.batches)
        next(speaking)
        assert len(engine.runner.batches) - before <= 1
    assert long.drain().tokens == greedy_ids(list(range(200)), 1)
    assert all(len(batch.token_ids) <= 4 for batch in engine.runner.batches)


def test_cancelling_ends_a_prefill_after_one_chunk():
    cancel = threading.Event()
    engine = engine_of(chunk=4, before_run=lambda batch: cancel.set() if engine.runner.batches else None)
    result = stream_of(engine, list(range(200)), cancel=cancel).drain()
    assert (result.finish_reason, result.tokens, len(engine.runner.batches)) == ("cancelled", [], 1)
    # What was prefilled is not lost.
    engine.runner.before_run = None
    assert stream_of(engine, list(range(200)), max_tokens=1).drain().usage.cached_tokens == 4


def test_a_step_in_the_middle_of_which_its_sequence_is_cancelled_is_given_up():
    cancel = threading.Event()
    engine = engine_of(chunk=64, before_run=lambda batch: cancel.set())
    result = stream_of(engine, list(range(200)), cancel=cancel).drain()
    # the fake asks after `before_run`: nothing of the step came into the books
    assert (result.finish_reason, result.tokens, engine.runner.batches) == ("cancelled", [], [])
    engine.runner.before_run = None
    again = stream_of(engine, list(range(200)), max_tokens=3).drain()
    assert (again.tokens, again.usage.cached_tokens) == (greedy_ids(list(range(200)), 3), 0)


def test_a_step_goes_on_for_those_who_would_lose_more():
    cancel = threading.Event()
    engine = engine_of(slots=2, chunk=64)
    long = stream_of(engine, list(range(100)), max_tokens=4)
    short = stream_of(engine, PROMPTS[1][:6], max_tokens=4, cancel=cancel)
    engine.runner.before_run = lambda batch: cancel.set()
    assert long.drain().tokens == greedy_ids(list(range(100)), 4)
    assert short.drain().finish_reason == "cancelled"
    assert [len(batch.token_ids) for batch in engine.runner.batches][:2] == [64, 36]


def test_cancel_and_drop_free_the_slot():
    engine = engine_of(slots=1)
    stream = stream_of(engine, max_tokens=100)
    next(stream)
    stream.cancel()
    assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"
    dropped = stream_of(engine, max_tokens=100)
    next(dropped)
    ran = len(engine.runner.batches)
    del dropped
    gc.collect()
    assert stream_of(engine, PROMPTS[1], max_tokens=2).drain().tokens == greedy_ids(PROMPTS[1], 2)
    assert len(engine.runner.batches) - ran <= 4
    never_started = stream_of(engine, PROMPTS[2], max_tokens=100)
    never_started.close()
    assert never_started.result.tokens == []
    with pytest.raises(UsageError, match="not ended"):
        _ = stream_of(engine).result


def test_a_prefix_is_reused_but_for_the_last_token():
    engine = engine_of(slots=1)
    prompt = list(range(50))
    assert stream_of(engine, prompt).drain().usage.cached_tokens == 0
    assert stream_of(engine, prompt).drain().usage.cached_tokens == 49
    result = stream_of(engine, [*prompt, 99, 98, 97]).drain()
    assert result.usage.cached_tokens == 50
    assert result.tokens == greedy_ids([*prompt, 99, 98, 97], 8)


def test_a_prefix_is_copied_from_a_busy_slot():
    engine = engine_of(slots=2)
    prompt = list(range(COPY_AT_LEAST + 4))
    busy = stream_of(engine, [*prompt, 1], max_tokens=30)
    next(busy)
    other = stream_of(engine, [*prompt, 2], max_tokens=5).drain()
    assert other.usage.cached_tokens == len(prompt)
    assert other.tokens == greedy_ids([*prompt, 2], 5)
    busy.drain()
    assert busy.result.tokens == greedy_ids([*prompt, 1], 30)


def test_a_short_common_start_does_not_cost_a_long_conversation_its_slot():
    engine = engine_of(slots=2)
    long = list(range(100))
    stream_of(engine, long).drain()
    stream_of(engine, [0, 200, 201]).drain()
    assert stream_of(engine, long).drain().usage.cached_tokens == 99


def test_the_prompt_is_never_truncated():
    engine = engine_of(context=32)
    with pytest.raises(ContextLengthError, match="33 tokens and the context holds 32"):
        engine.submit(request_of(list(range(33))))
    result = stream_of(engine, list(range(32)), max_tokens=4, evict="stop", context=32).drain()
    assert (result.finish_reason, len(result.tokens)) == ("context", 1)
    result = stream_of(engine, list(range(32)), max_tokens=4, context=32).drain()
    assert (result.finish_reason, result.usage.evicted_tokens) == ("length", 3)
    assert result.notes == ("dropped the oldest 3 tokens to make room",)
    with pytest.raises(UsageError, match="evict"):
        request_of([1], evict="all")


def test_nan_ends_one_sequence_only():
    engine = engine_of(slots=2)

    def poison(logits, batch):
        for row, state in enumerate(batch.states):
            if state.slot == 0 and len(logits) == len(batch.states):
                logits[row, 5] = float("nan")

    good = None
    bad = stream_of(engine, PROMPTS[0][:3], max_tokens=20)
    good = stream_of(engine, PROMPTS[1][:3], max_tokens=20)
    engine.runner.poison = poison
    with pytest.raises(NumericalError, match="token 5"):
        bad.drain()
    assert bad.done
    assert list(bad) == []
    engine.runner.poison = None
    assert good.drain().tokens == greedy_ids(PROMPTS[1][:3], 20)
    assert stream_of(engine, PROMPTS[0][:3]).drain().tokens == greedy_ids(PROMPTS[0][:3], 8)


def test_a_failure_at_one_sequence_s_token_ends_that_sequence_only():
    engine = engine_of(slots=2)
    good, bad = stream_of(engine, PROMPTS[1], max_tokens=9), stream_of(engine, PROMPTS[0], max_tokens=9)
    next(good)
    bad._sequence.accept = None
    with pytest.raises(EdgeLLMError, match="TypeError"):
        bad.drain()
    with pytest.raises(UsageError, match="error"):
        _ = bad.result
    assert good.drain().tokens == greedy_ids(PROMPTS[1], 9)
    with pytest.raises(UsageError, match="cancel"):
        stream_of(engine, cancel=5)


def test_an_error_in_a_step_ends_its_sequences_and_the_engine_goes_on():
    engine = engine_of(slots=1)

    def fail(batch):
        raise ZeroDivisionError("kernel")

    for _ in range(20):
        engine.runner.before_run = fail
        with pytest.raises(EdgeLLMError, match="ZeroDivisionError: kernel"):
            stream_of(engine).drain()
        engine.runner.before_run = None
        assert stream_of(engine).drain().tokens == greedy_ids(PROMPTS[0], 8)


def test_an_interrupt_inside_a_step_leaves_the_other_sequences_alive():
    engine = engine_of(slots=2)
    other = stream_of(engine, PROMPTS[1], max_tokens=10)
    next(other)
    stream = stream_of(engine, PROMPTS[0], max_tokens=10)
    pieces = [next(stream) for _ in range(3)]

    def interrupt(batch):
        raise KeyboardInterrupt

    engine.runner.before_run = interrupt
    with pytest.raises(KeyboardInterrupt):
        stream.drain()
    engine.runner.before_run = None
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text.startswith("".join(piece.text for piece in pieces))
    assert other.drain().tokens == greedy_ids(PROMPTS[1], 10)


def test_closing():
    engine = engine_of(slots=1)
    running, waiting = stream_of(engine, max_tokens=100), stream_of(engine, PROMPTS[1])
    next(running)
    engine.close()
    engine.close()
    assert engine.runner.closed
    for stream in (running, waiting):
        with pytest.raises(EngineClosed, match="closed"):
            stream.drain()
        stream.close()
    with pytest.raises(EngineClosed):
        stream_of(engine)
    with pytest.raises(EngineClosed), engine.exclusive():
        pass


def test_a_signal_handler_inside_a_step_may_cancel_and_close_and_nothing_hangs():
    said = []

    def handler(batch):
        if len(engine.runner.batches) == 2:
            for use in (lambda: next(other), lambda: engine.export(None)):
                with pytest.raises(EngineBusy, match="very thread"):
                    use()
            other.close()
            engine.close()
            said.append(engine.runner.closed)

    engine = engine_of(slots=2, before_run=handler)
    stream, other = stream_of(engine, max_tokens=9), stream_of(engine, PROMPTS[1])
    with pytest.raises(EngineClosed):
        stream.drain()
    assert said == [False]
    assert engine.runner.closed
    assert other.result.finish_reason == "cancelled"


def test_closing_while_other_threads_generate():
    engine = engine_of(slots=1, before_run=lambda batch: time.sleep(0.002))
    ended = []

    def work(at):
        try:
            stream_of(engine, PROMPTS[at], max_tokens=10_000).drain()
        except EngineClosed as error:
            ended.append(str(error))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    engine.close()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told_to_spawn():
    engine = engine_of()
    stream = stream_of(engine)
    next(stream)
    queue = multiprocessing.get_context("fork").SimpleQueue()

    def child():
        messages = []
        for use in (lambda: next(stream), lambda: stream_of(engine)):
            try:
                use()
            except EngineClosed as error:
                messages.append(str(error))
        engine.close()
        queue.put(messages)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    messages = queue.get()
    process.join(10)
    assert len(messages) == 2
    assert all("spawn" in message for message in messages)
    assert stream.drain().tokens == greedy_ids(PROMPTS[0], 8)


def test_many_requests_leave_nothing_behind():
    engine = engine_of(slots=2)
    for at in range(200):
        stream_of(engine, PROMPTS[at % 8][: 3 + at % 5], max_tokens=2).drain()
        engine.runner.batches.clear()
    scheduler = engine._scheduler
    assert (scheduler.running, list(scheduler.waiting)) == ([], [])
    assert not any(slot.busy for slot in scheduler.slots)
    assert all(len(slot.tokens) == slot.state.length for slot in scheduler.slots)
    assert FakeTokenizer.vocab_size == 262


def test_a_daemon_thread_that_outlives_the_program_prints_nothing():
    code = """
        import atexit, threading, time
        from edgellm.engine.stream import Stream
        from tests.engine.helpers import engine_of, request_of

        engine = engine_of()
        stream = Stream(engine, engine.submit(request_of(b"a", max_tokens=10**6)))
        threading.Thread(target=lambda: [piece for piece in stream], daemon=True).start()
        next(stream)
        atexit.register(time.sleep, 0.3)
        atexit.register(engine.close)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=REPOSITORY)
    assert (run.returncode, run.stderr) == (0, "")
