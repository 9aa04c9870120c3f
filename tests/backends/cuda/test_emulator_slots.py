"""Registers share arrays only where no thread needs both."""

from __future__ import annotations

import numpy as np

from tests.backends.cuda.ptx_kernels import entry, launch
from tools.ptx_emulator import Module
from tools.ptx_emulator.slots import slots


def slots_of(body: str) -> dict[str, int]:
    function = Module(entry(["u64"], body)).kernel().function
    return {register.name: slot for register, slot in slots(function).items()}


def test_values_one_after_the_other_share() -> None:
    found = slots_of(".reg .b32 a, b, c, d; mov.u32 a, 1; add.u32 b, a, 1; add.u32 c, b, 1; add.u32 d, c, 1;")
    assert found["a"] == found["c"] != found["b"] == found["d"]


def test_what_goes_around_a_loop_keeps_its_place() -> None:
    found = slots_of(
        """.reg .b32 i, s, x, y; .reg .pred p; mov.u32 i, 0; mov.u32 s, 5;
        $top: add.u32 x, i, s; add.u32 i, x, 1; mov.u32 y, 3; setp.lt.u32 p, i, y; @p bra $top;"""
    )
    assert len({found["i"], found["s"], found["x"]}) == 3
    assert found["y"] == found["x"]


def test_what_may_be_read_unset_is_alone() -> None:
    found = slots_of(
        ".reg .b32 a, b, c; .reg .pred p; mov.u32 a, 1; setp.eq.u32 p, a, 1; @p mov.u32 b, 2; mov.u32 c, b;"
    )
    assert list(found.values()).count(found["b"]) == 1 + (found["b"] == found["p"])


def test_divergent_threads_keep_their_values() -> None:
    """Half the threads are in the second loop while the others are in the first."""
    body = """.reg .b32 t, n, s, k; .reg .b64 a, w; .reg .pred p; ld.param.u64 a, [p0]; mov.u32 t, %tid.x;
    mul.wide.u32 w, t, 4;
    add.u64 a, a, w; and.b32 n, t, 3; mov.u32 s, 100;
    $one: add.u32 s, s, 1; sub.u32 n, n, 1; setp.ge.s32 p, n, 0; @p bra $one;
    mov.u32 k, t;
    $two: add.u32 s, s, k; shr.u32 k, k, 1; setp.ne.u32 p, k, 0; @p bra $two;
    st.global.u32 [a], s;"""
    out = np.zeros(64, np.uint32)
    launch(entry(["u64"], body), [out], block=(64,))
    expected = [101 + t % 4 + sum(t >> k for k in range(7)) for t in range(64)]
    assert out.tolist() == expected
