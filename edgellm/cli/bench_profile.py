"""`edgellm bench --profile`: time and bytes of a step by kind of op, on the CPU backend."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.backends.interface import Batch
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.cli.bench_runs import Sizes
from edgellm.cli.figures import size
from edgellm.cli.opening import open_named
from edgellm.cli.terminal import Terminal

if TYPE_CHECKING:
    from edgellm.backends.cpu.profile import RowTime
    from edgellm.backends.cpu.runner import CpuRunner

_CACHE_DTYPE = "float16"
_SEED = 20240229


def profiles(path: str | None, args: Namespace, sizes: Sizes, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Load the model once more, without the engine, and profile a prefill and decode steps at each depth.

    Returns:
        A dict each: "step", "tokens" that the figures are a mean over (1 for the whole prefill), "ops".
    """
    from edgellm.backends import find
    from edgellm.model.fusion import fuse
    from edgellm.model.program import build_program

    backend = find(args.backend, args.device)
    say("profile: loading")
    with open_named(path) as opened:
        runner = backend.load(fuse(build_program(opened.config)), opened.weights, threads=args.threads)
    try:
        stepper = _Stepper(runner, args, min(backend.prefill_chunk, args.context))
        say(f"profile: prefill of {sizes.prompt}")
        found = [{"step": f"prefill of {sizes.prompt}", "tokens": 1, "ops": by_kind(stepper.prefill(sizes.prompt), 1)}]
        for depth in sizes.depths:
            say(f"profile: decode at depth {depth}")
            rows = stepper.decode(depth, sizes.generate)
            ops = by_kind(rows, sizes.generate)
            found.append({"step": f"decode at depth {depth}", "tokens": sizes.generate, "ops": ops})
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
        """Rows of all steps of a prompt, after one run that nobody times."""
        self._fill(tokens)
        rows: list[RowTime] = []
        state = SlotState(0)
        for count in self._counts(tokens):
            state_after = state.extended(count)
            rows += self._runner.profile(self._cache, self._batch(state, count, last=state_after.length == tokens))
            state = state_after
        return rows

    def decode(self, depth: int, tokens: int) -> list[RowTime]:
        """Rows of `tokens` steps of one token behind `depth` others, after a step that nobody times."""
        state = self._fill(max(depth, 1))
        self._runner.run(self._cache, self._batch(state, 1, last=True))
        state, rows = state.extended(1), []
        for _ in range(tokens):
            rows += self._runner.profile(self._cache, self._batch(state, 1, last=True))
            state = state.extended(1)
        return rows

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
        return Batch.of([(state, ids, "last" if last else "none")])


def by_kind(rows: Iterable[RowTime], parts: int) -> list[dict[str, Any]]:
    """Sums over the rows of each kind, divided by `parts`, the slowest kind first."""
    sums: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = sums.setdefault(row.kind, {"kind": row.kind, "rows": 0, "seconds": 0.0, "bytes": 0})
        entry["rows"] += 1
        entry["seconds"] += row.seconds
        entry["bytes"] += row.nbytes
    total = sum(entry["seconds"] for entry in sums.values()) or 1.0
    return [
        {
            "kind": entry["kind"],
            "rows": entry["rows"] // parts,
            "seconds": entry["seconds"] / parts,
            "share": entry["seconds"] / total,
            "bytes": entry["bytes"] // parts,
        }
        for entry in sorted(sums.values(), key=lambda entry: -entry["seconds"])
    ]


def print_profiles(found: list[dict[str, Any]], terminal: Terminal) -> None:
    """A table a step; bytes are weights and cache, and GB/s what they make of the time."""
    for profile in found:
        of = f", mean of {profile['tokens']} tokens" if profile["tokens"] > 1 else ""
        seconds = sum(entry["seconds"] for entry in profile["ops"])
        terminal.line(f"\n{profile['step']}: {seconds * 1e3:.3g} ms{of}")
        terminal.line(f"  {'op':<14}{'rows':>6}{'ms':>10}{'share':>8}{'bytes':>10}{'GB/s':>8}")
        for entry in profile["ops"]:
            rate = entry["bytes"] / entry["seconds"] / 1e9 if entry["bytes"] and entry["seconds"] > 0 else None
            read = f"{size(entry['bytes']):>10}{rate:>8.1f}" if rate is not None else ""
            line = f"  {entry['kind']:<14}{entry['rows']:>6}{entry['seconds'] * 1e3:>10.3f}{entry['share']:>8.1%}"
            terminal.line(line + read)
