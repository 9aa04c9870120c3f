"""Branches, barriers, calls and asynchronous copies under the emulator."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cuda.ptx_kernels import HEADER, entry, launch
from tools.ptx_emulator import EmulatorError, Memory, Module

TID = """.reg .b32 t, s, n; .reg .b64 a, w; .reg .pred p; mov.u32 t, %tid.x; ld.param.u64 a, [p0];
mul.wide.u32 w, t, 4; add.u64 w, a, w;"""


def test_every_thread_has_its_own_number_of_rounds() -> None:
    """Collatz: as divergent as can be."""
    body = f"""{TID} add.u32 n, t, 1; mov.u32 s, 0; .reg .b32 odd;
    $top: setp.eq.u32 p, n, 1; @p bra $done; add.u32 s, s, 1; and.b32 odd, n, 1; setp.eq.u32 p, odd, 0; @p bra $even;
    mad.lo.u32 n, n, 3, 1; bra.uni $top;
    $even: shr.u32 n, n, 1; bra $top;
    $done: st.global.u32 [w], s;"""
    out = np.zeros(100, np.uint32)
    launch(entry(["u64"], body), [out], block=(100,))

    def rounds(n: int) -> int:
        count = 0
        while n != 1:
            n, count = (n // 2 if n % 2 == 0 else 3 * n + 1), count + 1
        return count

    assert out.tolist() == [rounds(n) for n in range(1, 101)]


def test_grids_and_blocks_of_three_dimensions() -> None:
    body = """.reg .b32 x, y, z, n, at; .reg .b64 a, w; ld.param.u64 a, [p0];
    mov.u32 x, %ctaid.x; mov.u32 y, %ctaid.y; mov.u32 z, %ctaid.z; mov.u32 n, %nctaid.y; mad.lo.u32 at, z, n, y;
    mov.u32 n, %nctaid.x; mad.lo.u32 at, at, n, x;
    mov.u32 z, %tid.z; mov.u32 n, %ntid.z; mad.lo.u32 at, at, n, z; mov.u32 y, %tid.y; mov.u32 n, %ntid.y;
    mad.lo.u32 at, at, n, y; mov.u32 x, %tid.x; mov.u32 n, %ntid.x; mad.lo.u32 at, at, n, x;
    mul.wide.u32 w, at, 4; add.u64 a, a, w; .reg .b32 v; red.global.add.u32 [a], 1;"""
    out = np.zeros((5, 2, 3, 3, 5, 7), np.uint32)
    launch(entry(["u64"], body), [out], grid=(3, 2, 5), block=(7, 5, 3))
    assert (out == 1).all()


def test_branch_tables() -> None:
    body = f"""{TID} and.b32 s, t, 3; targets: .branchtargets $a, $b, $c, $d; brx.idx s, targets;
    $a: mov.u32 s, 100; bra $end;
    $b: mov.u32 s, 200; bra $end;
    $c: mov.u32 s, 300; bra $end;
    $d: mov.u32 s, 400;
    $end: st.global.u32 [w], s;"""
    out = np.zeros(32, np.uint32)
    launch(entry(["u64"], body), [out])
    assert out.tolist() == [100, 200, 300, 400] * 8


def test_threads_that_left_do_not_hold_a_barrier() -> None:
    body = f"""{TID} .shared .b8 tile[4]; setp.ge.u32 p, t, 40; @p ret; setp.eq.u32 p, t, 3; @p st.shared.u32 [tile], t;
    bar.sync 0; ld.shared.u32 s, [tile]; st.global.u32 [w], s;"""
    out = np.zeros(64, np.uint32)
    launch(entry(["u64"], body), [out], block=(64,), races=True)
    assert out.tolist() == [3] * 40 + [0] * 24


def test_barriers_that_never_open() -> None:
    """A barrier of 64 threads in a block of 32."""
    with pytest.raises(EmulatorError, match="wait for ever"):
        launch(entry([], "bar.sync 1, 64;"), [])


def test_lanes_at_different_barriers() -> None:
    body = """.reg .b32 t; .reg .pred p; mov.u32 t, %tid.x; setp.lt.u32 p, t, 7; @p bra $few; bar.sync 0; bra $end;
    $few: bar.sync 0;
    $end:"""
    with pytest.raises(EmulatorError, match="lanes of one warp wait at different"):
        launch(entry([], body), [], block=(64,))


def test_barriers_that_count() -> None:
    body = f"""{TID} setp.lt.u32 p, t, 5; bar.red.popc.u32 s, 0, p; st.global.u32 [w], s;
    .reg .pred q; setp.lt.u32 p, t, 64; bar.red.and.pred q, 0, p; selp.u32 n, 1, 0, q; add.u32 s, s, n;
    bar.red.or.pred q, 0, !p; selp.u32 n, 10, 0, q; add.u32 s, s, n; st.global.u32 [w], s;"""
    out = np.zeros(64, np.uint32)
    launch(entry(["u64"], body), [out], block=(64,))
    assert out.tolist() == [6] * 64


def test_producers_arrive_and_consumers_wait() -> None:
    body = f"""{TID} .shared .align 4 .b8 tile[128]; .reg .b32 at; and.b32 s, t, 31; mov.u32 at, tile;
    mad.lo.u32 at, s, 4, at;
    setp.ge.u32 p, t, 32; @p bra $consume; mul.lo.u32 n, t, 7; st.shared.u32 [at], n; bar.arrive 1, 64; ret;
    $consume: bar.sync 1, 64; ld.shared.u32 n, [at]; st.global.u32 [w], n;"""
    out = np.zeros(64, np.uint32)
    launch(entry(["u64"], body), [out], block=(64,), races=True)
    assert out.tolist() == [0] * 32 + [7 * k for k in range(32)]


def test_blocks_may_wait_for_each_other_when_they_run_together() -> None:
    """Block 1 raises a flag that block 0 spins on."""
    body = """.reg .b32 c, v; .reg .b64 a; .reg .pred p; ld.param.u64 a, [p0]; mov.u32 c, %ctaid.x; setp.eq.u32 p, c, 1;
    @p bra $raise;
    $spin: ld.acquire.gpu.global.u32 v, [a]; setp.eq.u32 p, v, 0; @p bra $spin; st.global.u32 [a+4], v; ret;
    $raise: st.release.gpu.global.u32 [a], 5;"""
    flags = np.zeros(2, np.uint32)
    Module(entry(["u64"], body)).launch(None, (2,), (32,), [flags], together=True)
    assert flags.tolist() == [5, 5]


CALLED = """.func (.param .b32 out) twice(.param .b32 in, .param .align 4 .b8 pair[8])
{ .reg .b32 x, y; .reg .pred p; ld.param.u32 x, [in]; ld.param.u32 y, [pair+4]; setp.lt.u32 p, x, 4; @p bra $small;
add.u32 x, x, x; add.u32 x, x, y; st.param.b32 [out], x; ret;
$small: st.param.b32 [out], 0; ret; }
"""


def test_functions_of_the_same_file() -> None:
    body = f"""{TID} {{ .param .b32 x; .param .align 4 .b8 q[8]; .param .b32 r; st.param.b32 [x], t;
    st.param.b32 [q+4], 1;    call.uni (r), twice, (x, q); ld.param.b32 s, [r]; }}
    {{ .param .b32 x; .param .align 4 .b8 q[8]; .param .b32 r; st.param.b32 [x], s; st.param.b32 [q+4], 2;
    call (r), twice, (x, q); ld.param.b32 s, [r]; }} st.global.u32 [w], s;"""
    out = np.zeros(32, np.uint32)
    launch(entry(["u64"], body, CALLED), [out])

    def twice(x: int, y: int) -> int:
        return 0 if x < 4 else 2 * x + y

    assert out.tolist() == [twice(twice(t, 1), 2) for t in range(32)]


def test_calls_that_cannot_be_inlined() -> None:
    with pytest.raises(EmulatorError, match="does not define"):
        launch(entry([], "call.uni vprintf, ();"), [])
    itself = ".func again() { call.uni again, (); ret; }"
    with pytest.raises(EmulatorError, match="calls itself"):
        launch(entry([], "call.uni again, ();", itself), [])


COPY = """.shared .align 16 .b8 tile[1024]; .reg .b32 t, at, x; .reg .b64 a, o, w; mov.u32 t, %tid.x;
ld.param.u64 a, [p0]; ld.param.u64 o, [p1]; mul.wide.u32 w, t, 16; add.u64 a, a, w; mov.u32 at, tile;
mad.lo.u32 at, t, 16, at; mul.wide.u32 w, t, 4; add.u64 o, o, w;"""


def test_asynchronous_copies_are_there_after_the_wait() -> None:
    data, out = np.arange(256, dtype=np.uint32), np.zeros(32, np.uint32)
    body = f"""{COPY} cp.async.cg.shared.global [at], [a], 16; cp.async.commit_group;
    cp.async.ca.shared.global [at+512], [a+512], 4, 0; cp.async.commit_group; cp.async.wait_group 1;
    ld.shared.u32 x, [at+8]; cp.async.wait_group 0; st.global.u32 [o], x; ld.shared.u32 x, [at+512];
    add.u32 x, x, 1; ld.shared.u32 t, [at+4]; add.u32 x, x, t; st.global.u32 [o], x;"""
    launch(entry(["u64"] * 2, body), [data, out], races=True)
    assert out.tolist() == [4 * k + 2 for k in range(32)]


@pytest.mark.parametrize("wait", ["", "cp.async.wait_group 1;"])
def test_a_missing_wait_is_caught(wait: str) -> None:
    body = f"""{COPY} cp.async.cg.shared.global [at], [a], 16; cp.async.commit_group; {wait} bar.sync 0;
    ld.shared.u32 x, [at];"""
    with pytest.raises(EmulatorError, match=r"cp\.async is still filling"):
        launch(entry(["u64"] * 2, body), [np.zeros(256, np.uint32), np.zeros(32, np.uint32)])


@pytest.mark.parametrize(
    ("between", "message"), [("", "another warp has just written"), ("cp.async.wait_all; bar.sync 0;", "")]
)
def test_a_missing_barrier_is_a_race(between: str, message: str) -> None:
    body = f"""{COPY} xor.b32 t, t, 32; mad.lo.u32 x, t, 16, 0; .reg .b32 y; mov.u32 y, tile; add.u32 x, x, y;
    cp.async.cg.shared.global [at], [a], 16; cp.async.commit_group; cp.async.wait_group 0; {between}
    ld.shared.u32 x, [x];"""
    arguments = [np.zeros(256, np.uint32), np.zeros(64, np.uint32)]
    if not message:
        launch(entry(["u64"] * 2, body), arguments, block=(64,), races=True)
        return
    with pytest.raises(EmulatorError, match=message):
        launch(entry(["u64"] * 2, body), arguments, block=(64,), races=True)


RACES = {
    "two warps write one place": "st.shared.u32 [tile], t;",
    "nobody has written": "ld.shared.u32 x, [at];",
    "another warp has just read": """st.shared.u32 [at], t; bar.sync 0; xor.b32 x, at, 512; ld.shared.u32 t, [x];
    st.shared.u32 [at], t;""",
    "another warp has just written": "st.shared.u32 [at], t; xor.b32 x, at, 512; ld.shared.u32 t, [x];",
}


@pytest.mark.parametrize("message", RACES)
def test_races(message: str) -> None:
    text = entry(["u64"] * 2, COPY + RACES[message])
    arguments = [np.zeros(256, np.uint32), np.zeros(64, np.uint32)]
    with pytest.raises(EmulatorError, match=message):
        launch(text, arguments, block=(64,), races=True)
    launch(text, arguments, block=(64,))


def test_atomics_do_not_race_with_each_other() -> None:
    body = f"""{COPY} .reg .pred p; setp.eq.u32 p, t, 0; @p st.shared.u32 [tile], 0; bar.sync 0;
    red.shared.add.u32 [tile], 1;    bar.sync 0; ld.shared.u32 x, [tile]; st.global.u32 [o], x;"""
    out = np.zeros(64, np.uint32)
    launch(entry(["u64"] * 2, body), [np.zeros(256, np.uint32), out], block=(64,), races=True)
    assert (out == 64).all()


def test_a_kernel_that_gives_up() -> None:
    with pytest.raises(EmulatorError, match="gave up"):
        launch(entry([], "trap;"), [])


def test_launches_out_of_range() -> None:
    text = HEADER + ".visible .entry kernel() .maxntid 64, 1, 1 { ret; }"
    module = Module(text, Memory())
    module.launch(None, (1,), (64,), [])
    with pytest.raises(EmulatorError, match="a block of 65 threads"):
        module.launch(None, (1,), (65,), [])
    with pytest.raises(EmulatorError, match="a grid of"):
        module.launch(None, (0,), (64,), [])


def test_unwritten_shared_memory_is_poison_where_reading_it_is_no_error() -> None:
    out = np.zeros(32, np.float32)
    text = entry(["u64"] * 2, COPY + "ld.shared.u32 x, [at]; st.global.u32 [o], x;")
    Module(text, Memory(), races=True).launch("kernel", (1,), (32,), [np.zeros(256, np.uint32), out])
    assert np.isnan(out).all()


def test_lanes_of_a_warp_race_where_that_is_asked() -> None:
    """A store, then a load of the neighbour's, then a store over what the neighbour read."""
    for parts, races in (
        (("", ""), True),
        (("bar.warp.sync -1;", ""), True),
        (("", "bar.warp.sync -1;"), True),
        (("bar.warp.sync -1;", "bar.warp.sync -1;"), False),
    ):
        body = f"""{COPY} st.shared.u32 [at], t; {parts[0]} xor.b32 x, at, 16; ld.shared.u32 x, [x]; {parts[1]}
        st.shared.u32 [at], x;"""
        module = Module(entry(["u64"] * 2, body), races=True, lanes=True)
        arguments = [np.zeros(256, np.uint32), np.zeros(64, np.uint32)]
        if races:
            with pytest.raises(EmulatorError, match="another warp or lane has just"):
                module.launch(None, (1,), (64,), arguments)
        else:
            module.launch(None, (1,), (64,), arguments)
        Module(entry(["u64"] * 2, body), races=True).launch(None, (1,), (64,), arguments)


def test_blocks_in_the_other_order() -> None:
    """Every block looks for what the one before it has left."""
    body = """.reg .b32 c, v; .reg .b64 a, w; ld.param.u64 a, [p0]; mov.u32 c, %ctaid.x; mul.wide.u32 w, c, 4;
    add.u64 a, a, w; add.u32 v, c, 1; st.global.u32 [a+4], v; ld.global.u32 v, [a]; st.global.u32 [a+24], v;"""
    found = []
    for backwards in (False, True):
        data = np.zeros(10, np.uint32)
        Module(entry(["u64"], body), backwards=backwards).launch(None, (4,), (1,), [data])
        found.append(data[6:].tolist())
    assert found == [[0, 1, 2, 3], [0, 0, 0, 0]]
