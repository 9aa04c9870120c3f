"""Integer ops, lowered or emulated as this process has it, against plain Python numbers. `test_isas.py` runs
it for each ISA.
"""

from __future__ import annotations

import operator

import numpy as np
import pytest

from edgellm.simd import TARGET
from tests.simd import kernels, plain
from tests.simd.plain import integer_values, listed

INTEGER_TYPES = {"i32": np.int32, "i16": np.int16, "i8": np.int8, "u8": np.uint8}
INTEGER_OPS = {
    "add": operator.add,
    "sub": operator.sub,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "invert": lambda a, b: ~a,
    "shl": lambda a, b: a << 3,
    "shr": lambda a, b: a >> 3,
    "minimum": min,
    "maximum": max,
} | {name: (lambda a, b, name=name: int(getattr(operator, name)(a, b))) for name in kernels.COMPARISONS}


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_integer_ops(kind: str) -> None:
    dtype = INTEGER_TYPES[kind]
    a, b = integer_values(dtype, 128, 0), integer_values(dtype, 128, 1)
    out = np.empty((len(kernels.INTEGER_ROWS), 128), dtype)
    kernels.INTEGER_KERNELS[kind](a, b, 3, out)
    rows = dict(zip(kernels.INTEGER_ROWS, out, strict=True))
    bits, lanes = a.itemsize * 8, TARGET.vector_bytes // a.itemsize
    for name, op in INTEGER_OPS.items():
        pairs = zip(listed(a), listed(b), strict=True)
        expected = [plain.wrap(op(x, y), bits, kind != "u8") for x, y in pairs]
        assert listed(rows[name]) == expected, name
    assert listed(rows["splat"]) == [int(a[i - i % lanes]) for i in range(128)]


def test_signed_integers() -> None:
    arrays = [integer_values(dtype, 64, seed) for dtype, seed in ((np.int32, 0), (np.int32, 1), (np.int16, 0))]
    arrays += [integer_values(np.int16, 64, 1), integer_values(np.int8, 64, 0)]
    outs = [np.empty((3, 64), np.int32), np.empty((3, 64), np.int16), np.empty((2, 64), np.int8)]
    kernels.signed(*arrays, *outs)
    for a, b, out in (
        (arrays[0], arrays[1], outs[0]),
        (arrays[2], arrays[3], outs[1]),
        (arrays[4], arrays[4], outs[2]),
    ):
        bits = a.itemsize * 8
        assert listed(out[0]) == [plain.wrap(-x, bits) for x in listed(a)]
        assert listed(out[1]) == [plain.wrap(abs(x), bits) for x in listed(a)]
        if len(out) == 3:
            assert listed(out[2]) == [plain.wrap(x * y, bits) for x, y in zip(listed(a), listed(b), strict=True)]


def test_dot_products() -> None:
    u, s = integer_values(np.uint8, 512, 5), integer_values(np.int8, 512, 6)
    acc = integer_values(np.int32, 128, 7)
    ends = [(255, -128), (255, 127), (127, -128), (128, -128), (128, 127), (0, -128), (127, 127)]
    for block, (x, y) in enumerate(ends):  # whole quads of the worst, where a 16-bit sum would saturate
        u[16 * block : 16 * block + 8], s[16 * block : 16 * block + 8] = x, y
    acc[:2] = [2**31 - 1, -(2**31)]
    out = np.empty((3, 128), np.int32)
    kernels.dots(u, s, acc, out)
    u, s, acc = listed(u), listed(s), listed(acc)
    for row, left in enumerate((u, [x & 127 for x in u], [plain.wrap(x, 8) for x in u])):
        sums = [sum(left[4 * i + k] * s[4 * i + k] for k in range(4)) for i in range(128)]
        assert listed(out[row]) == [plain.wrap(a + x, 32) for a, x in zip(acc, sums, strict=True)]


def test_dot_products_of_words() -> None:
    a, b = integer_values(np.int16, 256, 8), integer_values(np.int16, 256, 9)
    acc = integer_values(np.int32, 128, 10)
    ends = [(-32768, -32768), (32767, 32767), (32767, -32768), (-32768, 1), (0, -32768)]
    for block, (x, y) in enumerate(ends):  # two times 2^30 leave 32 bits, and wrap
        a[8 * block : 8 * block + 4], b[8 * block : 8 * block + 4] = x, y
    acc[:2] = [2**31 - 1, -(2**31)]
    out = np.empty(128, np.int32)
    kernels.word_dots(a, b, acc, out)
    a, b, acc = listed(a), listed(b), listed(acc)
    sums = [a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1] for i in range(128)]
    assert listed(out) == [plain.wrap(start + x, 32) for start, x in zip(acc, sums, strict=True)]
