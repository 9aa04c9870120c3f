"""Which rows of a slot a token sees, for kernels: the rules of `edgellm/backends/slots.py`.

Token N sees what is kept and not older than its window. Those are two runs of tokens, the sinks and what comes behind
the evicted ones (all of it in the second run where nothing was evicted), and each run lies in a ring of rows:

    row = base + (start + i) % modulus      for the i-th token of the run, i < count <= modulus

so that start < modulus makes one subtraction of the remainder.
"""

from __future__ import annotations

from edgellm.backends.cuda.ptx import (
    device,
    u32,
)


@device
def row_of(number, sinks, rows, ring):
    """The row of token `number`; `ring` is 1 in a layer that keeps only its window of `rows` rows."""
    base = u32(0) if ring != u32(0) else sinks
    modulus = u32(rows - base) if rows > base else u32(1)
    turned = u32(base + u32(number - base) % modulus)
    return number if number < base else turned


@device
def oldest_of(number, window):
    """The least number that token `number` sees; `window` 0: all."""
    return u32(u32(number + u32(1)) - window) if (window != u32(0)) & (number >= window) else u32(0)


@device
def sinks_run(oldest, end, evicted, sinks, rows):
    """(count, start) of the sinks from `oldest` up to number `end`, exclusive; its ring is all rows."""
    last = sinks if sinks < end else end
    some = (evicted != u32(0)) & (oldest < last)
    return u32(last - oldest) if some else u32(0), u32(oldest % rows)


@device
def later_run(oldest, end, evicted, sinks, rows, ring):
    """(count, base, start, modulus) of the tokens behind the sinks from `oldest` up to `end`, exclusive.

    Without evictions that is all of them, and in a layer that holds the whole context number n is in row n.
    """
    moved = evicted != u32(0)
    first = u32(sinks + evicted) if moved else u32(0)
    first = first if first > oldest else oldest
    count = u32(end - first) if first < end else u32(0)
    base = sinks if moved & (ring == u32(0)) else u32(0)
    modulus = u32(rows - base) if rows > base else u32(1)
    return count, base, u32(u32(first - base) % modulus), modulus


@device
def wrapped(base, place, modulus):
    """The row at `place` < 2 * modulus of a ring."""
    return u32(base + (u32(place - modulus) if place >= modulus else place))
