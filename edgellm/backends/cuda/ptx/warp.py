"""What the 32 lanes of a warp do together. All 32 must reach the op."""

from __future__ import annotations

from edgellm.backends.cuda.ptx.asm import asm
from edgellm.backends.cuda.ptx.function import device
from edgellm.backends.cuda.ptx.scalar import fmax
from edgellm.backends.cuda.ptx.types import f32, u32


@asm("shfl.sync.bfly.b32 $0, $1, $2, 31, -1;")
def shfl_xor(value: f32, mask: u32) -> f32:
    """The float of lane (own ^ mask)."""


@asm("shfl.sync.bfly.b32 $0, $1, $2, 31, -1;")
def shfl_xor_u32(value: u32, mask: u32) -> u32:
    """The word of lane (own ^ mask)."""


@asm("shfl.sync.down.b32 $0, $1, $2, 31, -1;")
def shfl_down(value: f32, distance: u32) -> f32:
    """The float of lane own + distance; the own one beyond lane 31."""


@asm("shfl.sync.up.b32 $0, $1, $2, 0, -1;")
def shfl_up(value: f32, distance: u32) -> f32:
    """The float of lane own - distance; the own one below lane 0."""


@asm("shfl.sync.idx.b32 $0, $1, $2, 31, -1;")
def shfl(value: f32, lane: u32) -> f32:
    """The float of that lane (modulo 32)."""


@asm("shfl.sync.idx.b32 $0, $1, $2, 31, -1;")
def shfl_u32(value: u32, lane: u32) -> u32:
    """The word of that lane (modulo 32)."""


@asm("{ .reg .pred p; setp.ne.u32 p, $1, 0; vote.sync.ballot.b32 $0, p, -1; }")
def ballot(condition: u32) -> u32:
    """Bit l tells whether lane l's condition is not 0."""


@asm("mov.u32 $0, %laneid;")
def lane_id() -> u32:
    """The lane, 0 to 31."""


@device
def warp_sum(value):
    """The sum over the 32 lanes, in every lane, in an order that never changes."""
    for step in range(5):
        value += shfl_xor(value, u32(16 >> step))
    return value


@device
def warp_max(value):
    """The largest of the 32 lanes, in every lane."""
    for step in range(5):
        value = fmax(value, shfl_xor(value, u32(16 >> step)))
    return value


@device
def warp_sum_u32(value):
    """The sum over the 32 lanes of a word, in every lane."""
    for step in range(5):
        value = u32(value + shfl_xor_u32(value, u32(16 >> step)))
    return value


@device
def quad_sum(value):
    """The sum over the four lanes 4 g .. 4 g + 3, in each of them."""
    for step in range(2):
        value += shfl_xor(value, u32(2 >> step))
    return value


@device
def quad_max(value):
    """The largest of the four lanes 4 g .. 4 g + 3, in each of them."""
    for step in range(2):
        value = fmax(value, shfl_xor(value, u32(2 >> step)))
    return value
