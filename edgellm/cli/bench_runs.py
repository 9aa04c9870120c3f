"""The timings of `edgellm bench`: what a program that uses `edgellm.load` and `generate` would see."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.api.memory import available_bytes, forget_peak, peak_bytes, resident_bytes

if TYPE_CHECKING:
    from edgellm import LLM, ModelConfig, Result

FIRST_TOKEN_PROMPT = 16
_SEED = 20240229
_ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_SCALE_BYTES = 4
_YARDSTICK_SECONDS = 0.5
#: Of the memory that is free, what the yardstick may take at most.
_YARDSTICK_PART = 4


@dataclass(frozen=True)
class Sizes:
    """What is run: tokens of the prompts, tokens generated, tokens in the slot before them, rounds."""

    prompts: tuple[int, ...]
    generate: int
    depths: tuple[int, ...]
    runs: int

    @property
    def context(self) -> int:
        """Tokens that the longest run needs."""
        decode = max(max(depth, 1) + self.generate for depth in self.depths)
        return max(*self.prompts, FIRST_TOKEN_PROMPT, decode) + 1


@dataclass
class Measured:
    """Figures of every round.

    Attributes:
        prefill: tokens a second, by the prompt's length.
        decode: tokens a second, by depth.
        first_token: seconds.
        read_bandwidth, integer_peak: of the machine, bytes and operations a second, before the first round and after
            each; empty where not measured.
        read_sustained: what reading reached on average while `read_bandwidth` was its best.
        peak_memory_bytes, resident_memory_bytes: of this process after the first round, before anything but the model
            took memory: the most it held, and what it holds.
    """

    prefill: dict[int, list[float]] = field(default_factory=dict)
    decode: dict[int, list[float]] = field(default_factory=dict)
    first_token: list[float] = field(default_factory=list)
    read_bandwidth: list[float] = field(default_factory=list)
    read_sustained: list[float] = field(default_factory=list)
    integer_peak: list[float] = field(default_factory=list)
    peak_memory_bytes: int = 0
    resident_memory_bytes: int = 0


def measure(llm: LLM, sizes: Sizes, say: Callable[[str], None]) -> Measured:
    """All rounds, each with prompts of its own, since a slot remembers the last one; the machine's limits around each.

    Rounds go through all measurements rather than one after the other: what drifts on the machine meets all alike.
    """
    measured = Measured({length: [] for length in sizes.prompts}, {depth: [] for depth in sizes.depths})
    prompts = _Prompts(llm)
    peak = peak_bytes()
    if forget_peak():  # else the memory that the yardstick reads would count as the model's
        _limits(llm, measured, say)
        forget_peak()
    for number in range(1, sizes.runs + 1):
        head = f"round {number} of {sizes.runs}"
        for length in sizes.prompts:
            say(f"{head}: prefill of {length}")
            measured.prefill[length].append(_prefill_rate(prompts.run(length, 1)))
        measured.first_token.append(prompts.run(FIRST_TOKEN_PROMPT, 1).timings.ttft_s)
        for depth in sizes.depths:
            say(f"{head}: decode at depth {depth}")
            result = prompts.run(max(depth, 1), sizes.generate + 1)
            measured.decode[depth].append((len(result.tokens) - 1) / result.timings.decode_s)
        if number == 1:
            measured.resident_memory_bytes = resident_bytes()
            # the system counts the two apart, and not always to the page
            measured.peak_memory_bytes = max(peak, peak_bytes(), measured.resident_memory_bytes)
        _limits(llm, measured, say)
    return measured


def _limits(llm: LLM, measured: Measured, say: Callable[[str], None]) -> None:
    """What the machine can read and multiply just now; of backends that say what a token takes of it."""
    if "work" not in llm.info:
        return
    say("what the machine can read and multiply")
    if llm.info["backend"] == "cuda":
        with _gpu_yardstick(llm.info["device"]) as gpu:
            measured.read_bandwidth.append(gpu.copy_bandwidth(_YARDSTICK_SECONDS))
        return
    with _yardstick(llm.info["threads"]) as yardstick:
        best, sustained = yardstick.read_bandwidths(_YARDSTICK_SECONDS)
        measured.read_bandwidth.append(best)
        measured.read_sustained.append(sustained)
        measured.integer_peak.append(yardstick.integer_peak(_YARDSTICK_SECONDS))


class _Prompts:
    """Runs of random prompts, alike in every process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._random = np.random.default_rng(_SEED)

    def run(self, tokens: int, max_tokens: int) -> Result:
        ids = self._random.integers(0, self._llm.config.vocab_size, tokens).tolist()
        return self._llm.generate(ids, max_tokens=max_tokens, temperature=0, ignore_eos=True, stop=[])


def _prefill_rate(result: Result) -> float:
    return (result.usage.prompt_tokens - result.usage.cached_tokens) / result.timings.prefill_s


def _yardstick(threads: int) -> Any:
    from edgellm.backends.cpu.measure import READ_BYTES, Yardstick

    available = available_bytes()
    return Yardstick(threads, READ_BYTES if available is None else min(READ_BYTES, available // _YARDSTICK_PART))


def _gpu_yardstick(device: str) -> Any:
    """Of the GPU in "cuda:0 name"; what it copies counts as read and written, as published bandwidths do."""
    from edgellm.backends.cuda.device import device_index
    from edgellm.backends.cuda.measure import Yardstick

    return Yardstick(device_index(device.split()[0]))


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def cache_token_bytes(config: ModelConfig, dtype: str, tokens: float) -> int:
    """Bytes of keys and values that attention reads for a token behind `tokens` others, padding left out."""
    head = config.head_dim * _ITEM_BYTES[dtype] + (_SCALE_BYTES if dtype == "int8" else 0)
    rows = sum(min(tokens + 1, window or tokens + 1) for window in config.layer_windows)
    return round(2 * config.num_key_value_heads * head * rows)


def summary(llm: LLM, sizes: Sizes, measured: Measured) -> dict[str, Any]:
    """Medians and shares as JSON-able facts.

    A share is that of the median: of the bandwidth in the machine's median, since virtual machines change between two
    bandwidths within minutes, and of what that sustains; of the integer peak in the best that the machine did.
    """
    work = llm.info.get("work")
    bandwidth = statistics.median(measured.read_bandwidth) if measured.read_bandwidth else None
    sustained = statistics.median(measured.read_sustained) if measured.read_sustained else None
    peak = max(measured.integer_peak, default=None)
    prefill = []
    for length, rates in measured.prefill.items():
        entry: dict[str, Any] = {"tokens": length, "tokens_per_second": spread(rates)}
        if peak and work and work["integer_operations"]:
            used = work["integer_operations"] * entry["tokens_per_second"]["median"]
            entry |= {"operations_per_token": work["integer_operations"], "peak_share": used / peak}
        prefill.append(entry)
    decode = []
    for depth, rates in measured.decode.items():
        entry = {"depth": depth, "tokens": sizes.generate, "tokens_per_second": spread(rates)}
        if bandwidth and work:
            # in the middle of the run
            cache = cache_token_bytes(llm.config, llm.info["cache_dtype"], max(depth, 1) + sizes.generate / 2)
            entry["read_bytes_per_token"] = {"weights": work["weight_bytes"], "cache": cache}
            read = (work["weight_bytes"] + cache) * entry["tokens_per_second"]["median"]
            entry["bandwidth_share"] = read / bandwidth
            if sustained:
                entry["sustained_share"] = read / sustained
        seconds_a_layer = 1 / entry["tokens_per_second"]["median"] / llm.config.num_hidden_layers
        entry["microseconds_per_layer"] = seconds_a_layer * 1e6
        decode.append(entry)
    return {
        "prefill": prefill,
        "decode": decode,
        "first_token": {"tokens": FIRST_TOKEN_PROMPT, "seconds": spread(measured.first_token)},
        "peak_memory_bytes": measured.peak_memory_bytes,
        "resident_memory_bytes": measured.resident_memory_bytes,
        "machine_limits": {
            "read_bytes_per_second": bandwidth,
            "read_bytes_per_second_sustained": sustained,
            "integer_operations_per_second": peak,
            "read_bytes_per_second_measured": measured.read_bandwidth,
            "integer_operations_per_second_measured": measured.integer_peak,
        },
    }
