"""Integers, bits and bytes under the emulator against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.cuda.ptx_kernels import run
from tools.ptx_emulator import EmulatorError

COUNT = 32
EDGES = [0, 1, 2, 31, 32, 33, 63, 64, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x80808080, 0x7F017F01]
WORD = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**32 - 1))
WORDS = st.lists(WORD, min_size=COUNT, max_size=COUNT).map(lambda values: np.array(values, np.uint32))
LONG = st.one_of(st.sampled_from([0, 1, 2**63, 2**64 - 1, 2**63 - 1, 2**32]), st.integers(0, 2**64 - 1))
LONGS = st.lists(LONG, min_size=COUNT, max_size=COUNT).map(lambda values: np.array(values, np.uint64))
few = settings(max_examples=6, deadline=None)


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def towards_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


def every(code: str, bits: int, function, *arrays: np.ndarray, negative: bool = False, out: int = 0) -> None:
    """`code` gives `function` of the values, modulo 2**out."""
    (found,) = run(code, [f"u{(out or bits) // 8}"], *arrays)
    rows = zip(*[[signed(int(v), bits) if negative else int(v) for v in array] for array in arrays], strict=True)
    assert found.tolist() == [function(*row) % (1 << (out or bits)) for row in rows], code


@few
@given(WORDS, WORDS, LONGS, LONGS)
def test_binary(a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    for name, function in BINARY.items():
        for negative in (False, True):
            kind = "b" if name in ("and", "or", "xor") else "s" if negative else "u"
            every(f"{name}.{kind}32 o0, i0, i1;", 32, function, a, b, negative=negative)
            every(f"{name}.{kind}64 o0, i0, i1;", 64, function, x, y, negative=negative)


@few
@given(WORDS, WORDS, LONGS, LONGS, WORDS)
def test_products_and_quotients(a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, c: np.ndarray) -> None:
    for kind, negative in (("u", False), ("s", True)):
        every(f"mul.hi.{kind}32 o0, i0, i1;", 32, lambda p, q: p * q >> 32, a, b, negative=negative)
        every(f"mul.hi.{kind}64 o0, i0, i1;", 64, lambda p, q: p * q >> 64, x, y, negative=negative)
        every(f"mul.wide.{kind}32 o0, i0, i1;", 32, lambda p, q: p * q, a, b, negative=negative, out=64)
        every(f"mad.lo.{kind}32 o0, i0, i1, i2;", 32, lambda p, q, r: p * q + r, a, b, c, negative=negative)
        every(f"mad.hi.{kind}32 o0, i0, i1, i2;", 32, lambda p, q, r: (p * q >> 32) + r, a, b, c, negative=negative)
        nonzero, long = np.maximum(b, 1), np.maximum(y, np.uint64(1))
        every(f"div.{kind}32 o0, i0, i1;", 32, towards_zero, a, nonzero, negative=negative)
        every(f"div.{kind}64 o0, i0, i1;", 64, towards_zero, x, long, negative=negative)
        every(f"rem.{kind}32 o0, i0, i1;", 32, lambda p, q: p - q * towards_zero(p, q), a, nonzero, negative=negative)
        every(f"sad.{kind}32 o0, i0, i1, i2;", 32, lambda p, q, r: abs(p - q) + r, a, b, c, negative=negative)


@few
@given(WORDS, LONGS, st.lists(st.sampled_from([0, 1, 7, 31, 32, 40, 63, 64, 200]), min_size=COUNT, max_size=COUNT))
def test_shifts_clamp(a: np.ndarray, x: np.ndarray, amounts: list[int]) -> None:
    by = np.array(amounts, np.uint32)
    for bits, values in ((32, a), (64, x)):
        amount = by.astype(values.dtype)
        load = f".reg .b32 n; {'cvt.u32.u64' if bits == 64 else 'mov.b32'} n, i1;"
        every(f"{load} shl.b{bits} o0, i0, n;", bits, lambda p, n: p << n, values, amount)
        every(f"{load} shr.u{bits} o0, i0, n;", bits, lambda p, n: p >> n, values, amount)
        (found,) = run(f"{load} shr.s{bits} o0, i0, n;", [f"i{bits // 8}"], values, amount)
        assert found.tolist() == [signed(int(v), bits) >> n for v, n in zip(values, amounts, strict=True)]
    every("shl.b32 o0, i0, 5;", 32, lambda p: p << 5, a)
    every("shr.u32 o0, i0, 33;", 32, lambda p: 0, a)


@few
@given(WORDS, WORDS, LONGS, LONGS)
def test_carries(a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    split = ".reg .b32 a0,a1,b0,b1; mov.b64 {a0,a1}, i0; mov.b64 {b0,b1}, i1;"
    join = "mov.b64 o0, {a0,a1};"
    every(f"{split} add.cc.u32 a0,a0,b0; addc.u32 a1,a1,b1; {join}", 64, lambda p, q: p + q, x, y)
    every(f"{split} sub.cc.u32 a0,a0,b0; subc.u32 a1,a1,b1; {join}", 64, lambda p, q: p - q, x, y)
    every("add.cc.u32 o0, i0, i1; addc.u32 o0, 0, 0;", 32, lambda p, q: p + q >> 32, a, b)


@few
@given(WORDS, LONGS)
def test_counts(a: np.ndarray, x: np.ndarray) -> None:
    for bits, values in ((32, a), (64, x)):
        every(f"popc.b{bits} o0, i0;", bits, lambda p: bin(p).count("1"), values, out=32)
        every(f"clz.b{bits} o0, i0;", bits, lambda p, n=bits: n - p.bit_length(), values, out=32)
        every(f"brev.b{bits} o0, i0;", bits, lambda p, n=bits: int(f"{p:0{n}b}"[::-1], 2), values)
        every(f"bfind.u{bits} o0, i0;", bits, lambda p: p.bit_length() - 1, values, out=32)
    every("abs.s32 o0, i0;", 32, abs, a, negative=True)
    every("neg.s32 o0, i0;", 32, lambda p: -p, a, negative=True)
    every("not.b32 o0, i0;", 32, lambda p: ~p, a)
    every("cnot.b32 o0, i0;", 32, lambda p: int(p == 0), a)
    every("bfind.s32 o0, i0;", 32, lambda p: (~p if p < 0 else p).bit_length() - 1, a, negative=True)


FIELD = st.lists(st.sampled_from([0, 1, 4, 8, 16, 31, 32, 40, 255]), min_size=COUNT, max_size=COUNT)


def field(value: int, start: int, length: int, bits: int, negative: bool) -> int:
    """The manual's pseudo code for bfe, bit by bit."""
    start, length = start & 255, length & 255
    top = bits - 1
    sign = 0 if not negative or length == 0 else value >> min(start + length - 1, top) & 1
    return sum((value >> start + k & 1 if k < length and start + k <= top else sign) << k for k in range(bits))


@few
@given(WORDS, WORDS, FIELD, FIELD)
def test_fields(a: np.ndarray, b: np.ndarray, starts: list[int], lengths: list[int]) -> None:
    start, length = np.array(starts, np.uint32), np.array(lengths, np.uint32)
    every("bfe.u32 o0, i0, i1, i2;", 32, lambda v, s, n: field(v, s, n, 32, False), a, start, length)
    every("bfe.s32 o0, i0, i1, i2;", 32, lambda v, s, n: field(v, s, n, 32, True), a, start, length)

    def inserted(a: int, b: int, s: int, n: int) -> int:
        for k in range(min(n, 32 - s) if s < 32 else 0):
            b = b & ~(1 << s + k) | (a >> k & 1) << s + k
        return b

    every("bfi.b32 o0, i0, i1, i2, i3;", 32, inserted, a, b, start, length)


@few
@given(WORDS, WORDS, WORDS, st.integers(0, 255))
def test_lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> None:
    for lut in (table, 0xEA, 0xCA, 0xE8, 0x96, 0x6A, 0xF8, 0x80, 0xFE, 0xC0, 0xFC, 0x3C):

        def expected(p: int, q: int, r: int, lut: int = lut) -> int:
            return sum((lut >> (4 * (p >> k & 1) + 2 * (q >> k & 1) + (r >> k & 1)) & 1) << k for k in range(32))

        every(f"lop3.b32 o0, i0, i1, i2, {lut:#x};", 32, expected, a, b, c)


def permuted(a: int, b: int, c: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    found = [data[c >> 4 * k & 7] for k in range(4)]
    found = [(0xFF if byte & 0x80 else 0) if c >> 4 * k & 8 else byte for k, byte in enumerate(found)]
    return int.from_bytes(bytes(found), "little")


@few
@given(WORDS, WORDS, WORDS)
def test_permutes(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    every("prmt.b32 o0, i0, i1, i2;", 32, permuted, a, b, c)
    for selector in (0x5410, 0x7632, 0xBA98, 0x4321):
        every(f"prmt.b32 o0, i0, i1, {selector:#x};", 32, lambda p, q, s=selector: permuted(p, q, s), a, b)
    modes = {"f4e": [0x3210, 0x4321, 0x5432, 0x6543], "b4e": [0x5670, 0x6701, 0x7012, 0x0123]}
    modes |= {"rc8": [0, 0x1111, 0x2222, 0x3333], "rc16": [0x1010, 0x3232, 0x1010, 0x3232]}
    modes |= {"ecl": [0x3210, 0x3211, 0x3222, 0x3333], "ecr": [0, 0x1110, 0x2210, 0x3210]}
    for mode, rows in modes.items():
        every(f"prmt.b32.{mode} o0, i0, i1, i2;", 32, lambda p, q, s, r=rows: permuted(p, q, r[s & 3]), a, b, c)


@few
@given(WORDS, WORDS, WORDS)
def test_funnel_and_dot(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    every("shf.l.wrap.b32 o0, i0, i1, i2;", 32, lambda p, q, n: (q << 32 | p) << (n & 31) >> 32, a, b, c)
    every("shf.r.clamp.b32 o0, i0, i1, i2;", 32, lambda p, q, n: (q << 32 | p) >> min(n, 32), a, b, c)

    def dot(p: int, q: int, r: int, left: bool, right: bool) -> int:
        one = [signed(v, 8) if left else v for v in p.to_bytes(4, "little")]
        two = [signed(v, 8) if right else v for v in q.to_bytes(4, "little")]
        return sum(u * v for u, v in zip(one, two, strict=True)) + r

    for left in (False, True):
        for right in (False, True):
            code = f"dp4a.{'us'[left]}32.{'us'[right]}32 o0, i0, i1, i2;"
            every(code, 32, lambda p, q, r, x=left, y=right: dot(p, q, r, x, y), a, b, c)


@few
@given(WORDS, LONGS)
def test_conversions_between_integers(a: np.ndarray, x: np.ndarray) -> None:
    every("cvt.s64.s32 o0, i0;", 32, lambda p: p, a, negative=True, out=64)
    every("cvt.u64.u32 o0, i0;", 32, lambda p: p, a, out=64)
    every("cvt.u32.u64 o0, i0;", 64, lambda p: p, x, out=32)
    every("cvt.s32.s8 o0, i0;", 32, lambda p: signed(p, 8), a)
    every("cvt.u32.u16 o0, i0;", 32, lambda p: p & 0xFFFF, a)
    every("cvt.sat.u8.s32 o0, i0;", 32, lambda p: min(max(p, 0), 255), a, negative=True)


@few
@given(WORDS, WORDS)
def test_comparisons(a: np.ndarray, b: np.ndarray) -> None:
    tests = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    for name, sign in tests.items():
        for kind, negative in (("u", False), ("s", True)):
            (found,) = run(f"setp.{name}.{kind}32 o0, i0, i1;", ["?"], a, b)
            views = (a.view(np.int32), b.view(np.int32)) if negative else (a, b)
            expected = [eval(f"{p} {sign} {q}") for p, q in zip(*views, strict=True)]
            assert found.tolist() == expected
    first, second = run("setp.lo.u32 o0|o1, i0, i1;", ["?", "?"], a, b)
    assert (first == (a < b)).all()
    assert (second == ~first).all()
    code = ".reg .pred q; setp.gt.u32 q, i0, 7; setp.lt.and.u32 o0, i0, i1, !q; selp.b32 o1, i0, i1, q;"
    found, chosen = run(code, ["?", "u4"], a, b)
    assert (found == ((a < b) & (a <= 7))).all()
    assert (chosen == np.where(a > 7, a, b)).all()


def test_unknown_opcodes_name_their_line() -> None:
    with pytest.raises(EmulatorError, match=r"PTX line \d+: the emulator does not know vadd4") as caught:
        run("vadd4.u32.u32.u32 o0, i0, i0, i0;", ["u4"], np.zeros(COUNT, np.uint32))
    assert caught.value.line > 4
