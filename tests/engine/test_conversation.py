"""Conversations: history, prefix reuse, eviction of whole turns, cancellation, saving."""

from __future__ import annotations

import contextlib
import gc
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.engine.conversation import Conversation
from edgellm.engine.sampling import SamplingParams
from edgellm.engine.stream import Stream
from edgellm.errors import (
    ContextLengthError,
    EdgeLLMError,
    EngineBusy,
    EngineClosed,
    InputError,
    ModelError,
    OutputError,
    UsageError,
)
from tests.engine.helpers import engine_of, fresh_logits, request_of
from tests.fakes import END, EOS, FakeTokenizer, fake_render, merged_render


def conversation_of(engine=None, *, render=fake_render, reply=None, context=256, slots=1, **options):
    engine = engine or engine_of(context=context, reply=reply, slots=slots)
    options.setdefault("identity", "fake")
    return Conversation(engine, render, FakeTokenizer(), frozenset({EOS, END}), SamplingParams(), **options)


def echo(prompt: str) -> str:
    return "you said " + prompt.rsplit("<|user|>", 1)[1].split("<|end|>")[0]


def test_an_answer_joins_the_history_and_its_tokens_are_not_run_again():
    chat = conversation_of(reply=echo, system="Be brief.")
    first = chat.send("hello")
    assert (first.text, first.finish_reason, first.usage.cached_tokens) == ("you said hello", "stop", 0)
    second = chat.send("again")
    assert second.text == "you said again"
    assert second.usage.cached_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert [m["content"] for m in chat.messages] == ["Be brief.", "hello", "you said hello", "again", "you said again"]
    assert chat.system == "Be brief."
    assert chat.dropped == []
    assert chat.tokens_used == len(fake_render(chat.messages, False))


@pytest.mark.parametrize("render", [fake_render, merged_render])
@pytest.mark.parametrize("evict", ["shift", "recompute"])
def test_a_conversation_outgrows_a_512_position_slot_for_200_turns(render, evict):
    chat = conversation_of(context=512, render=render, evict=evict, system="Never forget this.")
    # The fake's answers are a hash of all visible tokens and positions: equal answers mean equal books.
    sent, told = 0, 0
    for turn in range(200):
        question = f"question number {turn} " + "x" * (turn % 23)
        result = chat.send(question, max_tokens=20 + turn % 30)
        sent += 1
        assert chat.messages[0] == {"role": "system", "content": "Never forget this."}
        assert chat.messages[-2] == {"role": "user", "content": question}
        assert chat.messages[-1] == {"role": "assistant", "content": result.text}
        assert chat.messages[1]["role"] == "user"
        told += sum(message["role"] == "user" for message in result.dropped)
        if result.dropped:
            assert result.notes[0].startswith("dropped the first")
            assert result.usage.evicted_tokens > 0
        prompt = render(chat.messages[:-1], True)
        expected = int(fresh_logits(prompt)[: FakeTokenizer.vocab_size].argmax())
        assert (result.tokens or [None])[0] == expected or expected in (EOS, END)
    kept = sum(message["role"] == "user" for message in chat.messages)
    assert kept + told == sent
    assert len(chat.dropped) == 2 * told > 300


def test_shift_keeps_the_keys_of_the_kept_turns():
    chat = conversation_of(reply=echo, context=128, system="S")
    results = [chat.send("0123456789" + str(i)) for i in range(12)]
    dropping = [result for result in results if result.dropped]
    assert dropping
    for result in dropping:
        assert "stayed in the cache" in result.notes[0]
        assert result.usage.cached_tokens > 20
    assert all(result.text.startswith("you said 0123456789") for result in results)


def test_an_answer_that_fills_the_slot_drops_older_turns_and_then_ends():
    chat = conversation_of(context=128, reply=lambda prompt: "abcdefghij" * 30)
    chat.send("one", max_tokens=10)
    chat.send("two", max_tokens=10)
    result = chat.send("three", max_tokens=300)
    assert result.finish_reason == "context"
    assert [m["content"] for m in result.dropped] == ["one", "abcdefghij", "two", "abcdefghij"]
    assert result.text == ("abcdefghij" * 30)[: len(result.text)]
    assert len(result.text) == 128 - len(fake_render([{"role": "user", "content": "three"}])) + 1


@pytest.mark.parametrize("evict", ["shift", "recompute"])
def test_a_middle_eviction_goes_on_exactly_where_a_fresh_conversation_would(evict):
    chat = conversation_of(context=128, evict=evict, system="sys")
    for text in ("one", "two", "three"):
        chat.send(text, max_tokens=12, logit_bias={EOS: -100, END: -100})
    result = chat.send("four", max_tokens=90, logit_bias={EOS: -100, END: -100})
    assert result.dropped
    kept = fake_render(chat.messages[:-1], True)
    last = fresh_logits([*kept, *result.tokens[:-1]]).copy()
    last[[EOS, END]] -= 100
    assert result.tokens[-1] == int(last[: FakeTokenizer.vocab_size].argmax())
    assert result.finish_reason == "length"


def test_errors_leave_the_conversation_as_it_was():
    chat = conversation_of(reply=echo, context=64, system="S")
    chat.send("hi")
    before = chat.messages
    with pytest.raises(ContextLengthError, match="64"):
        chat.send("x" * 80)
    with pytest.raises(UsageError, match="temperature"):
        chat.send("ok", temperature=-1)
    with pytest.raises(UsageError, match="text"):
        chat.send(3)
    assert chat.messages == before
    assert chat.send("ok").text == "you said ok"


def test_evict_error_refuses_and_drops_nothing():
    chat = conversation_of(reply=echo, context=64, evict="error")
    chat.send("hello")
    chat.send("hello")
    with pytest.raises(ContextLengthError, match="shift"):
        chat.send("hello")
    assert chat.dropped == []
    assert chat.send("hello", evict="shift").dropped


def test_retry_edit_system_and_clear():
    chat = conversation_of(reply=echo)
    with pytest.raises(UsageError, match="no message"):
        chat.retry()
    chat.send("one")
    chat.send("two")
    assert chat.retry().text == "you said two"
    assert len(chat.messages) == 4
    assert chat.edit("drei").text == "you said drei"
    assert [m["content"] for m in chat.messages] == ["one", "you said one", "drei", "you said drei"]
    chat.set_system("New.")
    assert chat.messages[0] == {"role": "system", "content": "New."}
    assert chat.send("x").text == "you said x"
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "New."}]


def test_cancelling_keeps_the_partial_answer():
    chat = conversation_of(reply=lambda prompt: "a long answer")
    stream = chat.send("go", stream=True)
    assert next(stream).text == "a"
    with pytest.raises(EngineBusy, match="middle"):
        chat.send("more")
    chat.cancel()
    rest = "".join(piece.text for piece in stream)
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == "a" + rest != "a long answer"
    assert chat.messages[-1] == {"role": "assistant", "content": stream.result.text}
    event = threading.Event()
    event.set()
    assert chat.send("again", cancel=event).finish_reason == "cancelled"


def test_a_dropped_stream_ends_its_answer():
    chat = conversation_of(reply=lambda prompt: "a long answer")
    for piece in chat.send("go", stream=True):
        assert piece.text == "a"
        break
    del piece
    gc.collect()
    assert chat.messages[-1]["content"].startswith("a")
    assert chat.send("go on").text == "a long answer"


def test_closing():
    engine = engine_of(reply=echo)
    with conversation_of(engine) as chat:
        stream = chat.send("x", stream=True)
        next(stream)
    assert list(stream) == [] or stream.done
    with pytest.raises(EngineClosed):
        chat.send("y")
    assert conversation_of(engine).send("z").text == "you said z"
    engine.close()
    with pytest.raises(EngineClosed):
        conversation_of(engine).send("z")


def test_two_conversations_share_one_slot_and_never_mix():
    engine = engine_of(reply=echo)
    one, two = conversation_of(engine), conversation_of(engine, system="other")
    for i in range(4):
        assert one.send(f"a{i}").text == f"you said a{i}"
        assert two.send(f"b{i}").text == f"you said b{i}"


@pytest.mark.parametrize(
    ("messages", "key"),
    [
        ([None], r"messages\[0\]"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "robot", "content": ""}], r"messages\[0\].role"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], r"messages\[1\].role"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content"),
    ],
)
def test_messages_from_outside_are_checked(messages, key):
    with pytest.raises(UsageError, match=key):
        conversation_of(messages=messages)


def test_messages_can_be_given():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    chat = conversation_of(reply=echo, messages=messages)
    assert chat.messages == messages
    assert chat.send("c").text == "you said c"
    with pytest.raises(UsageError, match="twice"):
        conversation_of(messages=messages, system="T")


def test_a_saved_conversation_goes_on_without_a_prefill(tmp_path):
    path = tmp_path / "chat.safetensors"
    chat = conversation_of(context=128, system="S")
    bias = {EOS: -100, END: -100}
    for i in range(8):
        chat.send(f"message {i}", max_tokens=9, logit_bias=bias)
    assert chat.dropped
    chat.save(path)
    other = conversation_of(context=128)
    other.load(path)
    assert (other.messages, other.dropped, other.system) == (chat.messages, chat.dropped, "S")
    ours, theirs = (c.send("and now", max_tokens=9, logit_bias=bias) for c in (chat, other))
    assert ours.tokens == theirs.tokens
    assert theirs.usage.cached_tokens == ours.usage.cached_tokens > 40
    assert [p.name for p in tmp_path.iterdir()] == ["chat.safetensors"]


def test_a_slot_of_another_cache_is_computed_anew(tmp_path):
    path = tmp_path / "chat.safetensors"
    chat = conversation_of(reply=echo, context=128)
    chat.send("one")
    chat.save(path)
    other = conversation_of(reply=echo, context=256)
    other.load(path)
    result = other.send("two")
    assert (result.text, result.usage.cached_tokens) == ("you said two", 0)


def test_another_model_is_refused(tmp_path):
    chat = conversation_of(reply=echo)
    chat.save(tmp_path / "a")
    with pytest.raises(ModelError, match="another model"):
        conversation_of(identity="other").load(tmp_path / "a")
    with pytest.raises(InputError):
        chat.load(tmp_path / "missing")
    with pytest.raises(OutputError, match="missing"):
        chat.save(tmp_path / "missing" / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_hostile_session_files_end_in_a_named_error(tmp_path):
    import json

    import numpy as np
    from safetensors.numpy import load_file, save_file

    chat = conversation_of(reply=echo)
    chat.send("one")
    good = tmp_path / "good"
    chat.save(good)
    size = int.from_bytes(good.read_bytes()[:8], "little")
    table = json.loads(json.loads(good.read_bytes()[8 : 8 + size])["__metadata__"]["edgellm_session"])
    tensors = load_file(good)

    def damaged(change):
        copy = json.loads(json.dumps(table))
        change(copy)
        return copy

    def put(key, value):
        return lambda t: t.__setitem__(key, value)

    def put_slot(key, value):
        return lambda t: t["slot"].__setitem__(key, value)

    changes = [
        put("version", 2),
        put("evict", "all"),
        put("identity", None),
        put("messages", [{"role": "system", "content": "x"}]),
        put("messages", [{"role": "user", "content": None}]),
        put("dropped", 5),
        put("system", 5),
        put("cache", None),
        put("slot", []),
        put_slot("end", -1),
        put_slot("end", True),
        put_slot("end", 10**30),
        put_slot("evicted", 3),
        put_slot("sinks", 10**6),
        put_slot("tokens", [1, 2, 999]),
        put_slot("tokens", "x"),
    ]
    bad = tmp_path / "bad"
    before = chat.messages
    for change in changes:
        save_file(tensors, bad, metadata={"edgellm_session": json.dumps(damaged(change))})
        with pytest.raises(ModelError, match="bad"):
            chat.load(bad)
    files = [b"", b"\0" * 64, good.read_bytes()[:-3], good.read_bytes()[: size // 2]]
    for data in files:
        bad.write_bytes(data)
        with pytest.raises(ModelError, match="bad"):
            chat.load(bad)
    for broken in ({}, {"../x": np.zeros(1)}, {**tensors, "layers.0.keys": np.zeros(3, np.int64)}):
        save_file(broken, bad, metadata={"edgellm_session": json.dumps(table)})
        with pytest.raises(ModelError, match="bad"):
            chat.load(bad)
    save_file(tensors, bad)
    with pytest.raises(ModelError, match="not a saved conversation"):
        chat.load(bad)
    with pytest.raises(EdgeLLMError):
        chat.load(tmp_path)
    assert chat.messages == before
    assert chat.send("two").text == "you said two"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_session_file_is_refused_or_read_but_never_crashes(tmp_path, changes):
    chat = conversation_of(reply=echo, context=64, system="S")
    chat.send("one")
    chat.save(tmp_path / "chat")
    data = bytearray((tmp_path / "chat").read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for at, value in changes:
        data[at % header] = value
    (tmp_path / "chat").write_bytes(data)
    with contextlib.suppress(ModelError):
        chat.load(tmp_path / "chat")
    assert chat.send("two", max_tokens=2).finish_reason in ("length", "stop")


def test_a_numerical_error_ends_the_answer_and_not_the_conversation():
    engine = engine_of(reply=echo)
    chat = conversation_of(engine)
    chat.send("one")
    engine.runner.poison = lambda logits, batch: logits.fill(float("nan"))
    with pytest.raises(EdgeLLMError, match="nan"):
        chat.send("two")
    engine.runner.poison = None
    assert [m["content"] for m in chat.messages] == ["one", "you said one"]
    assert chat.send("three").text == "you said three"


def test_a_raw_prompt_between_two_turns_takes_the_slot_and_nothing_goes_wrong():
    engine = engine_of(context=128)
    chat = conversation_of(engine, system="S")
    for i in range(10):
        chat.send(f"turn {i}", max_tokens=8)
        if i % 3 == 2:
            raw = Stream(engine, engine.submit(request_of(list(b"raw"), max_tokens=4, context=128))).drain()
            assert raw.tokens[0] == int(fresh_logits(list(b"raw"))[:262].argmax())
    result = chat.send("last", max_tokens=8, logit_bias={EOS: -100, END: -100})
    logits = fresh_logits(fake_render(chat.messages[:-1], True)).copy()
    logits[[EOS, END]] -= 100
    assert result.tokens[0] == int(logits[:262].argmax())


def test_an_interrupt_keeps_what_was_said():
    engine = engine_of(reply=lambda prompt: "a long answer")
    chat = conversation_of(engine)

    def interrupt(batch):
        if len(engine.runner.batches) == 5:
            raise KeyboardInterrupt

    engine.runner.before_run = interrupt
    with pytest.raises(KeyboardInterrupt):
        chat.send("go")
    engine.runner.before_run = None
    assert chat.messages[-1] == {"role": "assistant", "content": "a lon"}
    assert chat.send("on").usage.cached_tokens > 5


def test_another_thread_cancels_an_answer():
    engine = engine_of(reply=lambda prompt: "word " * 40, before_run=lambda batch: started.set() or time.sleep(0.005))
    started = threading.Event()
    chat = conversation_of(engine)

    def cancel():
        started.wait(10)
        chat.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    result = chat.send("go", max_tokens=200)
    thread.join(10)
    assert result.finish_reason == "cancelled"
    assert len(result.text) < 150
