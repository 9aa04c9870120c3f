"""How the threads of a team divide the work of an op, and how its kernels are compiled."""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel

#: `kernel` for functions that write what they are given and make nothing: numba then counts no references to the arrays
#: that they pass on. Such counts are atomic; without them activations are quantized four times as fast (0.45 ns an
#: input instead of 1.75, one Zen 4 core). Making an array in such a function does not compile.
bare_kernel = kernel(_nrt=False)


@kernel
def share(ith, nth, count):
    """The range first..last-1 of `count` pieces of work that thread `ith` of `nth` does.

    Ranges follow each other, cover everything once and differ by one piece at most; they are empty where there are more
    threads than pieces. A piece is computed alike whoever does it, so results do not depend on `nth`.
    """
    return count * ith // nth, count * (ith + 1) // nth
