"""`edgellm bench --profile`: time and bytes of a step by kind of op, on the CPU backend."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.backends.interface import Batch, LogitsUse
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.cli.bench_runs import Sizes
from edgellm.cli.figures import size
from edgellm.cli.opening import open_named
from edgellm.cli.options import precision_of
from edgellm.cli.terminal import Terminal

if TYPE_CHECKING:
    from edgellm.backends.cpu.profile import RowTime
    from edgellm.backends.cpu.runner import CpuRunner

_CACHE_DTYPE = "float16"
_SEED = 20240229


def profiles(path: str | None, args: Namespace, sizes: Sizes, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Load the model once more, without the engine, and profile a prefill and decode steps at each depth.

    Returns:
        A dict each: "step", "repeats" that the figures are medians of, "ops" as `by_kind` gives them.
    """
    from edgellm.backends import find, options_for
    from edgellm.model.fusion import fuse
    from edgellm.model.program import build_program

    backend = find(args.backend, args.device)
    say("profile: loading")
    with open_named(path) as opened:
        chosen = options_for(backend, precision_of(args))
        program = fuse(build_program(opened.config))
        runner = backend.load(program, opened.weights, device=args.device, threads=args.threads, **chosen)
    try:
        stepper = _Stepper(runner, args, min(backend.prefill_chunk, args.context))
        found = []
        for prompt in sizes.prompts:
            say(f"profile: prefill of {prompt}")
            times = [stepper.prefill(prompt) for _ in range(sizes.runs)]
            found.append({"step": f"prefill of {prompt}", "repeats": sizes.runs, "ops": by_kind(times)})
        for depth in sizes.depths:
            say(f"profile: decode at depth {depth}")
            times = stepper.decode(depth, sizes.generate)
            found.append({"step": f"decode at depth {depth}", "repeats": sizes.generate, "ops": by_kind(times)})
        return found
    finally:
        runner.close()


class _Stepper:
    """Steps over random tokens in a cache as `edgellm.load` would make it."""

    def __init__(self, runner: CpuRunner, args: Namespace, chunk: int) -> None:
        config = runner.program.config
        geometry = CacheGeometry(
            context=args.context,
            windows=config.layer_windows,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            chunk=chunk,
            dtype=args.cache_dtype or _CACHE_DTYPE,
        )
        self._runner, self._cache, self._chunk = runner, runner.new_cache(geometry, 1), chunk
        self._vocab_size = config.vocab_size
        self._random = np.random.default_rng(_SEED)

    def prefill(self, tokens: int) -> list[RowTime]:
        """Rows of all steps of a prompt."""
        rows: list[RowTime] = []
        state = SlotState(0)
        for count in self._counts(tokens):
            state_after = state.extended(count)
            rows += self._runner.profile(self._cache, self._batch(state, count, last=state_after.length == tokens))
            state = state_after
        return rows

    def decode(self, depth: int, tokens: int) -> list[list[RowTime]]:
        """Rows of each of `tokens` steps of one token behind `depth` others."""
        state, steps = self._fill(max(depth, 1)), []
        for _ in range(tokens):
            steps.append(self._runner.profile(self._cache, self._batch(state, 1, last=True)))
            state = state.extended(1)
        return steps

    def _fill(self, tokens: int) -> SlotState:
        state = SlotState(0)
        for count in self._counts(tokens):
            self._runner.run(self._cache, self._batch(state, count, last=False))
            state = state.extended(count)
        return state

    def _counts(self, tokens: int) -> list[int]:
        whole, rest = divmod(tokens, self._chunk)
        return [self._chunk] * whole + [rest] * (rest > 0)

    def _batch(self, state: SlotState, count: int, *, last: bool) -> Batch:
        ids = self._random.integers(0, self._vocab_size, count).tolist()
        return Batch.of([(state, ids, "last" if last else "none")], logits_use=LogitsUse.LARGEST)


def by_kind(repeats: Sequence[Sequence[RowTime]]) -> list[dict[str, Any]]:
    """Sums over the rows of each kind, the slowest kind first.

    Args:
        repeats: the same rows, several times; of a row the median time counts, so that a thread that had to wait for
            its processor now and then does not.
    """
    sums: dict[str, dict[str, Any]] = {}
    for times in zip(*repeats, strict=True):
        kind = times[0].kind
        entry = sums.setdefault(kind, {"kind": kind, "rows": 0, "seconds": 0.0, "share": 0.0, "bytes": 0})
        entry["rows"] += 1
        entry["seconds"] += statistics.median(row.seconds for row in times)
        entry["bytes"] += sum(row.nbytes for row in times) // len(times)
    total = sum(entry["seconds"] for entry in sums.values()) or 1.0
    for entry in sums.values():
        entry["share"] = entry["seconds"] / total
    return sorted(sums.values(), key=lambda entry: -entry["seconds"])


def print_profiles(found: list[dict[str, Any]], terminal: Terminal) -> None:
    """A table a step; bytes are weights and cache, and GB/s what they make of the time."""
    for profile in found:
        seconds = sum(entry["seconds"] for entry in profile["ops"])
        terminal.line(f"\n{profile['step']}: {seconds * 1e3:.3g} ms, medians of {profile['repeats']}")
        terminal.line(f"  {'op':<14}{'rows':>6}{'ms':>10}{'share':>8}{'bytes':>10}{'GB/s':>8}")
        for entry in profile["ops"]:
            rate = entry["bytes"] / entry["seconds"] / 1e9 if entry["bytes"] and entry["seconds"] > 0 else None
            read = f"{size(entry['bytes']):>10}{rate:>8.1f}" if rate is not None else ""
            line = f"  {entry['kind']:<14}{entry['rows']:>6}{entry['seconds'] * 1e3:>10.3f}{entry['share']:>8.1%}"
            terminal.line(line + read)
