"""Loads, stores and copies of a thread, wider than numba's own, and with hints to the caches.

Every op takes memory and the index of its first element; the address must be a multiple of the width. `ld_*_once` reads
what nobody writes while the kernel runs and no thread reads again, such as weights: it passes by the L1 cache. What an
earlier kernel wrote is read by `ld_*`, which may follow a store or `griddep_wait`.
"""

from __future__ import annotations

from edgellm.backends.cuda.ptx.asm import Global, Shared, asm
from edgellm.backends.cuda.ptx.types import f32, u16, u32


@asm("ld.global.nc.L1::no_allocate.v4.u32 {$0,$1,$2,$3}, [$4];")
def ldg128(memory: Global, index: u32) -> tuple[u32, u32, u32, u32]:
    """Four words of constant memory that is read once: the weights' own load."""


@asm("ld.global.nc.L1::no_allocate.v2.u32 {$0,$1}, [$2];")
def ldg64(memory: Global, index: u32) -> tuple[u32, u32]:
    """Two words of constant memory that is read once."""


@asm("ld.global.nc.L1::no_allocate.u32 $0, [$1];")
def ldg32(memory: Global, index: u32) -> u32:
    """A word of constant memory that is read once."""


@asm("ld.global.nc.u32 $0, [$1];")
def ldg_u32(memory: Global, index: u32) -> u32:
    """A word of constant memory."""


@asm("ld.global.nc.u16 $0, [$1];")
def ldg_u16(memory: Global, index: u32) -> u16:
    """Sixteen bits of constant memory."""


@asm("ld.global.nc.f32 $0, [$1];")
def ldg_f32(memory: Global, index: u32) -> f32:
    """A float of constant memory."""


@asm("ld.global.v4.u32 {$0,$1,$2,$3}, [$4];")
def ld128(memory: Global, index: u32) -> tuple[u32, u32, u32, u32]:
    """Four words."""


@asm("ld.global.v2.u32 {$0,$1}, [$2];")
def ld64(memory: Global, index: u32) -> tuple[u32, u32]:
    """Two words."""


@asm("ld.global.v4.f32 {$0,$1,$2,$3}, [$4];")
def ld128_f32(memory: Global, index: u32) -> tuple[f32, f32, f32, f32]:
    """Four floats."""


@asm("ld.global.v2.f32 {$0,$1}, [$2];")
def ld64_f32(memory: Global, index: u32) -> tuple[f32, f32]:
    """Two floats."""


@asm("st.global.v4.u32 [$0], {$1,$2,$3,$4};")
def st128(memory: Global, index: u32, a: u32, b: u32, c: u32, d: u32) -> None:
    """Store four words."""


@asm("st.global.v2.u32 [$0], {$1,$2};")
def st64(memory: Global, index: u32, a: u32, b: u32) -> None:
    """Store two words."""


@asm("st.global.v4.f32 [$0], {$1,$2,$3,$4};")
def st128_f32(memory: Global, index: u32, a: f32, b: f32, c: f32, d: f32) -> None:
    """Store four floats."""


@asm("st.global.v2.f32 [$0], {$1,$2};")
def st64_f32(memory: Global, index: u32, a: f32, b: f32) -> None:
    """Store two floats."""


@asm("ld.shared.v4.u32 {$0,$1,$2,$3}, [$4];")
def lds128(memory: Shared, index: u32) -> tuple[u32, u32, u32, u32]:
    """Four words of shared memory."""


@asm("ld.shared.v2.u32 {$0,$1}, [$2];")
def lds64(memory: Shared, index: u32) -> tuple[u32, u32]:
    """Two words of shared memory."""


@asm("ld.shared.v4.f32 {$0,$1,$2,$3}, [$4];")
def lds128_f32(memory: Shared, index: u32) -> tuple[f32, f32, f32, f32]:
    """Four floats of shared memory."""


@asm("ld.shared.v2.f32 {$0,$1}, [$2];")
def lds64_f32(memory: Shared, index: u32) -> tuple[f32, f32]:
    """Two floats of shared memory."""


@asm("st.shared.v4.u32 [$0], {$1,$2,$3,$4};")
def sts128(memory: Shared, index: u32, a: u32, b: u32, c: u32, d: u32) -> None:
    """Store four words to shared memory."""


@asm("st.shared.v2.u32 [$0], {$1,$2};")
def sts64(memory: Shared, index: u32, a: u32, b: u32) -> None:
    """Store two words to shared memory."""


@asm("st.shared.v4.f32 [$0], {$1,$2,$3,$4};")
def sts128_f32(memory: Shared, index: u32, a: f32, b: f32, c: f32, d: f32) -> None:
    """Store four floats to shared memory."""


@asm("st.shared.v2.f32 [$0], {$1,$2};")
def sts64_f32(memory: Shared, index: u32, a: f32, b: f32) -> None:
    """Store two floats to shared memory."""


@asm("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {$0}, [$1];", lowest=75)
def ldmatrix_x1(memory: Shared, index: u32) -> u32:
    """An 8 x 8 matrix of 16-bit elements; lanes 0-7 say where its rows (16 bytes each) begin.

    Lane l receives elements 2 (l % 4) and the next of row l / 4: the fragments of `mma_m16n8k*`.
    """


@asm("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {$0,$1}, [$2];", lowest=75)
def ldmatrix_x2(memory: Shared, index: u32) -> tuple[u32, u32]:
    """Two matrices as `ldmatrix_x1`; lanes 0-7 say where the rows of the first begin, 8-15 of the second."""


@asm("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];", lowest=75)
def ldmatrix_x4(memory: Shared, index: u32) -> tuple[u32, u32, u32, u32]:
    """Four matrices as `ldmatrix_x1`; lanes 8 m .. 8 m + 7 say where the rows of matrix m begin."""


@asm("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {$0,$1}, [$2];", lowest=75)
def ldmatrix_x2_trans(memory: Shared, index: u32) -> tuple[u32, u32]:
    """Two matrices as `ldmatrix_x2`, each transposed."""


@asm("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {$0,$1,$2,$3}, [$4];", lowest=75)
def ldmatrix_x4_trans(memory: Shared, index: u32) -> tuple[u32, u32, u32, u32]:
    """Four matrices as `ldmatrix_x4`, each transposed."""


@asm("cp.async.cg.shared.global [$0], [$1], 16;", lowest=80)
def cp_async16(target: Shared, to: u32, source: Global, start: u32) -> None:
    """Begin copying 16 bytes to shared memory, past the registers and the L1 cache."""


@asm("cp.async.cg.shared.global [$0], [$1], 16, $2;", lowest=80)
def cp_async16_part(target: Shared, to: u32, source: Global, start: u32, count: u32) -> None:
    """Begin copying the first `count` (0-16) of 16 bytes; the others become 0. Reads nothing where `count` is 0."""


@asm("cp.async.ca.shared.global [$0], [$1], 4;", lowest=80)
def cp_async4(target: Shared, to: u32, source: Global, start: u32) -> None:
    """Begin copying 4 bytes to shared memory."""


@asm("cp.async.ca.shared.global [$0], [$1], 8;", lowest=80)
def cp_async8(target: Shared, to: u32, source: Global, start: u32) -> None:
    """Begin copying 8 bytes to shared memory."""


@asm("cp.async.commit_group;", lowest=80)
def cp_async_commit() -> None:
    """The thread's copies begun since the last commit are a group."""


@asm("cp.async.wait_group 0;", lowest=80)
def cp_async_wait0() -> None:
    """Wait until all of the thread's groups have arrived; others see them after a barrier."""


@asm("cp.async.wait_group 1;", lowest=80)
def cp_async_wait1() -> None:
    """Wait until at most the newest group is under way."""


@asm("cp.async.wait_group 2;", lowest=80)
def cp_async_wait2() -> None:
    """Wait until at most the two newest groups are under way."""


@asm("cp.async.wait_group 3;", lowest=80)
def cp_async_wait3() -> None:
    """Wait until at most the three newest groups are under way."""


@asm("prefetch.global.L2 [$0];")
def prefetch_l2(memory: Global, index: u32) -> None:
    """Ask for the 128-byte line of an element in the L2 cache; the memory must be the process's own."""
