"""Counts of instructions, sectors and bank conflicts, of patterns whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cuda.ptx_kernels import entry
from tools.ptx_emulator import Module, Statistics
from tools.ptx_emulator.report import COLUMNS, table

PLACE = ".reg .b32 t, s; .reg .b64 a, w; mov.u32 t, %tid.x; ld.param.u64 a, [p0];"


def measured(body: str, size: int = 1 << 14, grid: int = 1, launches: int = 1) -> Statistics:
    module = Module(entry(["u64"], PLACE + body), measure=True)
    data = np.zeros(size, np.uint32)
    for _ in range(launches):
        module.launch(None, (grid,), (64,), [data])
    return module.statistics["kernel"]


@pytest.mark.parametrize(
    ("stride", "sectors", "efficiency"), [(4, 4, 1.0), (8, 8, 0.5), (32, 32, 0.125), (128, 32, 0.125), (0, 1, 4.0)]
)
def test_sectors_of_strided_loads(stride: int, sectors: int, efficiency: float) -> None:
    found = measured(f"mul.wide.u32 w, t, {stride}; add.u64 a, a, w; ld.global.u32 s, [a];").of("global", "load")
    assert found.requests == 2
    assert found.bytes == 256
    assert found.sectors_a_request == sectors
    assert found.efficiency == efficiency


def test_wide_loads_and_bytes_that_must_move() -> None:
    body = """.reg .b32 x, y, z; mul.wide.u32 w, t, 16; add.u64 a, a, w; ld.global.v4.u32 {s, x, y, z}, [a];
    ld.global.v4.u32 {s, x, y, z}, [a]; st.global.u32 [a], s;"""
    found = measured(body, grid=3, launches=2)
    assert found.launches == 2
    load, store = found.of("global", "load"), found.of("global", "store")
    assert load.requests == 2 * 3 * 2 * 2
    assert load.sectors_a_request == 16
    assert store.efficiency == 0.25
    assert found.touched == {"load": 2 * 1024, "store": 2 * 1024}
    assert found.instructions["ld"] == 2 * 3 * 64 * 3
    assert found.warp_instructions["st"] == 2 * 3 * 2


@pytest.mark.parametrize(
    ("stride", "width", "wavefronts", "ideal"),
    [
        *((4, 1, 1, 1), (8, 1, 2, 1), (128, 1, 32, 1), (0, 1, 1, 1), (132, 1, 1, 1), (16, 4, 4, 4), (8, 2, 2, 2)),
        *((144, 4, 4, 4), (128, 4, 32, 4)),
    ],
)
def test_banks(stride: int, width: int, wavefronts: int, ideal: int) -> None:
    regs = ", ".join(f"x{k}" for k in range(width))
    kind = f"v{width}.u32 {{{regs}}}" if width > 1 else f"u32 {regs}"
    body = f"""setp.ge.u32 p, t, 32; @p ret; .shared .align 16 .b8 tile[8192]; .reg .b32 {regs}, at; mov.u32 at, tile;
    mad.lo.u32 at, t, {stride}, at; ld.shared.{kind}, [at];"""
    found = measured(".reg .pred p;" + body).of("shared", "load")
    assert (found.requests, found.wavefronts, found.ideal) == (1, wavefronts, ideal)
    assert found.conflicts == wavefronts - ideal


def test_lines_are_told_apart() -> None:
    found = measured("ld.global.u32 s, [a];\n mul.wide.u32 w, t, 64; add.u64 a, a, w;\n ld.global.u32 s, [a];")
    (first, one), (second, two) = (found.lines[line] for line in sorted(found.lines))
    assert first == second == "ld.global.u32 s, [a]"
    assert one.sectors_a_request == 1
    assert two.sectors_a_request == 32


def test_the_table_has_a_launch_in_every_line() -> None:
    body = "mul.wide.u32 w, t, 64; add.u64 a, a, w; ld.global.u32 s, [a]; st.global.u32 [a], s;"
    found = measured(body, launches=2)
    header, line = table({"kernel": found, "never": Statistics()})
    assert header.split() == list(COLUMNS)
    assert line.split() == ["kernel", "2", "14", "2,048", "2,048", "0.12", "32.0", "0", "0"]
