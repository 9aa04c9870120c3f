"""Floats under the emulator against exact arithmetic on fractions, one rounding at the end."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.cuda.exact import FORMATS, decode, encode
from tests.backends.cuda.ptx_kernels import run

COUNT = 32
few = settings(max_examples=6, deadline=None)
EDGES = {
    "f32": [
        *(0, 1, 0x80000000, 0x80000001, 0x007FFFFF, 0x00800000, 0x3F800000, 0x3F800001, 0x33800000, 0x7F7FFFFF),
        *(0x7F800000, 0xFF800000, 0x7FC00000, 0x00000400, 0x4B000000, 0xCB000001),
    ],
    "f16": [0, 1, 0x8000, 0x03FF, 0x0400, 0x3C00, 0x3C01, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x1000],
    "bf16": [0, 1, 0x8000, 0x007F, 0x0080, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0x3380],
}


def patterns(name: str, count: int = COUNT) -> st.SearchStrategy[np.ndarray]:
    width = 32 if name == "f32" else 16
    one = st.one_of(st.sampled_from(EDGES[name]), st.integers(0, 2**width - 1))
    dtype = np.uint32 if width == 32 else np.uint16
    return st.lists(one, min_size=count, max_size=count).map(lambda values: np.array(values, dtype))


def ordinary(value: Fraction | float) -> bool:
    return isinstance(value, Fraction)


def every(code: str, name: str, function, *arrays: np.ndarray, mode: str = "rn", packed: bool = False) -> None:
    """Where operands and result are ordinary numbers, `code` gives the exact result rounded once."""
    if packed:
        given_arrays = [array.view(np.uint32) for array in arrays]
        found = run(code, ["u4"], *given_arrays)[0].view(np.uint16)
    else:
        found = run(code, [arrays[0].dtype.str[1:]], *arrays)[0]
    for row, bits in zip(zip(*arrays, strict=True), found.tolist(), strict=True):
        values = [decode(int(v), name) for v in row]
        if not all(map(ordinary, values)):
            continue
        expected = function(*values)
        if expected != 0:
            assert bits == encode(expected, name, mode), (code, [hex(v) for v in row], hex(bits))
        else:
            assert decode(bits, name) == 0


@few
@given(patterns("f32"), patterns("f32"), patterns("f32"))
def test_single(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    for mode in ("rn", "rz", "rm", "rp"):
        every(f"add.{mode}.f32 o0, i0, i1;", "f32", lambda p, q: p + q, a, b, mode=mode)
        every(f"sub.{mode}.f32 o0, i0, i1;", "f32", lambda p, q: p - q, a, b, mode=mode)
        every(f"mul.{mode}.f32 o0, i0, i1;", "f32", lambda p, q: p * q, a, b, mode=mode)
        every(f"fma.{mode}.f32 o0, i0, i1, i2;", "f32", lambda p, q, r: p * q + r, a, b, c, mode=mode)
    divisor = np.where(b << np.uint32(1) == 0, np.uint32(0x3F800000), b)
    every("div.rn.f32 o0, i0, i1;", "f32", lambda p, q: p / q, a, divisor)


def test_fma_rounds_once() -> None:
    """1 + 2**-24 is the middle between two floats; what is added far below decides. Twice rounded is wrong here."""
    a = np.array([1 + 2**-12, 1 + 2**-12, 1 + 2**-23, 3.0], np.float32)
    b = np.array([1 - 2**-12, 1 - 2**-12, 1 - 2**-24, 2**-75], np.float32)
    c = np.array([2**-60, -(2**-60), 2**-70, 2**-149], np.float32)
    (found,) = run("fma.rn.f32 o0, i0, i1, i2;", ["u4"], *(v.view(np.uint32) for v in (a, b, c)))
    exact = [Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)) for p, q, r in zip(a, b, c, strict=True)]
    assert found.tolist() == [encode(value, "f32") for value in exact]


@few
@given(patterns("f16", 2 * COUNT), patterns("f16", 2 * COUNT), patterns("f16", 2 * COUNT))
def test_half(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    packed_cases(a, b, c, "f16")


@few
@given(patterns("bf16", 2 * COUNT), patterns("bf16", 2 * COUNT), patterns("bf16", 2 * COUNT))
def test_brain_half(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    packed_cases(a, b, c, "bf16")


def packed_cases(a: np.ndarray, b: np.ndarray, c: np.ndarray, name: str) -> None:
    every(f"add.rn.{name}x2 o0, i0, i1;", name, lambda p, q: p + q, a, b, packed=True)
    every(f"sub.rn.{name}x2 o0, i0, i1;", name, lambda p, q: p - q, a, b, packed=True)
    every(f"mul.rn.{name}x2 o0, i0, i1;", name, lambda p, q: p * q, a, b, packed=True)
    every(f"fma.rn.{name}x2 o0, i0, i1, i2;", name, lambda p, q, r: p * q + r, a, b, c, packed=True)
    every(f"max.{name}x2 o0, i0, i1;", name, max, a, b, packed=True)
    every(f"neg.{name}x2 o0, i0;", name, lambda p: -p, a, packed=True)
    some = slice(0, COUNT)
    every(f"fma.rn.{name} o0, i0, i1, i2;", name, lambda p, q, r: p * q + r, a[some], b[some], c[some])


@few
@given(patterns("f32"), patterns("f16"), patterns("bf16"))
def test_conversions_of_halves(a: np.ndarray, half: np.ndarray, brain: np.ndarray) -> None:
    for mode in ("rn", "rz"):
        for name in ("f16", "bf16"):
            narrowed(f"cvt.{mode}.{name}.f32 o0, i0;", name, a, mode)
    found = run("cvt.f32.f16 o0, i0;", ["u4"], half)[0]
    assert_same(found.view(np.float32), half.view(np.float16).astype(np.float32))
    found = run("cvt.f32.bf16 o0, i0;", ["u4"], brain)[0]
    assert_same(found.view(np.float32), (brain.astype(np.uint32) << np.uint32(16)).view(np.float32))
    low = run("cvt.rn.f16.f32 o0, i0;", ["u2"], a)[0].astype(np.uint32)
    assert (run("cvt.rn.f16x2.f32 o0, i1, i0;", ["u4"], a, a[::-1].copy())[0] & np.uint32(0xFFFF) == low).all()
    assert (run("cvt.rn.f16x2.f32 o0, i0, i1;", ["u4"], a, a[::-1].copy())[0] >> np.uint32(16) == low).all()


def narrowed(code: str, name: str, values: np.ndarray, mode: str) -> None:
    for bits, found in zip(values.tolist(), run(code, ["u2"], values)[0].tolist(), strict=True):
        value = decode(bits, "f32")
        if ordinary(value) and value != 0:
            assert found == encode(value, name, mode), (code, hex(bits), hex(found))
        elif value != 0:
            other = decode(found, name)
            assert other == value or (math.isnan(value) and math.isnan(other))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert ((found == expected) | (np.isnan(found) & np.isnan(expected))).all()
    assert (np.signbit(found) == np.signbit(expected)).all()


ROUNDED = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@few
@given(patterns("f32"), st.lists(st.integers(-(2**33), 2**33), min_size=COUNT, max_size=COUNT))
def test_conversions_to_integers(a: np.ndarray, near: list[int]) -> None:
    values = np.concatenate([a[: COUNT // 2], np.array(near[COUNT // 2 :], np.float32).view(np.uint32)])
    values[-4:] = np.array([0.5, 1.5, -2.5, -0.75], np.float32).view(np.uint32)
    for mode, function in ROUNDED.items():
        for kind, low, high in (("s32", -(2**31), 2**31 - 1), ("u32", 0, 2**32 - 1), ("s64", -(2**63), 2**63 - 1)):
            bits = int(kind[1:])
            found = run(f"cvt.{mode}.{kind}.f32 o0, i0;", [f"{'i' if kind[0] == 's' else 'u'}{bits // 8}"], values)[0]
            for pattern, result in zip(values.tolist(), found.tolist(), strict=True):
                value = decode(pattern, "f32")
                if isinstance(value, float):
                    nan = 0 if bits == 32 else -(2**63)
                    expected = nan if math.isnan(value) else high if value > 0 else low
                else:
                    expected = min(max(function(value), low), high)
                assert result == expected, (mode, kind, hex(pattern))
    (found,) = run("cvt.rni.f32.f32 o0, i0;", ["u4"], values)
    assert_same(found.view(np.float32), np.rint(values.view(np.float32)))


@few
@given(st.lists(st.integers(0, 2**32 - 1), min_size=COUNT, max_size=COUNT))
def test_conversions_of_integers(values: list[int]) -> None:
    words = np.array([0, 0x1000001, 0x1000003, 0xFFFFFFFF, 0x80000000, *values[5:]], np.uint32)
    for mode in ("rn", "rz"):
        for kind, view in (("u32", np.uint32), ("s32", np.int32)):
            found = run(f"cvt.{mode}.f32.{kind} o0, i0;", ["u4"], words)[0]
            numbers = words.view(view).tolist()
            expected = [encode(Fraction(v), "f32", mode) if v else 0 for v in numbers]
            assert found.tolist() == expected


@few
@given(patterns("f32"), patterns("f32"))
def test_minimum_and_comparisons(a: np.ndarray, b: np.ndarray) -> None:
    x, y = a.view(np.float32), b.view(np.float32)
    nan = np.isnan(x) | np.isnan(y)
    with np.errstate(invalid="ignore"):
        for name, of in (("min", np.minimum), ("max", np.maximum)):
            (found,) = run(f"{name}.f32 o0, i0, i1;", ["f4"], a, b)
            expected = np.where(np.isnan(x), y, np.where(np.isnan(y), x, of(x, y)))
            assert ((found == expected) | np.isnan(expected)).all()
            (found,) = run(f"{name}.NaN.f32 o0, i0, i1;", ["f4"], a, b)
            assert (np.isnan(found) == nan).all()
        plain = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}
        for name, expected in plain.items():
            assert (run(f"setp.{name}.f32 o0, i0, i1;", ["?"], a, b)[0] == (expected & ~nan)).all()
            assert (run(f"setp.{name}u.f32 o0, i0, i1;", ["?"], a, b)[0] == (expected | nan)).all()
        assert (run("setp.nan.f32 o0, i0, i1;", ["?"], a, b)[0] == nan).all()


def test_zeros_are_ordered_by_sign() -> None:
    zeros = np.array([0, 0x80000000] * 16, np.uint32)
    (low,) = run("min.f32 o0, i0, i1;", ["u4"], zeros, zeros[::-1].copy())
    (high,) = run("max.f32 o0, i0, i1;", ["u4"], zeros, zeros[::-1].copy())
    assert (low == 0x80000000).all()
    assert (high == 0).all()


def test_denormals_are_flushed_where_asked() -> None:
    values = np.array([1, 0x80000001, 0x007FFFFF, 0x00800000] * 8, np.uint32)
    one = np.full(32, 0x3F800000, np.uint32)
    assert run("mul.f32 o0, i0, i1;", ["u4"], values, one)[0].tolist() == values.tolist()
    (found,) = run("mul.ftz.f32 o0, i0, i1;", ["u4"], values, one)
    assert found[:4].tolist() == [0, 0x80000000, 0, 0x00800000]
    (found,) = run("ex2.approx.ftz.f32 o0, i0;", ["f4"], np.full(32, -130, np.float32).view(np.uint32))
    assert (found == 0).all()


def test_saturation() -> None:
    values = np.array([-1, 0.25, 2, np.nan] * 8, np.float32).view(np.uint32)
    (found,) = run("add.sat.f32 o0, i0, 0f00000000;", ["f4"], values)
    assert found[:4].tolist() == [0, 0.25, 1, 0]


@few
@given(patterns("f32"))
def test_functions(a: np.ndarray) -> None:
    x = np.abs(a.view(np.float32))
    x = np.where(np.isfinite(x) & (x > 2.0**-100) & (x < 2.0**100), x, np.float32(0.7))
    functions = {"sqrt.approx": math.sqrt, "rsqrt.approx": lambda v: 1 / math.sqrt(v), "lg2.approx": math.log2}
    functions |= {"rcp.approx": lambda v: 1 / v, "tanh.approx": math.tanh}
    for name, function in functions.items():
        (found,) = run(f"{name}.f32 o0, i0;", ["f4"], x.view(np.uint32))
        np.testing.assert_allclose(found, [function(float(v)) for v in x], rtol=2e-7, atol=1e-12)
    small = np.float32(20) * (x / (1 + x)) - np.float32(10)
    for name, function in {"ex2.approx": lambda v: 2.0**v, "sin.approx": math.sin, "cos.approx": math.cos}.items():
        (found,) = run(f"{name}.f32 o0, i0;", ["f4"], small.view(np.uint32))
        np.testing.assert_allclose(found, [function(float(v)) for v in small], rtol=2e-7, atol=1e-7)


def test_formats_cover_their_edges() -> None:
    """The fractions themselves: encode undoes decode."""
    for name in FORMATS:
        for bits in EDGES[name]:
            value = decode(bits, name)
            if isinstance(value, Fraction) and value != 0:
                assert encode(value, name) == bits
