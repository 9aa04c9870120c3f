"""Where a packed linear's bytes lie in device memory: computed from shapes alone, so memory can be planned at once.

A weight is tiles of 16 rows x 64 inputs, each in the order in which lanes of a warp hold operand A of `mma.m16n8k16`:
with g = lane / 4 and t = lane % 4, and k counted from the begin of a block of 16 inputs, a lane holds

    a0: row g, k 2t and 2t + 1     a2: row g, k 2t + 8 and 2t + 9     a1, a3: the same of row g + 8

    tiles    u32 [row tiles][input tiles][bits / 4][32 lanes][4 words]: a warp's 128-bit load is 512 bytes in a row
             4 bits   word b of the lane is block b: pair a_i in its nibbles i and i + 4, and the word turned left by 3,
                      so that a nibble stands in the upper bits of a bfloat16's mantissa after one shift at most
             8 bits   load h has blocks 2h and 2h + 1, two words each: row g's k (2t, 2t + 8, 2t + 1, 2t + 9) as bytes,
                      then row g + 8's
             16 bits  load b is block b: the four pairs, float16
    scales   u32 [row tiles][groups][8]: float16 of row g in the low half, of row g + 8 in the high half
    zeros    where groups have their own; else the whole weight has one
             4 bits   u16 [row tiles][groups][8]: a byte each    8 bits   u32: sixteen bits each

One layout serves every kernel: GEMV and GEMM by tensor cores, and `dp4a`, which finds four inputs of a row in a word's
even nibbles, four of the other in its odd ones.

    w = factor * scale * (code - zero)        (16 bits: factor * number)

The factor, a power of two of the whole weight, moves scales (16 bits: numbers) into float16's range: bfloat16 enters
exactly. Groups in memory have 16, 32, 64 or 128 inputs; longer ones repeat their scale. Inputs are padded to whole 128
and rows to whole 16, with codes and scales of 0.

In a *paired* weight each tile has 8 rows of a gate in its rows 0-7 and the same 8 of an up projection in rows 8-15: one
lane then has both operands of the activation.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import UsageError

TILE_ROWS = 16
TILE_INPUTS = 64
#: Inputs that rows are padded to: two tiles, a step of the decode kernels, and a group of the largest size.
INPUT_ALIGNMENT = 128
#: Sizes of a group in memory, best first.
GROUPS = (128, 64, 32, 16)
#: Bits that a number has in memory.
BITS = (4, 8, 16)
_ALIGNMENT = 256


@dataclass(frozen=True)
class LinearLayout:
    """The layout of one packed weight, which may be several linears that read one input.

    Attributes:
        bits: 4, 8 or 16.
        rows: outputs, the padding not counted; of a paired weight those of gate and up together.
        inputs: as the checkpoint has them.
        group: inputs that share a scale in memory; 128 where bits are 16, which have none.
        own_zeros: whether every group has its zero points, or the whole weight one.
        paired: whether tiles hold gate and up rows.

    Raises:
        UsageError: no such storage.
    """

    bits: int
    rows: int
    inputs: int
    group: int = 128
    own_zeros: bool = False
    paired: bool = False

    def __post_init__(self) -> None:
        for key, found, allowed in (("bits", self.bits, BITS), ("group", self.group, GROUPS)):
            if found not in allowed:
                raise UsageError("no such storage of a weight", key=key, found=found, allowed=str(allowed))
        if self.rows < 1 or self.inputs < 1 or (self.paired and self.rows % 2):
            found = f"{self.rows} x {self.inputs}"
            raise UsageError("no such shape of a weight", key="rows", found=found, allowed="1 or more, pairs even")

    @property
    def row_tiles(self) -> int:
        return -(-self.rows // 2 // 8) if self.paired else -(-self.rows // TILE_ROWS)

    @property
    def padded_inputs(self) -> int:
        return -(-self.inputs // INPUT_ALIGNMENT) * INPUT_ALIGNMENT

    @property
    def steps(self) -> int:
        """Steps of `INPUT_ALIGNMENT` inputs."""
        return self.padded_inputs // INPUT_ALIGNMENT

    @property
    def groups(self) -> int:
        """Groups of a row, those of padding counted."""
        return self.padded_inputs // self.group

    @property
    def tiles_shape(self) -> tuple[int, ...]:
        return self.row_tiles, self.padded_inputs // TILE_INPUTS, self.bits // 4, 32, 4

    @property
    def tiles_bytes(self) -> int:
        return self.row_tiles * TILE_ROWS * self.padded_inputs * self.bits // 8

    @property
    def scales_bytes(self) -> int:
        return 0 if self.bits == 16 else self.row_tiles * self.groups * 32

    @property
    def zeros_bytes(self) -> int:
        return self.scales_bytes * self.bits // 8 if self.own_zeros and self.bits < 16 else 0

    @property
    def scales_offset(self) -> int:
        """Bytes from the weight's begin to its scales, in one allocation."""
        return _aligned(self.tiles_bytes)

    @property
    def zeros_offset(self) -> int:
        return self.scales_offset + _aligned(self.scales_bytes)

    @property
    def nbytes(self) -> int:
        return self.zeros_offset + _aligned(self.zeros_bytes)


def memory_group(group_size: int, inputs: int) -> int | None:
    """The group in memory for groups of `group_size` inputs; None where none fits and the weight is stored dense."""
    if group_size >= inputs:
        return GROUPS[0]
    return next((group for group in GROUPS if group_size % group == 0), None)


def plan_linear(
    rows: int,
    inputs: int,
    bits: int,
    group_size: int | None = None,
    *,
    own_zeros: bool = True,
    paired: bool = False,
) -> LinearLayout:
    """The layout of a weight of that shape.

    Args:
        bits: 2 to 8 for codes; 16 for dense numbers, 8 or 4 for dense numbers that are quantized at load.
        group_size: of the codes; None for a dense weight.
        own_zeros: whether zero points differ.

    Raises:
        UsageError: no such storage.
    """
    if group_size is None:
        return LinearLayout(bits, rows, inputs, 32 if bits == 4 else 128, False, paired)
    group = memory_group(group_size, inputs)
    if group is None:
        return LinearLayout(16, rows, inputs, paired=paired)
    return LinearLayout(4 if bits <= 4 else 8, rows, inputs, group, own_zeros, paired)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
