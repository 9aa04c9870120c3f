"""Where the threads of a step wait for each other: a spin barrier in compiled code.

`sync` is an int64 array of `SYNC_SIZE`, each counter on a cache line of its own:

    sync[ARRIVED]     arrivals since the step began, of all phases
    sync[RELEASED]    barriers that all threads have reached
    sync[STOP]        not 0: the step is given up, nobody waits any more
    sync[TAKEN]       pieces of linears that were taken behind the first of each thread, see `work.py`

Phases number the barriers of a step, 0 first, alike in all threads; all is 0 before a step.
"""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.sync import ARRIVED, RELEASED, STOP
from edgellm.simd import atomic_add, atomic_load, atomic_store, pause, yield_thread

#: Pauses before a thread that waits gives its processor away. Measured, 2 threads: 20 to 50 pauses cost nothing on an
#: idle machine; on one with three busy processes a barrier took 2 us with 20, 9 us with 200, 37 us and more with 2000.
SPINS = 30


@kernel
def barrier(sync, nth, phase):
    """Wait until all `nth` threads are here; what each wrote before is seen by all after. Returns 1 to leave the step.

    A thread that is told to stop leaves at once, others may pass a barrier more: what a step has computed that was
    stopped is worth nothing.
    """
    if nth > 1:
        if atomic_add(sync, ARRIVED, 1) == nth * (phase + 1) - 1:
            atomic_store(sync, RELEASED, phase + 1)
        else:
            spins = 0
            while atomic_load(sync, RELEASED) <= phase and atomic_load(sync, STOP) == 0:
                if spins < SPINS:
                    pause()
                    spins += 1
                else:
                    yield_thread()
    return atomic_load(sync, STOP)
