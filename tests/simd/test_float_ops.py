"""Float ops, lowered or emulated as this process has it, against plain Python numbers. `test_isas.py` runs
it for each ISA.
"""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
from numba import config

from edgellm.simd import F32_LANES, TARGET
from tests.simd import kernels, plain
from tests.simd.plain import listed

NAN, INF = math.nan, math.inf
SPECIAL = [0.0, -0.0, 1.0, -1.0, NAN, INF, -INF, 1e-40, -1e-40, 1.17549435e-38, 3.4028235e38, -3.4028235e38]
ROUNDED = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2147483520.0, 2147483648.0, -2147483648.0, 3e9, -3e9, 8388609.0, 16777217.0]
HALVES = [
    65504.0,
    65519.9,
    65520.0,
    -65520.0,
    1e5,
    6.1e-5,
    5.96e-8,
    2.98e-8,
    2.99e-8,
    1e-9,
    1.00048828125,
    1.00146484375,
]
BFLOATS = [plain.float_of(bits) for bits in (0x3F808000, 0x3F818000, 0x3F818001, 0x7F7FFFFF, 0x7F800001, 0x00008000)]


def float_values(count: int, seed: int) -> np.ndarray:
    edge = np.array(SPECIAL + ROUNDED + HALVES + BFLOATS, np.float32)
    rng = np.random.default_rng(seed)
    random = (rng.standard_normal(count - len(edge)) * 10.0 ** rng.integers(-4, 5, count - len(edge))).astype(
        np.float32
    )
    return rng.permutation(np.concatenate([edge, random])) if seed else np.concatenate([edge, random])


@pytest.fixture(scope="module")
def floats():
    a, b, c = (float_values(128, seed) for seed in (0, 1, 2))
    # Products whose second rounding would show, and sums that cancel.
    a[100:104] = b[100:104] = [1 + 2**-12, 1 - 2**-12, 3.0, 1e20]
    c[100:104] = [-1.0, 2**-30, -9.0, -INF]
    a[104:108], b[104:108] = [0.0, -0.0, NAN, 1.0], [-0.0, 0.0, 1.0, NAN]
    out = np.empty((len(kernels.FLOAT_ROWS), 128), np.float32)
    compared = np.empty((6, 128), np.float32)
    kernels.floats(a, b, c, out, compared)
    return a, b, c, dict(zip(kernels.FLOAT_ROWS, out, strict=True)), compared


FLOAT_OPS = {
    "add": lambda a, b, c: plain.f32(a + b),
    "sub": lambda a, b, c: plain.f32(a - b),
    "mul": lambda a, b, c: plain.f32(a * b),
    "div": lambda a, b, c: plain.divide(a, b),
    "neg": lambda a, b, c: -a,
    "abs": lambda a, b, c: abs(a),
    "fma": plain.fused if TARGET.has_fma or config.DISABLE_JIT else plain.twice_rounded,
    "minimum": lambda a, b, c: a if a < b else b,
    "maximum": lambda a, b, c: a if a > b else b,
    "sqrt": lambda a, b, c: plain.square_root(a),
    "rsqrt": lambda a, b, c: plain.divide(1.0, plain.square_root(a)),
}


@pytest.mark.parametrize("name", FLOAT_OPS)
def test_float_op(floats, name: str) -> None:
    a, b, c, rows, _ = floats
    expected = [FLOAT_OPS[name](*operands) for operands in zip(listed(a), listed(b), listed(c), strict=True)]
    assert plain.differences(rows[name], expected) == []


def test_splat_is_one_float_everywhere(floats) -> None:
    a, _, _, rows, _ = floats
    expected = [a[i - i % F32_LANES] for i in range(128)]
    assert plain.differences(rows["splat"], expected) == []


@pytest.mark.parametrize("name", kernels.COMPARISONS)
def test_float_comparison(floats, name: str) -> None:
    a, b, _, _, compared = floats
    expected = [float(getattr(operator, name)(x, y)) for x, y in zip(listed(a), listed(b), strict=True)]
    assert listed(compared[kernels.COMPARISONS.index(name)]) == expected


def ulps(got: float, exact: float) -> float:
    if plain.same(got, plain.f32(exact)):
        return 0.0
    return abs(got - exact) / math.ulp(1.0) / 2.0**29 / 2.0 ** max(math.frexp(exact)[1] - 1, -126)


def logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700 else math.exp(x)


@pytest.mark.parametrize(
    ("row", "exact", "least", "most", "bound"),
    [(0, math.exp, -87.3, 88.72, 2.0), (1, logistic, -87.0, 90.0, 4.0), (2, math.tanh, -20.0, 20.0, 3.0)],
    ids=["exp", "sigmoid", "tanh"],
)
def test_elementary(row: int, exact, least: float, most: float, bound: float) -> None:
    rng = np.random.default_rng(3)
    wide = np.linspace(least, most, 8192 - 1024)
    near_zero = rng.standard_normal(1024) * 10.0 ** rng.integers(-7, 1, 1024)
    values = np.concatenate([wide, near_zero]).astype(np.float32)
    out = np.empty((3, 8192), np.float32)
    kernels.elementary(values, out)
    errors = [ulps(got, exact(x)) for got, x in zip(listed(out[row]), listed(values), strict=True)]
    assert max(errors) <= bound


def test_elementary_at_the_ends() -> None:
    values = np.array(
        [0.0, -0.0, NAN, INF, -INF, 88.73, -87.34, 200.0, -200.0, 3e38, -3e38, 1e-40] + [0.0] * 4, np.float32
    )
    out = np.empty((3, 16), np.float32)
    kernels.elementary(values, out)
    exp, sigmoid, tanh = out[:, :12].tolist()
    assert plain.differences(exp, [1, 1, NAN, INF, 0, INF, 0, INF, 0, INF, 0, 1]) == []
    assert plain.differences(sigmoid[:5] + sigmoid[7:11], [0.5, 0.5, NAN, 1, 0, 1, 0, 1, 0]) == []
    assert plain.differences(tanh[2:5] + tanh[7:11], [NAN, 1, -1, 1, -1, 1, -1]) == []


@pytest.fixture(scope="module")
def converted():
    values = float_values(128, 0)
    words = np.concatenate(
        [
            np.array([0, 1, -1, 2**31 - 1, -(2**31), 2**24 + 1, 2**24 + 3, 127, 128, -128, -129, 2**30 + 64], np.int32),
            np.array([2**15 - 1, 2**15, -(2**15), -(2**15) - 1], np.int32),
            np.random.default_rng(4).integers(-(2**31), 2**31, 112).astype(np.int32),
        ]
    )
    out_f, out_i = np.empty((3, 128), np.float32), np.empty((1, 128), np.int32)
    halves, saturated = np.empty((2, 128), np.uint16), (np.empty(128, np.int8), np.empty(128, np.int16))
    kernels.converts(values, words, out_f, out_i, halves, *saturated)
    return listed(values), listed(words), out_f, out_i, halves, saturated


def test_floats_to_integers(converted) -> None:
    values, _, _, out_i, _, _ = converted
    assert listed(out_i) == [plain.to_int32(value) for value in values]


@pytest.mark.parametrize("stride", [1, 3])
def test_floats_rounded_and_stored_as_quads(stride: int) -> None:
    values = np.array([*range(-64, 0), *np.linspace(-127.5, 127.5, 64)], np.float32)
    values[:8] = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1e9, -1e9]
    out, quads = np.empty(128, np.int32), np.full((32, stride), 77, np.int32)
    kernels.rounds(values, stride, out, quads.reshape(-1))
    assert listed(out) == [plain.to_int32(value) for value in listed(values)]
    stored = quads[:, 0].copy().view(np.int8)
    assert listed(stored) == [(whole + 128) % 256 - 128 for whole in listed(out)]
    assert (quads[:, 1:] == 77).all()  # between them nothing is touched


def test_integers_to_floats(converted) -> None:
    _, words, out_f, _, _, _ = converted
    assert listed(out_f[0]) == [plain.f32(float(word)) for word in words]


@pytest.mark.parametrize("bits", [8, 16])
def test_integers_saturate(converted, bits: int) -> None:
    _, words, _, _, _, saturated = converted
    end = 2 ** (bits - 1)
    assert listed(saturated[bits // 16]) == [min(max(word, -end), end - 1) for word in words]


@pytest.mark.parametrize(("row", "bits_of"), [(0, plain.half_bits), (1, plain.bfloat_bits)], ids=["f16", "bf16"])
def test_floats_to_sixteen_bits(converted, row: int, bits_of) -> None:
    values, _, _, _, halves, _ = converted
    for value, got in zip(values, listed(halves[row]), strict=True):
        if math.isnan(value):
            widened = plain.half_value(got) if row == 0 else plain.float_of(got << 16)
            assert math.isnan(widened)
        else:
            assert got == bits_of(value), value


def test_every_sixteen_bits_to_floats() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty((2, 65536), np.float32)
    kernels.halves_to_floats(bits, out)
    assert plain.differences(out[0], [plain.half_value(word) for word in range(65536)]) == []
    assert plain.differences(out[1], [plain.float_of(word << 16) for word in range(65536)]) == []
