"""How fast it is: decode against the copies' bandwidth, prefill against float16 products, what the host costs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgellm.backends.cuda.dependent import SWITCH
from edgellm.backends.cuda.device import device_index
from edgellm.backends.cuda.measure import Yardstick
from edgellm.backends.cuda.runner import TOKENS, CudaRunner
from edgellm.backends.interface import Batch, Choice
from edgellm.backends.slots import SlotState
from tools.cuda_suite.models import cache_of, feed, greedy, load, prompt, synthetic
from tools.cuda_suite.settings import Facts, Say, Settings

#: The goals, as shares: of the copies' bandwidth, of the product's rate; tokens of batch 8 over those of batch 1.
LARGE_SHARE, SMALL_SHARE, PREFILL_SHARE, BATCH_GAIN = 0.70, 0.45, 0.35, 6.0
#: Microseconds of the host that a token may cost beside its graph.
HOST_MICROSECONDS = 5.0
_BATCH = 8
_WARM_UP = 3
_YARDSTICK_SECONDS = 0.3
_TORCH = """
import sys, torch
side, device = int(sys.argv[1]), sys.argv[2]
a, b = (torch.randn(side, side, device=device, dtype=torch.float16) for _ in range(2))
begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
for _ in range(3): a @ b
begin.record()
for _ in range(10): a @ b
end.record()
torch.cuda.synchronize()
print(10 * 2 * side ** 3 / (begin.elapsed_time(end) / 1e3))
"""


def decode(settings: Settings, say: Say) -> Facts:
    """Tokens a second of both models at batch 1 and 8, and the share of the copies' bandwidth that batch 1 reads."""
    with Yardstick(device_index(settings.device), settings.copy_bytes) as yardstick:
        bandwidth = yardstick.copy_bandwidth(_YARDSTICK_SECONDS)
    facts: Facts = {"ok": True, "copy_bytes_per_second": bandwidth, "models": {}}
    for model, goal in ((settings.large, LARGE_SHARE), (settings.small, SMALL_SHARE)):
        folder = synthetic(settings, model, say)
        begin = time.perf_counter()
        runner = load(folder, settings.device)
        loading = time.perf_counter() - begin
        row = _decode_of(runner, settings)
        runner.close()
        row["load_seconds"] = loading
        row["bandwidth_share"] = row["weight_bytes"] * row["tokens_per_second"] / bandwidth
        facts["models"][folder.name] = row
        facts["ok"] &= row["bandwidth_share"] >= goal and row["batch_gain"] >= BATCH_GAIN
        say(
            f"{folder.name}: {row['tokens_per_second']:.1f} tokens/s, {row['bandwidth_share']:.0%} of "
            f"{bandwidth / 1e9:.0f} GB/s (goal {goal:.0%}), {row['microseconds_per_layer']:.1f} us a layer; "
            f"batch {_BATCH}: {row['batch_gain']:.2f} x (goal {BATCH_GAIN:.0f}); loaded in {loading:.1f} s"
        )
    return facts


def _decode_of(runner: CudaRunner, settings: Settings) -> dict[str, Any]:
    context = settings.decode_tokens + _WARM_UP + 2
    one, many = (_steps(runner, settings.decode_tokens, context, batch) for batch in (1, _BATCH))
    layers = runner.program.config.num_hidden_layers
    return {
        "tokens_per_second": 1 / one,
        "batch_tokens_per_second": _BATCH / many,
        "batch_gain": _BATCH * one / many,
        "microseconds_per_layer": one * 1e6 / layers,
        "weight_bytes": runner.describe()["work"]["weight_bytes"],
        "weights_held_bytes": runner.weight_nbytes,
    }


def _steps(runner: CudaRunner, count: int, context: int, batch: int) -> float:
    """Median seconds of a decode step of `batch` sequences, tokens chosen on the device and fed back."""
    cache = cache_of(runner, context, batch)
    states = [SlotState(slot) for slot in range(batch)]
    likeliest = (Choice(runner.program.config.vocab_size),) * batch
    tokens, seconds = prompt(runner, batch), []
    for number in range(count + _WARM_UP):
        begin = time.perf_counter()
        tokens = runner.choose(cache, replace(_batch(states, tokens), choices=likeliest)).tokens.tolist()
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - begin)
        states = [state.extended(1) for state in states]
    return statistics.median(seconds)


def _batch(states: Sequence[SlotState], tokens: Sequence[int]) -> Batch:
    return Batch.of([(state, [int(token)], "last") for state, token in zip(states, tokens, strict=True)])


def host(settings: Settings, say: Say) -> Facts:
    """What a decode step costs beside its graph: the step's time less the device's own, medians of the small model."""
    runner = load(synthetic(settings, settings.small, say), settings.device)
    cache = cache_of(runner, settings.decode_tokens + _WARM_UP + 2)
    state, wall, device = SlotState(0), [], []
    likeliest = (Choice(runner.program.config.vocab_size),)
    for number in range(settings.decode_tokens + _WARM_UP):
        batch = replace(_batch([state], [number % 7]), choices=likeliest)
        begin = time.perf_counter()
        runner.choose(cache, batch)
        took = time.perf_counter() - begin
        again = runner.device_seconds(cache, 1, TOKENS)  # the same step once more, timed by the device
        if number >= _WARM_UP:
            wall.append(took)
            device.append(again)
        state = state.extended(1)
    runner.close()
    beside = (statistics.median(wall) - statistics.median(device)) * 1e6
    nodes = cache.steps.launches(1, TOKENS)
    say(f"a step takes {np.median(wall) * 1e6:.0f} us, its graph of {nodes} nodes {np.median(device) * 1e6:.0f} us")
    say(f"beside the graph: {beside:.1f} us (goal: under {HOST_MICROSECONDS:.0f})")
    return {"ok": beside < HOST_MICROSECONDS, "microseconds_beside_graph": beside, "nodes": nodes}


def overlap(settings: Settings, say: Say) -> Facts:
    """Decode of the small model with launches that begin beside the one before them, and with none that do; good where
    the greedy ids are the same."""
    folder, seconds, ids = synthetic(settings, settings.small, say), {}, {}
    before = os.environ.get(SWITCH)
    try:
        for value in ("1", "0"):
            os.environ[SWITCH] = value
            runner = load(folder, settings.device)
            seconds[value] = _steps(runner, settings.decode_tokens, settings.decode_tokens + _WARM_UP + 2, 1)
            ids[value] = greedy(runner, prompt(runner, 9), settings.decode_tokens)
            runner.close()
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before
    gain = seconds["0"] / seconds["1"]
    say(f"a step takes {seconds['1'] * 1e6:.0f} us, without overlap {seconds['0'] * 1e6:.0f}: {gain:.3f} x")
    return {
        "ok": ids["1"] == ids["0"],
        "step_seconds": seconds["1"],
        "step_seconds_without": seconds["0"],
        "gain": gain,
    }


def prefill(settings: Settings, say: Say) -> Facts:
    """Prompt tokens a second of the large model, as a share of a float16 product's rate on the same card."""
    runner = load(synthetic(settings, settings.large, say), settings.device)
    ids, seconds = prompt(runner, settings.prompt_tokens), []
    for _ in range(3):
        cache = cache_of(runner, settings.prompt_tokens)
        begin = time.perf_counter()
        feed(runner, cache, SlotState(0), ids, "last")
        seconds.append(time.perf_counter() - begin)
    config = runner.program.config
    runner.close()
    rate = len(ids) / min(seconds)
    linears = runner.program.parameters - 2 * config.vocab_size * config.hidden_size
    operations = 2.0 * linears * rate
    facts: Facts = {"tokens_per_second": rate, "operations_per_second": operations, "ok": True}
    say(f"{settings.prompt_tokens} tokens at {rate:.0f} tokens/s: {operations / 1e12:.1f} TFLOP/s in the linears")
    if settings.matmul:
        product = float(_run([sys.executable, "-c", _TORCH, str(settings.matmul), settings.device]))
        facts |= {"product_operations_per_second": product, "product_share": operations / product}
        facts["ok"] = facts["product_share"] >= PREFILL_SHARE
        say(f"{facts['product_share']:.0%} of torch's {product / 1e12:.0f} TFLOP/s (goal {PREFILL_SHARE:.0%})")
    return facts


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
