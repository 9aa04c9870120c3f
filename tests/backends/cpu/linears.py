"""Weights for the tests of linear layers, and what they must give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.layout import LinearKind, LinearLayout
from edgellm.backends.cpu.linear_dense import op_linear_f16
from edgellm.backends.cpu.linear_embed import op_embed
from edgellm.backends.cpu.linear_int import op_linear_int4, op_linear_int8
from edgellm.backends.cpu.linear_tiles import STAGE, layout_fields, scratch_sizes
from edgellm.backends.cpu.optable import OP_DTYPE
from edgellm.backends.cpu.packing import layout_of, pack_linear, plan_linear, unpack_linear
from edgellm.backends.cpu.quantize import op_arrange, op_quantize
from edgellm.backends.cpu.work import share
from edgellm.formats import QuantizedTensor


def random_weight(
    rows: int,
    inputs: int,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = False,
    permuted: bool = False,
    seed: int = 0,
) -> QuantizedTensor:
    """Random codes, scales and zero points over their whole range."""
    rng = np.random.default_rng((seed, rows, inputs, bits, group_size))
    groups = (rows, -(-inputs // group_size))
    scales = (rng.random(groups) * 0.02 + 0.001).astype(np.float16)
    zeros = rng.integers(0, (1 << bits) + 1, groups).astype(np.int16)
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, (rows, inputs), dtype=np.uint8)
    permutation = rng.permutation(inputs).astype(np.int32) if permuted else None
    return QuantizedTensor(codes, scales, zeros, bits, group_size, permutation)


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    """Squared error over squared size."""
    difference = found.astype(np.float64) - expected
    return float((difference**2).sum() / max((expected.astype(np.float64) ** 2).sum(), 1e-300))


def quantized(x: np.ndarray, group: int, planes: int) -> np.ndarray:
    """x [T, K] as the kernels see it, float64: the twin of `op_quantize`, in plain NumPy."""
    tokens, inputs = x.shape
    padded = np.zeros((tokens, -(-inputs // group), group), np.float32)
    padded.reshape(tokens, -1)[:, :inputs] = x
    top = np.float32(127 if planes == 1 else 127 * 128)
    largest = np.abs(padded).max(axis=2, keepdims=True)
    used = largest > 1e-30
    inverse = np.divide(top, largest, out=np.zeros_like(largest), where=used)
    steps = np.where(used, largest / top, np.float32(0)).astype(np.float64)
    return (np.rint(padded * inverse) * steps).reshape(tokens, -1)[:, :inputs]


def put_layout(ops: np.ndarray | np.void, layout: LinearLayout) -> None:
    """Say in records what the weight's layout is."""
    for name, value in layout_fields(layout).items():
        ops[name] = value


class Linear:
    """A packed weight with the scratch, the op's record and the calls around its kernels."""

    def __init__(
        self,
        weight: QuantizedTensor | np.ndarray,
        dense_bits: int = 16,
        bias: np.ndarray | None = None,
        *,
        sliced: bool = False,
    ):
        self.layout = plan_linear(*weight.shape, dense_bits, sliced=True) if sliced else layout_of(weight, dense_bits)
        self.arena = Arena(self.layout.nbytes + 256 + 4 * self.layout.blocks * self.layout.lanes)
        self.arena.take(64)  # so that no offset is 0
        self.ops, layout = np.zeros(1, OP_DTYPE), self.layout  # the walker's records: its kernels serve
        ops = self.ops
        offset = self.arena.take(layout.nbytes)
        factor = pack_linear(weight, self.arena.bytes[offset : offset + layout.nbytes], layout)
        self.permutations = np.zeros(5 + layout.inputs, np.int32)
        permutation = getattr(weight, "permutation", None) if layout.kind != LinearKind.F16 else None
        put_layout(ops, layout)
        ops["weight"], ops["factor"], ops["bias"], ops["permutation"] = offset, factor, -1, -1
        self.bias = np.zeros(layout.rows) if bias is None else bias
        if bias is not None:
            padding = np.zeros(layout.blocks * layout.lanes - layout.rows)
            ops["bias"] = self.arena.put(np.append(bias, padding).astype(np.float32))
        if permutation is not None:
            self.permutations[5:] = permutation
            ops["permutation"] = 5
        self.dense = unpack_linear(self.arena.bytes[offset : offset + layout.nbytes], layout, factor)
        if permutation is not None:
            self.dense[:, permutation] = self.dense.copy()

    def seen(self, x: np.ndarray, planes: int) -> np.ndarray:
        """x as it enters the products, in the order of the inputs, float64."""
        if self.layout.kind == LinearKind.F16:
            return x.astype(np.float64)
        order = self.permutations[5:] if self.ops["permutation"][0] >= 0 else np.arange(self.layout.inputs)
        found = np.empty(x.shape)
        found[:, order] = quantized(np.ascontiguousarray(x[:, order]), self.layout.group, planes)
        return found

    def expected(self, x: np.ndarray, planes: int = 1) -> np.ndarray:
        """The twin: float64 [T, rows]."""
        return self.seen(x, planes) @ self.dense.astype(np.float64).T + self.bias

    def run(
        self, x: np.ndarray, planes: int = 1, nth: int = 1, before: np.ndarray | None = None, multiplier: float = 1.0
    ) -> np.ndarray:
        """The kernels' result, float32 [T, rows]; with `before`, before + multiplier * result."""
        tokens, inputs = x.shape
        rows, gap = self.layout.rows, 3
        sizes = scratch_sizes(self.layout, tokens, planes)
        quads, xs = np.full(sizes[0], 0x55AA55AA, np.int32), np.full(sizes[1], np.nan, np.float32)
        stage = np.full(nth * STAGE, np.nan, np.float32)
        act = np.full((tokens, inputs + gap), np.nan, np.float32)
        act[:, :inputs] = x
        out = np.full((tokens, rows + gap), 7.0, np.float32)
        self.ops["source"], self.ops["source_stride"] = 0, inputs + gap
        self.ops["out"], self.ops["out_stride"] = 0, rows + gap
        self.ops["adds"], self.ops["multiplier"] = before is not None, multiplier
        if before is not None:
            out[:, :rows] = before
        op, act = self.ops[0], act.reshape(-1)
        offset = int(op["weight"])
        shared = (out.reshape(-1), quads, xs, stage, self.arena.bytes, op, tokens)
        for ith in range(nth):
            if self.layout.kind == LinearKind.F16:
                op_arrange(xs, act, self.permutations, op, tokens, ith, nth)
            else:
                op_quantize(quads, xs, act, stage, self.permutations, op, tokens, planes, ith, nth)
        for ith in reversed(range(nth)):
            blocks, at = share(ith, nth, self.layout.blocks), ith * STAGE
            if self.layout.kind == LinearKind.F16:
                op_linear_f16(shared[0], xs, stage, self.arena.bytes, op, tokens, *blocks, at)
            elif self.layout.kind == LinearKind.INT8:
                op_linear_int8(*shared, planes, *blocks, offset, at)
            else:
                op_linear_int4(*shared, planes, *blocks, offset, at)
        assert (out[:, rows:] == 7.0).all(), "written behind the rows"
        return out[:, :rows].copy()

    def slices(self) -> Iterator[tuple[LinearKind, np.void]]:
        """What each slice is stored as, and the op's record; those behind the first add to what is there."""
        for number, (offset, layout) in enumerate(self.layout.slices):
            ops = self.ops.copy()
            put_layout(ops, layout)
            ops["weight"] += offset
            if number:
                ops["bias"], ops["adds"] = -1, 1
            yield layout.kind, ops[0]

    def rows_of(self, token_ids: np.ndarray, nth: int = 1) -> np.ndarray:
        """Rows by `op_embed`, float32 [T, inputs], times 0.5."""
        inputs, tokens = self.layout.inputs, len(token_ids)
        out = np.full(tokens * (inputs + 1), 7.0, np.float32)
        self.ops["out"], self.ops["out_stride"] = 0, inputs + 1
        self.ops["adds"], self.ops["multiplier"] = 0, 0.5
        for kind, op in self.slices():
            for ith in range(nth):
                op_embed(out, self.arena.bytes, op, token_ids, int(kind), op["multiplier"], tokens, ith, nth)
        return out.reshape(tokens, -1)[:, :inputs]
