"""What kernels seldom use: still known, still right."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from tests.backends.cuda.exact import decode
from tests.backends.cuda.ptx_kernels import HEADER, entry, launch, run
from tools.ptx_emulator import EmulatorError, Memory, Module
from tools.ptx_emulator.driver import FakeDriver

WORDS = np.array([0, 1, 5, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 77, 0xFFFFFFF0] * 4, np.uint32)
FLOATS = np.array([0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-40] * 4, np.float32)
BITS = FLOATS.view(np.uint32)
LOADED = """.reg .b32 t, x; .reg .b64 a, w; mov.u32 t, %tid.x; ld.param.u64 a, [p0]; mul.wide.u32 w, t, 4;
add.u64 a, a, w; ld.global.f32 x, [a];"""


def test_selections_by_sign_and_sets() -> None:
    (found,) = run("slct.u32.s32 o0, 7, 9, i0;", ["u4"], WORDS)
    assert (found == np.where(WORDS.view(np.int32) >= 0, 7, 9)).all()
    (found,) = run("set.gt.u32.s32 o0, i0, 4;", ["u4"], WORDS)
    assert (found == np.where(WORDS.view(np.int32) > 4, 0xFFFFFFFF, 0)).all()
    (found,) = run(".reg .pred p; setp.eq.u32 p, i0, 5; set.gt.and.f32.u32 o0, i0, 1, !p;", ["f4"], WORDS)
    assert (found == ((WORDS > 1) & (WORDS != 5))).all()
    (found,) = run(".reg .pred p, q; setp.eq.u32 p, i0, 5; mov.pred q, !p; selp.u32 o0, 1, 0, q;", ["u4"], WORDS)
    assert (found == (WORDS != 5)).all()
    (found,) = run(
        ".reg .pred p, q; setp.eq.u32 p, i0, 5; setp.eq.u32 q, i0, 1; and.pred p, p, !q; or.pred p, p, q;"
        "not.pred o0, p;",
        ["?"],
        WORDS,
    )
    assert (found == ~((WORDS == 5) | (WORDS == 1))).all()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("finite", np.isfinite),
        ("infinite", np.isinf),
        ("number", lambda v: ~np.isnan(v)),
        ("notanumber", np.isnan),
        ("normal", lambda v: np.isfinite(v) & (np.abs(v) >= np.finfo(np.float32).tiny)),
        ("subnormal", lambda v: (v != 0) & (np.abs(v) < np.finfo(np.float32).tiny)),
    ],
)
def test_kinds_of_floats(name: str, function) -> None:
    (found,) = run(f"testp.{name}.f32 o0, i0;", ["?"], BITS)
    assert (found == function(FLOATS)).all()


def test_saturating_and_wide_integers() -> None:
    (found,) = run("add.sat.s32 o0, i0, 100;", ["i4"], WORDS)
    assert found.tolist() == [min(int(v) + 100, 2**31 - 1) for v in WORDS.view(np.int32)]
    (found,) = run(".reg .b64 c; mov.u64 c, 7; mad.wide.u32 o0, i0, i0, c;", ["u8"], WORDS)
    assert found.tolist() == [int(v) ** 2 + 7 for v in WORDS]
    (found,) = run("cvt.sat.f32.f32 o0, i0;", ["f4"], BITS)
    assert found[:8].tolist() == [0, 0, 1, 0, 1, 0, 0, np.float32(1e-40)]
    (found,) = run("bfind.shiftamt.u32 o0, i0;", ["u4"], WORDS)
    assert found.tolist() == [32 - int(v).bit_length() if v else 0xFFFFFFFF for v in WORDS]


def test_doubles() -> None:
    x = np.array([1.0 + 2**-30, 3.0, -7.25, 1e100] * 8)
    (found,) = run("fma.rn.f64 o0, i0, i0, i1;", ["f8"], x.view(np.uint64), (-(x * x)).view(np.uint64))
    assert found[0] == 2.0**-60
    (found,) = run("cvt.rn.f32.f64 o0, i0; ", ["f4"], x.view(np.uint64))
    with np.errstate(over="ignore"):
        assert (found == x.astype(np.float32)).all()
    (found,) = run("cvt.rzi.s64.f64 o0, i0;", ["i8"], x.view(np.uint64))
    assert found[:4].tolist() == [1, 3, -7, 2**63 - 1]
    (found,) = run("rcp.rn.f64 o0, i0;", ["f8"], x.view(np.uint64))
    assert (found == 1 / x).all()


def test_tensor_floats_and_halves_of_integers() -> None:
    (found,) = run("cvt.rna.tf32.f32 o0, i0;", ["u4"], np.full(32, 0x3F801000, np.uint32))
    assert (found == 0x3F802000).all()
    numbers = np.arange(2040, 2072, dtype=np.uint32)
    (half,) = run("cvt.rn.f16.u32 o0, i0;", ["u2"], numbers)
    assert (half.view(np.float16) == numbers.astype(np.float16)).all()
    (brain,) = run("cvt.rn.bf16.u32 o0, i0;", ["u2"], np.arange(250, 282, dtype=np.uint32))
    assert [float(decode(int(b), "bf16")) for b in brain[:12]] == [*range(250, 257), 256, 258, 260, 260, 260]
    (wide,) = run("cvt.f64.f32 o0, i0;", ["f8"], BITS)
    assert ((wide == FLOATS) | np.isnan(FLOATS)).all()


def test_halves_with_modifiers() -> None:
    half = np.array([-1.5, 0.25, 3.0, np.nan, 6e-8, 65504, -0.0, 1.0] * 4, np.float16).view(np.uint16)
    one = np.full(32, 0x3C00, np.uint16)

    def values(code: str, *more: np.ndarray) -> list[float]:
        return run(code, ["u2"], half, *more)[0].view(np.float16)[:8].tolist()

    assert values("fma.rn.relu.f16 o0, i0, i1, i0;", one)[:3] == [0, 0.5, 6]
    assert values("add.rn.sat.f16 o0, i0, i0;")[:4] == [0, 0.5, 1, 0]
    assert math.isnan(values("max.NaN.f16 o0, i0, i1;", one)[3])
    assert values("max.f16 o0, i0, i1;", one)[3] == 1
    assert values("mul.rn.ftz.f16 o0, i0, i1;", one)[4] == 0
    assert values("min.f16 o0, i0, i1;", one)[:3] == [-1.5, 0.25, 1]
    assert values("abs.f16 o0, i0;")[:3] == [1.5, 0.25, 3]
    expected = [np.float16(math.tanh(v)) for v in (-1.5, 0.25, 3.0)]
    assert values("tanh.approx.f16 o0, i0;")[:3] == expected
    pairs = half.view(np.uint32).repeat(2)
    (found,) = run("ex2.approx.f16x2 o0, i0;", ["u4"], pairs)
    assert found.view(np.float16)[0] == np.float16(2**-1.5)


def test_warps_rarely_asked_for() -> None:
    lane = np.arange(32, dtype=np.uint32)
    found, same = run("match.all.sync.b32 o0|o1, i0, -1;", ["u4", "?"], lane * 0)
    assert (found == 0xFFFFFFFF).all()
    assert same.all()
    found, same = run("match.all.sync.b32 o0|o1, i0, -1;", ["u4", "?"], lane)
    assert not found.any()
    assert not same.any()
    code = ".reg .pred p; setp.lt.u32 p, i0, 5; mov.u32 o0, 0; @p activemask.b32 o0; bar.warp.sync -1;"
    assert run(code, ["u4"], lane)[0].tolist() == [31] * 5 + [0] * 27
    found, chosen = run("elect.sync o0|o1, -1;", ["u4", "?"], lane)
    assert not found.any()
    assert chosen.tolist() == [True] + [False] * 31
    (found,) = run("redux.sync.add.s32 o0, i0, -1; mov.u32 o0, o0;", ["i4"], lane)
    assert (found == 496).all()
    for name in ("lt", "le", "gt", "ge", "eq"):
        (found,) = run(f"mov.u32 o0, %lanemask_{name};", ["u4"], lane)
        test = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}[name]
        assert found.tolist() == [sum(1 << k for k in range(32) if eval(f"k {test} {j}")) for j in range(32)]


def test_atomics_rarely_asked_for() -> None:
    body = """.reg .b32 t, x; .reg .b64 a; mov.u32 t, %tid.x; ld.param.u64 a, [p0]; atom.global.dec.u32 x, [a], 9;
    atom.global.and.b32 x, [a+4], 14; atom.global.or.b32 x, [a+8], t; atom.global.xor.b32 x, [a+12], t;
    atom.global.min.s32 x, [a+16], t; atom.global.add.noftz.f16x2 x, [a+20], 0x3C003C00; .reg .b64 c; mov.u64 c, 3;
    red.global.add.u64 [a+24], c; createpolicy.fractional.L2::evict_first.b64 c; prefetch.global.L2 [a];"""
    data = np.array([3, 15, 0, 0, 5, 0, 0, 0], np.uint32)
    launch(entry(["u64"], body), [data])
    assert data[:5].tolist() == [(3 - 32) % 10, 14, 31, 0, 0]
    assert data[5:6].view(np.float16).tolist() == [32, 32]
    assert data[6:].view(np.uint64)[0] == 96


def test_windows_of_the_generic_space() -> None:
    body = """.shared .align 4 .b8 tile[4]; .reg .b64 a, s, g; .reg .b32 x, y; .reg .pred p; ld.param.u64 a, [p0];
    mov.u64 s, tile; cvta.shared.u64 g, s; isspacep.shared p, g; selp.u32 x, 1, 0, p; isspacep.global p, a;
    selp.u32 y, 2, 0, p; or.b32 x, x, y; cvta.to.shared.u64 g, g; setp.eq.u64 p, g, s; selp.u32 y, 4, 0, p;
    or.b32 x, x, y;    cvta.to.global.u64 a, a; st.global.u32 [a], x;"""
    out = np.zeros(1, np.uint32)
    launch(entry(["u64"], body), [out])
    assert out[0] == 7


def test_text_with_debug_lines_and_prototypes() -> None:
    text = f"""{HEADER}.file 1 "kernel.py"
    .section .debug_str {{ .b8 0, 1, 2 }}
    .func (.param .b32 out) later(.param .b32 in);
    .visible .entry kernel(.param .align 8 .b8 p0[16], .param .u64 .ptr .global .align 4 p1)
    .maxntid 32, 1, 1
    .minnctapersm 1
    {{ .pragma "nounroll"; .loc 1 7 3
    .reg .b64 a, v; .reg .f32 f, g; ld.param.u64 v, [p0+8]; ld.param.u64 a, [p1]; mov.f32 f, 1.5;
    mov.f32 g, 0d4000000000000000;    add.f32 f, f, g; st.global.f32 [a], f; st.global.u64 [a+8], v; ret; }}
    .func (.param .b32 out) later(.param .b32 in) {{ ret; }}"""
    out = np.zeros(4, np.uint32)
    launch(text, [bytes(8) + (77).to_bytes(8, "little"), out], block=(32,))
    assert out[:1].view(np.float32)[0] == 3.5
    assert out[2] == 77


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [(1.5, "u32", "not a float"), (b"1", "u32", "takes 4 bytes"), (np.zeros((4, 4))[:, 1], "u64", "contiguous")],
)
def test_arguments_that_do_not_fit(value: object, kind: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        launch(entry([kind], ""), [value])


def test_memory_below_all() -> None:
    memory = Memory()
    assert memory.describe(5) == "below all memory"
    assert len(memory) == 0
    with pytest.raises(EmulatorError, match="no 4 bytes"):
        memory.read(5, 4)


def test_kernels_that_never_end() -> None:
    from tools.ptx_emulator import schedule

    module = Module(entry([], "$top: bra $top;"))
    kept, schedule.LIMIT = schedule.LIMIT, 3
    try:
        with pytest.raises(EmulatorError, match="does not end"):
            module.launch(None, (1,), (32,), [])
    finally:
        schedule.LIMIT = kept


def test_the_drivers_copies_that_wait() -> None:
    fake = FakeDriver(80)
    assert fake.cuInit(0) == 0
    context = ctypes.c_void_p()
    assert fake.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert fake.cuCtxSetCurrent(context.value) == 0
    found = ctypes.c_void_p()
    assert fake.cuCtxGetCurrent(ctypes.byref(found)) == 0
    address = ctypes.c_uint64()
    assert fake.cuMemAlloc_v2(ctypes.byref(address), 64) == 0
    data, back = np.arange(16, dtype=np.uint32), np.zeros(16, np.uint32)
    assert fake.cuMemcpyHtoD_v2(address, data.ctypes.data, 64) == 0
    assert fake.cuMemsetD32Async(address.value, 7, 4, 0) == 0
    assert fake.cuMemcpyDtoH_v2(back.ctypes.data, address, 64) == 0
    assert back.tolist() == [7] * 4 + list(range(4, 16))
    assert fake.cuMemsetD32Async(address.value + 1, 7, 1, 0) == 1
    assert fake.cuCtxSynchronize() == 0
    assert fake.cuInit(1) == 1


@pytest.mark.parametrize(
    ("name", "function", "bound"),
    [("tanh", math.tanh, 2**-11), ("ex2", lambda v: 2.0**v, 2**-22), ("rcp", lambda v: 1 / v, 2**-23)],
)
def test_rough_functions_are_off_by_what_a_device_may_be(name: str, function, bound: float) -> None:
    body = f"""{LOADED} {name}.approx.f32 x, x; st.global.f32 [a], x;"""
    exact = np.linspace(0.1, 3, 64, dtype=np.float32)
    found = exact.copy()
    Module(entry(["u64"], body), rough=True).launch(None, (1,), (64,), [found])
    errors = found / np.array([function(float(v)) for v in exact]) - 1
    assert bound / 2 < np.abs(errors).max() < bound + 2**-23.5
    assert errors.min() < 0 < errors.max()
