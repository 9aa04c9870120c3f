"""Random numbers from a counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)."""

from __future__ import annotations

from edgellm.backends.cuda.ptx import device, mul_hi_u32, u32

_M0, _M1 = u32(0xD2511F53), u32(0xCD9E8D57)
_W0, _W1 = u32(0x9E3779B9), u32(0xBB67AE85)


@device
def philox(c0, c1, c2, c3, k0, k1):
    """Four random words of a counter of four words and a key of two."""
    for _ in range(10):
        high0, low0 = mul_hi_u32(_M0, c0), u32(_M0 * c0)
        high1, low1 = mul_hi_u32(_M1, c2), u32(_M1 * c2)
        c0, c1, c2, c3 = u32(high1 ^ c1 ^ k0), low1, u32(high0 ^ c3 ^ k1), low0
        k0, k1 = u32(k0 + _W0), u32(k1 + _W1)
    return c0, c1, c2, c3
