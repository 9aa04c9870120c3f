"""Is it right: the GPU's self-test, golden models against transformers, real shapes against the reference."""

from __future__ import annotations

from dataclasses import replace

from edgellm.backends.cuda.device import device_index, open_device
from edgellm.backends.cuda.measure import Yardstick
from edgellm.backends.cuda.self_test import self_test
from edgellm.backends.interface import Batch, Choice
from edgellm.backends.slots import SlotState
from tests.backends.cuda.racing import drawn
from tests.golden_models import cases
from tools.cuda_suite.models import (
    cache_of,
    feed,
    greedy,
    greedy_on_device,
    load,
    load_reference,
    prompt,
    relative_error,
    synthetic,
)
from tools.cuda_suite.settings import Facts, Say, Settings

#: Prompts go through the prefill kernels in float16, the cache is float16; the reference rounds neither.
SHAPE_BOUND = 2e-2
#: The least part of the draws that must be the very ones of float64.
DRAWS_SHARE = 0.98
_SEED = 0x0123456789ABCDEF
_YARDSTICK_SECONDS = 0.3


def device(settings: Settings, say: Say) -> Facts:
    """What the GPU is, whether it does what it is told, how fast it copies."""
    index = device_index(settings.device)
    found = open_device(index).properties
    with Yardstick(index, settings.copy_bytes) as yardstick:
        bandwidth = yardstick.copy_bandwidth(_YARDSTICK_SECONDS)
    wrong = self_test(index)
    say(f"{found.name}, {found.architecture}, {found.multiprocessors} multiprocessors, CUDA {found.driver}")
    say(f"copies {bandwidth / 1e9:.0f} GB/s, read and written; self-test: {wrong or 'ok'}")
    return {
        "ok": wrong is None,
        "name": found.name,
        "architecture": found.architecture,
        "multiprocessors": found.multiprocessors,
        "memory_bytes": found.total_bytes,
        "driver": list(found.driver),
        "copy_bytes_per_second": bandwidth,
        "self_test": wrong or "ok",
    }


def golden(settings: Settings, say: Say) -> Facts:
    """Greedy ids of every golden model against transformers', with a float16 cache: both prompts, and the second once
    more with tokens that the device chooses."""
    rows, ok = {}, True
    for case in cases():
        if settings.golden and not any(part in case.name for part in settings.golden):
            continue
        expected, runner = case.reference(), load(case.folder, settings.device, lm_head="keep")
        same = []
        for number, continued in ((0, greedy), (1, greedy), (1, greedy_on_device)):
            wanted = expected[f"greedy_{number}"][: settings.golden_tokens].tolist()
            found = continued(runner, expected[f"input_ids_{number}"], len(wanted))
            same.append(next((i for i, pair in enumerate(zip(found, wanted, strict=True)) if len(set(pair)) > 1), None))
        runner.close()
        rows[case.name] = ["equal" if at is None else f"differs from id {at} on" for at in same]
        ok = ok and same == [None] * 3
        say(f"{case.name:<22} {' / '.join(rows[case.name])}")
    return {"ok": ok, "models": rows}


def draws(settings: Settings, say: Say) -> Facts:
    """Tokens that the device draws from the small model's logits, against NumPy's with the same random numbers."""
    runner = load(synthetic(settings, settings.small, say), settings.device)
    vocab_size, equal = runner.program.config.vocab_size, []
    limits = ((0.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 40, 1.0), (1.0, 0, 0.9), (1.3, 50, 0.8))
    cache = cache_of(runner, settings.decode_tokens + 1, len(limits))
    states = [SlotState(slot) for slot in range(len(limits))]
    tokens = prompt(runner, len(limits))
    for draw in range(settings.decode_tokens):
        batch = Batch.of([(state, [token], "last") for state, token in zip(states, tokens, strict=True)])
        logits = runner.run(cache, batch)
        choices = tuple(Choice(vocab_size, *limit, seed=_SEED, draw=draw) for limit in limits)
        tokens = runner.choose(cache, replace(batch, choices=choices)).tokens.tolist()  # the same step once more
        equal += [drawn(*pair) == token for *pair, token in zip(logits, choices, tokens, strict=True)]
        states = [state.extended(1) for state in states]
    runner.close()
    share = sum(equal) / len(equal)
    say(f"{sum(equal)} of {len(equal)} draws are NumPy's (goal: {DRAWS_SHARE:.0%}; float32 decides what is close)")
    return {"ok": share >= DRAWS_SHARE, "share": share}


def shapes(settings: Settings, say: Say) -> Facts:
    """One layer, embedding and lm_head at real shapes against the reference: prompts of some lengths, then a token."""
    rows, ok = {}, True
    for model in (settings.large, settings.small):
        folder = synthetic(settings, model, say, layers=1)
        runner, reference = load(folder, settings.device, lm_head="keep"), load_reference(folder)
        for length in settings.shape_tokens:
            ids = prompt(reference, length + 1)
            errors, logits = [], []
            for each in (runner, reference):
                cache = cache_of(each, length + 1)
                first, state = feed(each, cache, SlotState(0), ids[:length], "last")
                second, _ = feed(each, cache, state, ids[length:], "last")
                logits.append((first, second))
            errors = [relative_error(found, wanted) for found, wanted in zip(*logits, strict=True)]
            rows[f"{folder.name} {length}"] = errors
            ok = ok and max(errors) < SHAPE_BOUND
            say(f"{folder.name}, {length} tokens: {errors[0]:.1e}, the token behind: {errors[1]:.1e}")
        runner.close()
        reference.close()
    return {"ok": ok, "bound": SHAPE_BOUND, "relative_errors": rows}
