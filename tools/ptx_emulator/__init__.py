"""Executes PTX text with numpy, many blocks at a time: what the CUDA backend's kernels do, where there is no GPU.

    module = Module(text)
    module.launch("kernel", grid=(4,), block=(128,), arguments=[weights, x, out, 64])

Arrays are bound to device addresses for the launch. `driver.FakeDriver` is a libcuda whose kernels run here, so that a
whole model runs with no GPU; `Module` and it take the same options.

What is raised, with the line of the PTX, the thread and the address: accesses outside every allocation or out of
alignment, stores to read-only arrays, warp-wide operations whose lanes are missing, barriers that never open, shared
memory that a cp.async is still filling, opcodes that are not known. With `races` two warps (with `lanes` two lanes)
that touch a byte of shared memory with no barrier between, with `unwritten` reads of what nobody wrote. `backwards`
runs the blocks in the other order, `rough` makes the .approx functions as wrong as a device may, `measure` counts
instructions, bytes, sectors and bank conflicts (`report.table`). Fresh memory, shared memory and registers are NaN.

How it works: `parser` makes `syntax` of the text, `inline` replaces calls, `slots` lets registers share arrays. For a
shape of blocks a `Frame` holds an array a register, with an element a thread, and every instruction becomes a closure
over those arrays (files `op_*`). `schedule` runs groups of threads that stand at the same instruction, the earliest
first, and joins them where they meet.

Not modelled: time; the order of sums inside a tensor core (they are made in float64 and rounded once); the weak memory
order between blocks (a store is seen at once); NaN's payload; races in global memory. Not known: wgmma, tcgen05, bulk
copies, mbarrier, textures, calls through a register, float64 fused multiply-adds to the last bit.
"""

from __future__ import annotations

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.memory import Memory
from tools.ptx_emulator.module import Module
from tools.ptx_emulator.statistics import Statistics

__all__ = ["EmulatorError", "Memory", "Module", "Statistics"]
