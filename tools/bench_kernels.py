"""Linear kernels of the CPU backend against what this machine can read and multiply.

    python tools/bench_kernels.py --shapes llama1b --kinds int4 --tokens 1 8 512 --threads 1 2

The yardstick is measured next to every call, turn and turn about, so that other work on the machine slows both: up to
`DECODE` tokens plain reading of as many bytes as the packed weight has, from memory (copies that no cache holds are
gone through in turn), by the wall clock; beyond, int8 dot products out of registers, for float16 weights float
multiply-adds, by the threads' own processor time, which does not count when others run. Figures are the best and the
upper quartile; the share is that of the bests. GOP/s count 2 * tokens * planes * rows * inputs.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable

import numpy as np

from edgellm.backends.cpu.arena import Arena, aligned_zeros
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import LinearKind, LinearLayout
from edgellm.backends.cpu.linear_dense import op_linear_f16
from edgellm.backends.cpu.linear_int import op_linear_int4, op_linear_int8
from edgellm.backends.cpu.linear_next import block_begin
from edgellm.backends.cpu.linear_tiles import LINEAR_FIELDS, STAGE, layout_fields, scratch_sizes
from edgellm.backends.cpu.measure import READ_BYTES, SUMS, multiply, multiply_floats, read
from edgellm.backends.cpu.packing import plan_linear
from edgellm.backends.cpu.quantize import op_arrange, op_quantize
from edgellm.backends.cpu.work import share
from edgellm.simd import F32_LANES, TARGET

#: (rows, inputs) of each linear of a layer: qkv, o, gate_up, down.
SHAPES = {
    "qwen05b": [(1152, 896), (896, 896), (9728, 896), (896, 4864)],
    "llama1b": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)],
    "qwen15b": [(2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)],
    "llama7b": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
}
KINDS = {"int4": 4, "int8": 8, "f16": 16}
#: Up to so many tokens reading is what a linear is measured by.
DECODE = 4


@kernel
def linear(kind, out, quads, xs, stage, weights, op, following, tokens, planes, ith, nth):
    first, last = share(ith, nth, (op["rows"] + F32_LANES - 1) // F32_LANES)
    begin, at = block_begin(following, first), ith * STAGE
    if kind == 2:
        op_linear_int4(out, quads, xs, stage, weights, op, tokens, planes, first, last, begin, at)
    elif kind == 1:
        op_linear_int8(out, quads, xs, stage, weights, op, tokens, planes, first, last, begin, at)
    else:
        op_linear_f16(out, xs, stage, weights, op, tokens, first, last, at)


class Case:
    """One linear with random codes, in enough copies that none is in a cache when its turn comes."""

    def __init__(self, layout: LinearLayout, tokens: int, planes: int, nth: int) -> None:
        self.layout, self.tokens, self.planes, self.nth = layout, tokens, planes, nth
        copies = max(2, min(64, READ_BYTES // layout.nbytes))
        self.arena = Arena(layout.nbytes * copies)
        rng = np.random.default_rng(0)
        some = rng.integers(0, 0x38, 1 << 20, dtype=np.uint8)  # as float16 scales: small and finite
        for first in range(0, len(self.arena.bytes), len(some)):
            part = self.arena.bytes[first : first + len(some)]
            part[:] = some[: len(part)]
        self.ops = np.zeros(copies, LINEAR_FIELDS)
        self.ops["weight"] = [self.arena.take(layout.nbytes) for _ in range(copies)]
        for name, value in layout_fields(layout).items():
            self.ops[name] = value
        self.ops["factor"], self.ops["bias"], self.ops["permutation"] = 1.0, -1, -1
        self.ops["source_stride"], self.ops["out_stride"] = layout.inputs, layout.rows
        self.act = rng.standard_normal(tokens * layout.inputs).astype(np.float32)
        self.out = aligned_zeros(tokens * layout.rows, np.float32)
        quads, xs = scratch_sizes(layout, tokens, planes)
        self.quads, self.xs = aligned_zeros(quads, np.int32), aligned_zeros(xs, np.float32)
        self.stage, self.permutations = aligned_zeros(nth * STAGE, np.float32), np.zeros(1, np.int32)
        self.sink = np.zeros((nth, SUMS * F32_LANES), np.int32)
        self.float_sink = self.sink.view(np.float32)
        self.quantize()

    @property
    def operations(self) -> int:
        return 2 * self.tokens * self.planes * self.layout.rows * self.layout.inputs

    def quantize(self) -> None:
        if self.layout.kind == LinearKind.F16:
            op_arrange(self.xs, self.act, self.permutations, self.ops[0], self.tokens, 0, 1)
            return
        scratch = (self.quads, self.xs, self.act, self.stage, self.permutations)
        op_quantize(*scratch, self.ops[0], self.tokens, self.planes, 0, 1)

    def run(self, ith: int, copy: int) -> None:
        arrays = (self.out, self.quads, self.xs, self.stage, self.arena.bytes)
        ops = self.ops[copy], self.ops[(copy + 1) % len(self.ops)]
        linear(int(self.layout.kind), *arrays, *ops, self.tokens, self.planes, ith, self.nth)

    def read(self, ith: int, copy: int) -> None:
        size = self.layout.nbytes // self.nth // 64 * 64
        first = int(self.ops["weight"][copy]) + ith * size
        read(self.arena.bytes, self.sink[ith], first, first + size)

    def multiply(self, ith: int, copy: int) -> None:
        each = 2 * SUMS * F32_LANES * self.nth
        if self.layout.kind == LinearKind.F16:
            multiply_floats(self.float_sink[ith], self.operations // 8 // each, 0.5)
        else:
            multiply(self.sink[ith], self.operations // 8 // (4 * each))

    def measure(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Sorted seconds of the kernel and of its yardstick, scaled to the same bytes or operations."""
        decodes = self.tokens <= DECODE
        yardstick = self.read if decodes else self.multiply
        self.run(0, 0)
        yardstick(0, 0)
        copies = len(self.ops)
        spent = alternate(
            self.nth,
            seconds,
            time.perf_counter if decodes else time.thread_time,
            lambda ith, turn: self.run(ith, turn % copies),
            lambda ith, turn: yardstick(ith, (turn + copies // 2) % copies),
        )
        return spent[0], spent[1] * (1 if decodes else 8)

    def line(self, seconds: float) -> tuple[float, float, str]:
        """Best seconds of the kernel and its yardstick, and a line of the table."""
        run, measure = self.measure(seconds)
        best, quartile = run[0], run[len(run) // 4]
        text = f"{best * 1e6:9.1f} us ({quartile * 1e6:9.1f}) "
        return best, measure[0], text + rates(self.layout.nbytes, self.operations, best, measure[0], self.tokens)


def alternate(
    nth: int, seconds: float, clock: Callable[[], float], *works: Callable[[int, int], None]
) -> list[np.ndarray]:
    """Sorted times of each work, done in turns by `nth` threads that begin together, the slowest thread's; `seconds`
    in all."""
    together = threading.Barrier(nth)
    spent: list[list[float]] = [[] for _ in works]
    own = [0.0] * nth
    done = time.perf_counter() + seconds
    turns = 0

    def go(ith: int) -> None:
        nonlocal turns
        turn = 0
        while turn == turns:
            for work, times in zip(works, spent, strict=True):
                together.wait()
                start = clock()
                work(ith, turn)
                own[ith] = clock() - start
                together.wait()
                if ith == 0:
                    times.append(max(own))
            turn += 1
            if ith == 0 and (time.perf_counter() < done or turn < 3):
                turns = turn
            together.wait()

    threads = [threading.Thread(target=go, args=(ith,)) for ith in range(nth)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [np.sort(times) for times in spent]


def rates(nbytes: float, operations: float, best: float, yardstick: float, tokens: int) -> str:
    if tokens <= DECODE:
        return f"{nbytes / best / 1e9:6.1f} of {nbytes / yardstick / 1e9:5.1f} GB/s  {yardstick / best:4.0%}"
    return f"{operations / best / 1e9:6.0f} of {operations / yardstick / 1e9:5.0f} GOP/s {yardstick / best:4.0%}"


def layer(name: str, kind: str, tokens: int, planes: int, nth: int, given: argparse.Namespace) -> None:
    """A table of a layer's linears and their sum."""
    best = yardstick = nbytes = operations = 0
    for rows, inputs in SHAPES[name]:
        group = None if kind == "f16" else given.group
        case = Case(plan_linear(rows, inputs, KINDS[kind], group, given.own_zeros), tokens, planes, nth)
        run, measure, text = case.line(given.seconds)
        best, yardstick = best + run, yardstick + measure
        nbytes, operations = nbytes + case.layout.nbytes, operations + case.operations
        print(f"{name} {kind:4} {rows:6d} x {inputs:5d} T {tokens:4d} planes {planes} threads {nth} {text}", flush=True)
    text = rates(nbytes, operations, best, yardstick, tokens)
    head = f"{name} {kind:4} the layer      T {tokens:4d} planes {planes} threads {nth}"
    print(f"{head} {best * 1e6:9.1f} us             {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["llama1b"], choices=SHAPES)
    parser.add_argument("--kinds", nargs="+", default=["int4"], choices=KINDS)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 512])
    parser.add_argument("--planes", nargs="+", type=int, default=[1], choices=[1, 2])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--own-zeros", action="store_true", help="asymmetric weights")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each linear and its yardstick")
    given = parser.parse_args()
    print(f"{TARGET.isa} on {TARGET.cpu}, groups of {given.group}; best (upper quartile), {given.seconds:g} s each")
    for nth in given.threads:
        for kind in given.kinds:
            for name in given.shapes:
                for tokens in given.tokens:
                    for planes in given.planes if kind != "f16" else [1]:
                        layer(name, kind, tokens, planes, nth, given)


if __name__ == "__main__":
    main()
