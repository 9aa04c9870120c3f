"""Memory under the emulator: what a device would fault at is raised, with thread and address."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cuda.ptx_kernels import HEADER, entry, launch, run
from tools.ptx_emulator import EmulatorError, Memory, Module

TID = ".reg .b32 t, s; .reg .b64 a, b, w; mov.u32 t, %tid.x; ld.param.u64 a, [p0]; mul.wide.u32 w, t, 4;"


def test_bounds_name_thread_and_address() -> None:
    body = f"{TID} add.u64 a, a, w; ld.global.u32 s, [a];"
    with pytest.raises(EmulatorError, match="4 bytes outside every allocation") as caught:
        launch(entry(["u64"], body), [np.zeros(17, np.uint32)], block=(32,))
    assert caught.value.thread == ((0, 0, 0), (17, 0, 0))
    assert caught.value.address is not None
    launch(entry(["u64"], body), [np.zeros(32, np.uint32)], block=(32,))


def test_bounds_end_at_the_last_byte() -> None:
    """A vector that begins inside and ends outside is outside."""
    body = f"{TID} ld.global.v4.u32 {{s, s, s, s}}, [a+16];"
    launch(entry(["u64"], body), [np.zeros(8, np.uint32)])
    with pytest.raises(EmulatorError, match="16 bytes outside"):
        launch(entry(["u64"], body), [np.zeros(7, np.uint32)])


def test_alignment() -> None:
    body = f"{TID} ld.global.v2.u32 {{s, s}}, [a+4];"
    with pytest.raises(EmulatorError, match="not aligned to 8 bytes"):
        launch(entry(["u64"], body), [np.zeros(8, np.uint32)])


def test_read_only_arrays_are_not_stored_to() -> None:
    array = np.zeros(32, np.uint32)
    array.flags.writeable = False
    with pytest.raises(EmulatorError, match="read-only"):
        launch(entry(["u64"], f"{TID} st.global.u32 [a], t;"), [array])
    launch(entry(["u64"], f"{TID} ld.global.u32 s, [a];"), [array])


def test_freed_memory_is_gone() -> None:
    memory = Memory()
    address = memory.allocate(128)
    module = Module(entry(["u64"], f"{TID} add.u64 a, a, w; st.global.u32 [a], t;"), memory)
    module.launch("kernel", (1,), (32,), [address])
    assert memory.read(address, 128).view(np.uint32).tolist() == list(range(32))
    memory.free(address)
    with pytest.raises(EmulatorError, match="outside every allocation"):
        module.launch("kernel", (1,), (32,), [address])
    with pytest.raises(EmulatorError, match="nothing to free"):
        memory.free(address)


def test_threads_of_one_load_may_reach_several_arrays() -> None:
    body = f"""{TID} ld.param.u64 b, [p1]; .reg .pred p; setp.lt.u32 p, t, 16; selp.b64 a, a, b, p;
    ld.global.u32 s, [a]; ld.param.u64 b, [p2]; add.u64 b, b, w; st.global.u32 [b], s;"""
    out = np.zeros(32, np.uint32)
    launch(entry(["u64"] * 3, body), [np.full(1, 7, np.uint32), np.full(1, 9, np.uint32), out])
    assert out.tolist() == [7] * 16 + [9] * 16


def test_vectors_and_sinks() -> None:
    data, out = np.arange(128, dtype=np.uint32), np.zeros((32, 2), np.uint32)
    body = f"""{TID} ld.param.u64 b, [p1]; .reg .b32 x, y; mul.wide.u32 w, t, 16; add.u64 a, a, w;
    ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {{_, x, _, y}}, [a];
    mul.wide.u32 w, t, 8; add.u64 b, b, w; st.global.v2.u32 [b], {{x, y}};"""
    launch(entry(["u64"] * 2, body), [data, out])
    assert (out == data.reshape(32, 4)[:, [1, 3]]).all()


def test_narrow_loads_extend_and_stores_truncate() -> None:
    body = f"""{TID} ld.param.u64 b, [p1]; .reg .b32 x; .reg .b16 h; .reg .b64 v; cvt.u64.u32 v, t; add.u64 v, a, v;
    ld.global.s8 x, [v]; add.u64 b, b, w; st.global.u32 [b], x; st.global.u8 [v], t;"""
    data, out = np.arange(128, 160, dtype=np.uint8), np.zeros(32, np.int32)
    launch(entry(["u64"] * 2, body), [data, out])
    assert out.tolist() == [value - 256 for value in range(128, 160)]
    assert data.tolist() == list(range(32))


def test_shared_memory_is_a_blocks_own() -> None:
    body = f"""{TID} .shared .align 4 .b8 tile[128]; .reg .b32 at, c, g; mov.u32 at, tile; mad.lo.u32 at, t, 4, at;
    mov.u32 c, %ctaid.x; mad.lo.u32 g, c, 32, t; st.shared.u32 [at], g; bar.sync 0;
    mov.u32 at, tile; xor.b32 s, t, 31; mad.lo.u32 at, s, 4, at; ld.shared.u32 s, [at];
    mul.wide.u32 w, g, 4; add.u64 a, a, w; st.global.u32 [a], s;"""
    out = np.zeros((300, 32), np.uint32)
    launch(entry(["u64"], body), [out], grid=(300,), block=(32,))
    assert (out == np.arange(9600).reshape(300, 32)[:, ::-1]).all()


def test_shared_bounds_and_dynamic_shared() -> None:
    before = ".extern .shared .align 16 .b8 room[];"
    body = f"{TID} .reg .b32 at; mov.u32 at, room; mad.lo.u32 at, t, 4, at; st.shared.u32 [at], t;"
    module = Module(entry(["u64"], body, before))
    module.launch(None, (1,), (32,), [0], shared=128)
    with pytest.raises(EmulatorError, match="outside the 100 bytes of shared memory"):
        module.launch(None, (1,), (32,), [0], shared=100)


def test_generic_addresses_of_every_space() -> None:
    body = f"""{TID} .shared .align 4 .b8 tile[128]; .local .align 4 .b8 mine[8]; .reg .b64 g, l, q; .reg .b32 m;
    .reg .pred p; mov.u64 g, tile; cvta.shared.u64 g, g; add.u64 g, g, w;
    mov.u64 l, mine; cvta.local.u64 l, l; add.u64 a, a, w;
    and.b32 m, t, 3; setp.eq.u32 p, m, 1; selp.b64 q, g, a, p; setp.eq.u32 p, m, 2; selp.b64 q, l, q, p;
    st.u32 [q], t; ld.u32 s, [q]; add.u32 s, s, 1; st.u32 [a], s;"""
    out = np.zeros(32, np.uint32)
    launch(entry(["u64"], body), [out])
    assert out.tolist() == list(range(1, 33))


def test_variables_of_the_module() -> None:
    before = ".const .align 4 .b32 table[4] = {10, 20, 30, 0x28}; .global .align 4 .f32 scale = 0f40000000;"
    body = f"""{TID} .reg .b64 c; .reg .f32 f, x; and.b32 s, t, 3; mul.wide.u32 w, s, 4; mov.u64 c, table;
    add.u64 c, c, w;    ld.const.u32 s, [c]; cvt.rn.f32.u32 f, s; ld.global.f32 x, [scale]; mul.f32 f, f, x;
    mul.wide.u32 w, t, 4; add.u64 a, a, w; st.global.f32 [a], f;"""
    out = np.zeros(32, np.float32)
    launch(entry(["u64"], body, before), [out])
    assert out.tolist() == [20, 40, 60, 80] * 8


def test_atomics() -> None:
    body = f"""{TID} .reg .b32 old; atom.global.add.u32 old, [a], 1; add.u64 b, a, w; st.global.u32 [b+4], old;
    red.global.max.u32 [a+132], t; atom.global.inc.u32 old, [a+136], 4; red.global.add.f32 [a+140], 0f3F800000;
    atom.global.cas.b32 old, [a+144], 0, t; atom.global.exch.b32 old, [a+148], t;"""
    data = np.zeros(40, np.uint32)
    launch(entry(["u64"], body), [data], grid=(2,))
    assert sorted(data[1:33].tolist()) == list(range(32, 64))
    assert data[0] == 64
    assert data[33:38].tolist() == [31, 64 % 5, np.float32(64).view(np.uint32), 1, 31]


def test_parameters_of_every_kind() -> None:
    kinds = ["u64", "u32", "s32", "f32", "u16", "f64"]
    names = {"u32": "x1", "s32": "x2", "f32": "x3"}
    loads = "".join(
        f".reg .b32 {name}; ld.param.{kind} {name}, [p{kinds.index(kind)}];" for kind, name in names.items()
    )
    body = f"""{TID} {loads} .reg .b16 h; ld.param.u16 h, [p4]; .reg .f64 d; ld.param.f64 d, [p5];
    .reg .f32 e; cvt.rn.f32.f64 e, d; cvt.u32.u16 s, h;
    st.global.b32 [a], x1; st.global.b32 [a+4], x2; st.global.b32 [a+8], x3; st.global.b32 [a+12], s;
    st.global.f32 [a+16], e;"""
    out = np.zeros(5, np.uint32)
    launch(entry(kinds, body), [out, 2**32 - 1, -5, 0.5, np.uint16(9), 0.25], block=(1,))
    assert out.tolist() == [2**32 - 1, 2**32 - 5, 0x3F000000, 9, 0x3E800000]
    with pytest.raises(EmulatorError, match="takes 6 arguments, not 1"):
        launch(entry(kinds, body), [out])


def test_registers_begin_poisoned() -> None:
    (found,) = run(".reg .f32 nothing; add.f32 o0, nothing, 0f00000000;", ["f4"], np.zeros(32, np.uint32))
    assert np.isnan(found).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("add.u32 x, x, x;", "is no register"),
        (".reg .b32 x; add.u32 x, x, %nosuch;", "not declared"),
        (".reg .b32 x; .reg .b64 y; add.u64 y, x, y;", "narrower"),
        (".reg .b32 x; .reg .pred p; add.u32 x, p, x;", "predicate"),
        (".reg .b32 x; bra $nowhere;", "no label"),
        (".reg .b32 x; ld.global.u32 x;", "make sense"),
        (".reg .b32 x; mov.u32 x, ?;", "cannot read"),
    ],
)
def test_text_that_is_no_ptx(text: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        launch(entry([], text), [])


def test_entries_are_named() -> None:
    two = HEADER + ".visible .entry one() { ret; } .visible .entry two() { ret; }"
    module = Module(two)
    assert module.entries == ["one", "two"]
    with pytest.raises(EmulatorError, match="there are 2"):
        module.launch(None, (1,), (1,), [])
    with pytest.raises(EmulatorError, match="no entry 'three'"):
        module.launch("three", (1,), (1,), [])
