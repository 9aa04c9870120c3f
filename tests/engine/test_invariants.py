"""A sequence's tokens depend on its prompt alone: not on batch-mates, slots, chunks, reuse, copies or pauses.

The fake's logits hash every visible token with its position, read back from the cache rows, so a wrong row, a wrong
position, a token too many or too few changes what is generated.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.engine.conversation import Conversation
from edgellm.engine.sampling import SamplingParams
from edgellm.engine.stream import Stream
from tests.engine.helpers import engine_of, fresh_logits, greedy_ids, request_of
from tests.fakes import END, EOS, FakeTokenizer, fake_render, merged_render

WINDOWS = st.sampled_from([(None, None), (5, None), (4, 4), (None, 7, 3)])
# Few different tokens, so that prompts share prefixes.
PROMPTS = st.lists(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, WINDOWS, st.integers(1, 3), st.integers(1, 9), st.data())
def test_tokens_are_those_of_a_lone_fresh_run(prompts, windows, slots, chunk, data):
    engine = engine_of(context=48, chunk=chunk, slots=slots, windows=windows)
    counts = data.draw(st.lists(st.integers(1, 8), min_size=len(prompts), max_size=len(prompts)))
    streams = [
        Stream(engine, engine.submit(request_of(prompt, max_tokens=count, context=48)))
        for prompt, count in zip(prompts, counts, strict=True)
    ]
    alive = list(range(len(streams)))
    while alive:
        at = data.draw(st.sampled_from(alive))
        if next(streams[at], None) is None:
            alive.remove(at)
    for prompt, count, stream in zip(prompts, counts, streams, strict=True):
        assert stream.result.tokens == greedy_ids(prompt, count, windows)
        assert stream.result.usage.cached_tokens < len(prompt)


@settings(max_examples=40, deadline=None)
@given(PROMPTS, WINDOWS, st.integers(1, 3), st.integers(1, 9), st.data())
def test_closed_and_dropped_streams_change_nothing_for_the_others(prompts, windows, slots, chunk, data):
    engine = engine_of(context=48, chunk=chunk, slots=slots, windows=windows)
    alive = dict(enumerate(submit(engine, prompts)))
    while alive:
        at = data.draw(st.sampled_from(sorted(alive)))
        what = data.draw(st.sampled_from(["next", "next", "next", "close", "cancel", "drop"]))
        expected = greedy_ids(prompts[at], 8, windows)
        if what == "next":
            piece = next(alive[at], None)
            if piece is None:
                assert alive.pop(at).result.tokens == expected
        elif what == "drop":
            del alive[at]
        else:
            stream = alive.pop(at)
            stream.close() if what == "close" else stream.cancel()
            list(stream)
            assert stream.result.tokens == expected[: len(stream.result.tokens)]
    final = Stream(engine, engine.submit(request_of(prompts[0], context=48))).drain()
    assert final.tokens == greedy_ids(prompts[0], 8, windows)
    assert not any(slot.busy for slot in engine._scheduler.slots)


def submit(engine, prompts):
    return [Stream(engine, engine.submit(request_of(prompt, context=48))) for prompt in prompts]


@settings(max_examples=40, deadline=None)
@given(PROMPTS, WINDOWS, st.integers(1, 2), st.integers(1, 9))
def test_tokens_do_not_depend_on_what_the_slot_held_before(prompts, windows, slots, chunk):
    engine = engine_of(context=48, chunk=chunk, slots=slots, windows=windows)
    for prompt in prompts:
        result = Stream(engine, engine.submit(request_of(prompt, max_tokens=6, context=48))).drain()
        assert result.tokens == greedy_ids(prompt, 6, windows)


def kept_by_shift(prompt: list[int], count: int, context: int, sinks: int) -> list[int]:
    """Greedy ids where the oldest token behind the sinks leaves a full slot, by the definition."""
    kept, out = list(prompt), []
    for _ in range(count):
        while len(kept) > context:
            del kept[sinks]
        out.append(int(fresh_logits(kept)[: FakeTokenizer.vocab_size].argmax()))
        kept.append(out[-1])
    return out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=24), st.integers(1, 9), st.integers(0, 110))
def test_a_raw_text_goes_on_in_a_full_slot(prompt, chunk, more):
    engine = engine_of(context=24, chunk=chunk)
    count = 24 - len(prompt) + more + 1
    result = Stream(engine, engine.submit(request_of(prompt, max_tokens=count, context=24))).drain()
    assert result.tokens == kept_by_shift(prompt, count, 24, 4)
    assert result.usage.evicted_tokens == max(len(prompt) + count - 1 - 24, 0)
    # What an eviction left behind is no start for a fresh prompt, but for the sinks.
    again = Stream(engine, engine.submit(request_of(prompt, max_tokens=3, context=24))).drain()
    assert again.tokens == kept_by_shift(prompt, 3, 24, 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60))
def test_sliding_layers_never_fill_a_slot(more):
    engine = engine_of(context=24, chunk=3, windows=(4, 6))
    result = Stream(engine, engine.submit(request_of([1, 2, 3], max_tokens=30 + more, context=24))).drain()
    assert result.tokens == greedy_ids([1, 2, 3], 30 + more, (4, 6))
    assert result.usage.evicted_tokens == 0


BIAS = {EOS: -100, END: -100}
TURNS = st.lists(
    st.tuples(st.sampled_from("ab"), st.text("xyz", max_size=30), st.integers(1, 40), st.booleans()),
    min_size=4,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(
    TURNS,
    st.integers(1, 2),
    st.sampled_from(["shift", "recompute"]),
    st.integers(1, 12),
    st.sampled_from([fake_render, merged_render]),
)
def test_conversations_answer_as_fresh_ones_of_their_kept_messages_would(turns, slots, evict, chunk, render):
    engine = engine_of(context=96, chunk=chunk, slots=slots)
    chats = {
        name: Conversation(
            engine, render, FakeTokenizer(), frozenset({EOS, END}), SamplingParams(), system=name, evict=evict
        )
        for name in "ab"
    }
    for name, text, count, retry in turns:
        chat = chats[name]
        result = chat.send(text, max_tokens=count, logit_bias=BIAS)
        if retry:
            result = chat.retry(max_tokens=count, logit_bias=BIAS)
        assert result.finish_reason in ("length", "context")
        prompt = render(chat.messages[:-1])
        for at in (0, len(result.tokens) - 1) if not result.dropped else (len(result.tokens) - 1,):
            logits = fresh_logits([*prompt, *result.tokens[:at]]).copy()
            logits[[EOS, END]] -= 100
            assert result.tokens[at] == int(logits[: FakeTokenizer.vocab_size].argmax())
        assert result.text == FakeTokenizer().decode(result.tokens, skip_special_tokens=True)
