"""Linear kernels of the CPU backend against what this machine can read and multiply.

    python tools/bench_kernels.py --shapes llama1b --kinds int4 --tokens 1 8 512 --threads 1 2

GB/s count the packed weight once a call, as decode reads it from memory (copies that no cache holds are gone through in
turn); GOP/s count 2 * tokens * planes * rows * inputs. Shares are of the bandwidth and the integer peak measured in the
same run. Every figure is the best of `--rounds`, with the median beside it; other work on the machine shows in both.
With `--clock cpu` a thread's own processor time counts, which leaves out when others ran in its place.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import LinearLayout
from edgellm.backends.cpu.linear_int import op_linear_int4, op_linear_int8
from edgellm.backends.cpu.linear_tiles import LINEAR_FIELDS, STAGE, scratch_sizes
from edgellm.backends.cpu.packing import plan_linear
from edgellm.backends.cpu.quantize import op_quantize
from edgellm.simd import (
    F32_LANES,
    TARGET,
    dot_u7i8,
    load_i32,
    splat_i8,
    splat_u8,
    store,
    tile,
    zero_i32,
)

#: (rows, inputs) of each linear of a layer: qkv, o, gate_up, down.
SHAPES = {
    "qwen05b": [(1152, 896), (896, 896), (9728, 896), (896, 4864)],
    "llama1b": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)],
    "qwen15b": [(2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)],
    "llama7b": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
}
#: More than the caches of any machine this is for.
COPIES_BYTES = 400 << 20
WALL = True


@kernel
def read(memory, out, first, last):
    a, b, c, d = zero_i32(), zero_i32(), zero_i32(), zero_i32()
    step = 4 * F32_LANES
    for at in range(first, last - 4 * step + 1, 4 * step):
        a ^= load_i32(memory, at)
        b ^= load_i32(memory, at + step)
        c ^= load_i32(memory, at + 2 * step)
        d ^= load_i32(memory, at + 3 * step)
    store(out, 0, a ^ b ^ c ^ d)


@kernel
def multiply(out, times):
    sums = tile(zero_i32(), 12)
    u, s = splat_u8(1), splat_i8(1)
    for _ in range(times):
        sums = dot_u7i8(sums, u, s)
    for i in range(12):
        store(out, i * F32_LANES, sums[i])


@kernel
def sweep(kind, out, quads, xs, stage, weights, permutations, ops, act, tokens, planes, ith, nth):
    for i in range(ops.shape[0]):
        op = ops[i]
        if kind == 2:
            op_linear_int4(out, quads, xs, stage, weights, op, tokens, planes, ith, nth)
        else:
            op_linear_int8(out, quads, xs, stage, weights, op, tokens, planes, ith, nth)


def timed(nth: int, rounds: int, work: Callable[[int], None]) -> tuple[float, float]:
    """Best and median seconds of `work(ith)` done by `nth` threads at once, the slowest thread's of each round."""
    clock = time.perf_counter if WALL else time.thread_time
    seconds = []

    def run(ith: int) -> None:
        start = clock()
        work(ith)
        spent[ith] = clock() - start

    for _ in range(rounds):
        spent = [0.0] * nth
        threads = [threading.Thread(target=run, args=(ith,)) for ith in range(nth)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds.append(max(spent))
    return min(seconds), statistics.median(seconds)


def bandwidth(nth: int, rounds: int) -> float:
    """GB/s that `nth` threads read from memory."""
    arena = Arena(COPIES_BYTES)
    arena.bytes[:] = 1
    share = COPIES_BYTES // nth // 4096 * 4096
    out = np.zeros(4 * F32_LANES * nth, np.int32)
    read(arena.bytes, out, 0, 4096)
    best, _ = timed(nth, rounds, lambda ith: read(arena.bytes, out[ith * F32_LANES :], ith * share, (ith + 1) * share))
    return share * nth / best / 1e9


def integer_peak(nth: int, rounds: int) -> float:
    """GOP/s of int8 dot products out of registers."""
    times = 1 << 21
    out = np.zeros((nth, 12 * F32_LANES), np.int32)
    multiply(out[0], 1)
    best, _ = timed(nth, rounds, lambda ith: multiply(out[ith], times))
    return 2 * 12 * 4 * F32_LANES * times * nth / best / 1e9


class Case:
    """One linear with random codes, in enough copies that none is in a cache when its turn comes."""

    def __init__(self, layout: LinearLayout, tokens: int, planes: int, nth: int) -> None:
        self.layout, self.tokens, self.planes, self.nth = layout, tokens, planes, nth
        copies = max(1, min(64, COPIES_BYTES // layout.nbytes)) if tokens <= 16 else 1
        arena = Arena(layout.nbytes * copies)
        rng = np.random.default_rng(0)
        self.ops = np.zeros(copies, LINEAR_FIELDS)
        for op in self.ops:
            op["weight"] = arena.take(layout.nbytes)
        block = rng.integers(0, 0x38, 1 << 20, dtype=np.uint8)
        for first in range(0, len(arena.bytes), len(block)):
            part = arena.bytes[first : first + len(block)]
            part[:] = block[: len(part)]
        quads, xs = scratch_sizes(layout, tokens, planes)
        self.ops["rows"], self.ops["inputs"], self.ops["group"] = layout.rows, layout.inputs, layout.group
        self.ops["own_zeros"], self.ops["factor"] = layout.own_zeros, 1.0
        self.ops["bias"] = self.ops["permutation"] = -1
        self.ops["source_stride"], self.ops["out_stride"] = layout.inputs, layout.rows
        self.arena, self.act = arena, rng.standard_normal(tokens * layout.inputs).astype(np.float32)
        self.out = np.zeros(tokens * layout.rows, np.float32)
        self.quads, self.xs = np.zeros(quads, np.int32), np.zeros(xs, np.float32)
        self.stage, self.permutations = np.zeros(nth * STAGE, np.float32), np.zeros(1, np.int32)
        self.quantize(0, 1)

    def quantize(self, ith: int, nth: int) -> None:
        op_quantize(
            self.quads,
            self.xs,
            self.act,
            self.stage,
            self.permutations,
            self.ops[0],
            self.tokens,
            self.planes,
            ith,
            nth,
        )

    def run(self, ith: int) -> None:
        sweep(
            int(self.layout.kind), self.out, self.quads, self.xs, self.stage, self.arena.bytes, self.permutations,
            self.ops, self.act, self.tokens, self.planes, ith, self.nth,
        )  # fmt: skip

    def row(self, rounds: int, read_gb_s: float, peak: float) -> tuple[float, float, str]:
        """Seconds and bytes of a call, and a line of the table."""
        self.run(0)
        best, median = (seconds / len(self.ops) for seconds in timed(self.nth, rounds, self.run))
        operations = 2 * self.tokens * self.planes * self.layout.rows * self.layout.inputs
        gb_s, gop_s = self.layout.nbytes / best / 1e9, operations / best / 1e9
        line = f"{best * 1e6:9.1f} us ({median * 1e6:9.1f}) {gb_s:6.1f} GB/s {gb_s / read_gb_s:4.0%}"
        return best, self.layout.nbytes, line + f" {gop_s:7.0f} GOP/s {gop_s / peak:4.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["llama1b"], choices=SHAPES)
    parser.add_argument("--kinds", nargs="+", default=["int4"], choices=["int4", "int8"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 512])
    parser.add_argument("--planes", nargs="+", type=int, default=[1], choices=[1, 2])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--own-zeros", action="store_true", help="asymmetric weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    given = parser.parse_args()
    global WALL
    WALL = given.clock == "wall"
    print(f"{TARGET.isa} on {TARGET.cpu}, groups of {given.group}; best (median) of {given.rounds}")
    for nth in given.threads:
        read_gb_s, peak = bandwidth(nth, given.rounds), integer_peak(nth, given.rounds)
        print(f"\n{nth} threads: reads {read_gb_s:.1f} GB/s, multiplies {peak:.0f} GOP/s int8")
        for kind in given.kinds:
            bits = {"int4": 4, "int8": 8}[kind]
            for name in given.shapes:
                for tokens in given.tokens:
                    for planes in given.planes:
                        _table(name, kind, bits, tokens, planes, nth, given, read_gb_s, peak)


def _table(name, kind, bits, tokens, planes, nth, given, read_gb_s, peak) -> None:
    seconds = nbytes = operations = 0
    for rows, inputs in SHAPES[name]:
        layout = plan_linear(rows, inputs, bits, given.group, given.own_zeros)
        best, size, line = Case(layout, tokens, planes, nth).row(given.rounds, read_gb_s, peak)
        seconds, nbytes, operations = seconds + best, nbytes + size, operations + 2 * tokens * planes * rows * inputs
        print(f"{name} {kind} {rows:6d} x {inputs:5d}  T {tokens:4d} planes {planes} {line}")
    gb_s, gop_s = nbytes / seconds / 1e9, operations / seconds / 1e9
    print(
        f"{name} {kind} the layer          T {tokens:4d} planes {planes} {seconds * 1e6:9.1f} us               "
        f"{gb_s:6.1f} GB/s {gb_s / read_gb_s:4.0%} {gop_s:7.0f} GOP/s {gop_s / peak:4.0%}"
    )


if __name__ == "__main__":
    main()
