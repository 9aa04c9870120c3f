"""Order between threads: barriers, fences, atomics on words, and launches that overlap (dependent launch)."""

from __future__ import annotations

from edgellm.backends.cuda.ptx.asm import Global, Shared, asm
from edgellm.backends.cuda.ptx.types import u32


@asm("bar.sync $0, $1;")
def bar_sync(barrier: u32, threads: u32) -> None:
    """Wait at that barrier (1-15; 0 is `syncthreads`) for so many threads of the block, whole warps."""


@asm("bar.warp.sync -1;")
def warp_barrier() -> None:
    """Wait for the warp; what its lanes wrote before is seen by all of them after."""


@asm("fence.acq_rel.gpu;")
def fence() -> None:
    """What this thread wrote before is seen by every thread of the device that sees what it writes after."""


@asm("atom.global.add.u32 $0, [$1], $2;")
def atomic_add(memory: Global, index: u32, value: u32) -> u32:
    """Add to a word, give what it was."""


@asm("atom.global.inc.u32 $0, [$1], $2;")
def atomic_inc(memory: Global, index: u32, last: u32) -> u32:
    """Count a word up by 1, from `last` back to 0; give what it was: the block that is given `last` came last."""


@asm("atom.global.max.u32 $0, [$1], $2;")
def atomic_max(memory: Global, index: u32, value: u32) -> u32:
    """Raise a word to at least value; give what it was."""


@asm("atom.shared.add.u32 $0, [$1], $2;")
def atomic_add_shared(memory: Shared, index: u32, value: u32) -> u32:
    """Add to a word of shared memory, give what it was."""


@asm("ld.acquire.gpu.global.u32 $0, [$1];")
def ld_acquire(memory: Global, index: u32) -> u32:
    """A word; what its writer released before it is seen after."""


@asm("st.release.gpu.global.u32 [$0], $1;")
def st_release(memory: Global, index: u32, value: u32) -> None:
    """Store a word that tells: all that this thread wrote before is there."""


@asm("griddepcontrol.wait;", lowest=90, older="")
def griddep_wait() -> None:
    """Wait until the launch before has finished, where it was allowed to overlap with this one; else nothing."""


@asm("griddepcontrol.launch_dependents;", lowest=90, older="")
def griddep_launch() -> None:
    """Allow the next launch to begin; else nothing."""
