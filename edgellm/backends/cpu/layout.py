"""Where a packed linear's bytes lie: computed from shapes alone, so that memory can be planned before a file is read.

    a weight    [line of zero points, 64 bytes: INT2 to INT8][band][band] ...
    a band      BAND blocks of LANES output rows (the last band may have fewer, the last block is padded with rows of
                scale 0), their inputs in stretches: [stretch][stretch] ...
    a stretch   [piece][piece] ..., one of each block
    a piece     [scales][own zero points, where groups have them][zeros up to 64 bytes][lines]
    scales      float16 [groups, LANES]
    zero points [groups, LANES], uint8 for INT4, float16 for INT8 and INT2, all exact; where the whole weight has one
                zero point (symmetric quantization), the line at its head holds it and the blocks have none
    lines       INT4  [groups, group / 8, LANES, 4 bytes]: the low nibble of byte b is input 8 line + b, the high
                      nibble input 8 line + 4 + b
                INT2  [groups, group / 16, LANES, 4 bytes]: bits 2 c and 2 c + 1 of byte b are input 16 line + 4 c + b
                INT8  [groups, group / 4, LANES, 4 bytes]: byte b is input 4 line + b
                F16   [inputs, LANES] float16, no scales

         line 0 of a group, INT4     lane 0                       lane 1
                                     row 0                        row 1
                                     [4|0][5|1][6|2][7|3]         [4|0][5|1][6|2][7|3]  ...   high | low nibble

So a 32-bit lane of a vector is an output row, the four activations that its four bytes meet are one broadcast for all
lanes, and no sum ever goes across lanes. LANES is the number of floats in a vector: 16, 8 or 4.

A weight is scale * (code - zero point) * `factor`. The factor, a power of two for the whole tensor, moves scales (F16:
the weights) that are not float16 already into its range, so that bfloat16 enters exactly.

Rows of up to `STRETCH` inputs are one stretch, and then a weight is simply its blocks one behind the other. Longer ones
are cut, evenly, so that decode reads a band front to back and yet comes back to the same activations before the weights
that stream past have driven them out of a first-level cache of 32 KiB.

Groups in memory have 16, 32, 64 or 128 inputs; longer ones repeat their scale. Inputs are padded to whole groups with
codes of 0, which meet activations of 0.

A weight in slices has its codes cut, of 8 bits q = 64 a + 16 b + c, of 4 bits q = 4 a + b, a and b from 0 to 3: an INT2
weight of the a with scales of 64 s (4 s), behind it another one of the b with scales of 16 s (s), and an INT4 weight of
the c with scales of s. Their sum is the weight, and each sum of the first ones is the weight to fewer bits: an lm_head
can be gone through at a quarter or half of its bytes (`linear_refine.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from edgellm.errors import UsageError
from edgellm.simd.target import F32_LANES

ALIGNMENT = 64
#: Bytes of the line of zero points at a quantized weight's head.
HEAD_BYTES = 64
#: Sizes of a group in memory, best first.
GROUPS = (128, 64, 32, 16)
#: Most inputs of a stretch, and blocks of a band. Measured, 4 bits, two planes, two threads on Zen 4, share of plain
#: reading: rows of 2048 inputs 0.97; of 4096, 6144 and 8192 as one stretch 0.85 to 0.90, in stretches 0.97. Stretches
#: that are not read front to back (blocks one behind the other, a stretch of each in turn) come to 0.65.
STRETCH = 2048
#: Most groups of a stretch. Beside more than 512 bytes of scales the processor does not see that a piece's lines follow
#: each other: rows of 2048 were read at 0.63 (groups of 32) and 0.52 (of 64) of plain reading, in stretches at 0.95.
STRETCH_GROUPS = 16
BAND = 8


class LinearKind(IntEnum):
    """How a packed weight stores its numbers."""

    F16 = 0
    INT8 = 1
    INT4 = 2
    INT2 = 3


@dataclass(frozen=True)
class Part:
    """Pieces one behind the other: blocks first_block .. last_block - 1, groups first_group .. last_group - 1.

    Attributes:
        offset: bytes from the weight's begin.
    """

    offset: int
    first_block: int
    last_block: int
    first_group: int
    last_group: int

    @property
    def blocks(self) -> int:
        return self.last_block - self.first_block

    @property
    def groups(self) -> int:
        return self.last_group - self.first_group


@dataclass(frozen=True)
class LinearLayout:
    """The layout of one packed weight.

    Attributes:
        kind: how numbers are stored.
        rows, inputs: shape of the weight, [out_features, in_features].
        group: inputs that share a scale in memory; 1 for F16.
        own_zeros: whether every group has its zero points, or the whole weight one.
        lanes: rows of a block.
        rest: of a weight in slices, what those behind the first are stored as; the first is what all else describes.

    Raises:
        UsageError: no such group.
    """

    kind: LinearKind
    rows: int
    inputs: int
    group: int
    own_zeros: bool = False
    lanes: int = F32_LANES
    rest: tuple[LinearKind, ...] = ()

    def __post_init__(self) -> None:
        allowed = (1,) if self.kind == LinearKind.F16 else GROUPS
        if self.group not in allowed:
            raise UsageError("no such group in memory", key="group", found=self.group, allowed=str(allowed))

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.lanes)

    @property
    def groups(self) -> int:
        """Groups of a row in memory."""
        return -(-self.inputs // self.group)

    @property
    def padded_inputs(self) -> int:
        return self.groups * self.group

    @property
    def bits(self) -> int:
        """Bits of a stored number."""
        return 16 >> self.kind

    @property
    def stretch(self) -> int:
        """Groups of a stretch, but for the last, which may have fewer."""
        if self.kind == LinearKind.F16:
            return self.groups
        return -(-self.groups // -(-self.groups // min(STRETCH // self.group, STRETCH_GROUPS)))

    def scales_bytes(self, groups: int) -> int:
        """Bytes of the scales of a piece with so many groups."""
        return 0 if self.kind == LinearKind.F16 else groups * self.lanes * 2

    def zeros_bytes(self, groups: int) -> int:
        """Bytes of a piece's own zero points."""
        if not self.own_zeros:
            return 0
        return groups * self.lanes * (1 if self.kind == LinearKind.INT4 else 2)

    def lines_offset(self, groups: int) -> int:
        """Where a piece's lines begin, in bytes from the piece."""
        return round_up(self.scales_bytes(groups) + self.zeros_bytes(groups), ALIGNMENT)

    def lines_bytes(self, groups: int) -> int:
        """Bytes of a piece's lines."""
        return groups * self.group * self.bits * self.lanes // 8

    def piece_bytes(self, groups: int) -> int:
        """Bytes of a piece with so many groups."""
        return self.lines_offset(groups) + round_up(self.lines_bytes(groups), ALIGNMENT)

    @property
    def block_bytes(self) -> int:
        """Bytes of all pieces of a block."""
        whole, rest = divmod(self.groups, self.stretch)
        return whole * self.piece_bytes(self.stretch) + (self.piece_bytes(rest) if rest else 0)

    @property
    def first_bytes(self) -> int:
        """Bytes of a block's first piece."""
        return self.piece_bytes(min(self.stretch, self.groups))

    def parts(self, first_band: int = 0, last_band: int | None = None) -> Iterator[Part]:
        """The parts of bands first_band .. last_band - 1 (default: all), front to back."""
        last = self.blocks if last_band is None else min(last_band * BAND, self.blocks)
        step = BAND if self.stretch < self.groups else max(last, 1)
        for block in range(first_band * BAND, last, step):
            end = min(block + step, last)
            offset = self.head_bytes + block * self.block_bytes
            for group in range(0, self.groups, self.stretch):
                part = Part(offset, block, end, group, min(group + self.stretch, self.groups))
                yield part
                offset += part.blocks * self.piece_bytes(part.groups)

    @property
    def head_bytes(self) -> int:
        return 0 if self.kind == LinearKind.F16 else HEAD_BYTES

    @property
    def slices(self) -> tuple[tuple[int, LinearLayout], ...]:
        """(bytes from the weight's begin, layout) of each slice; of a weight that has none 0 and its layout."""
        slices, offset = [], 0
        for kind in (self.kind, *self.rest):
            layout = replace(self, kind=kind, rest=()) if self.rest else self
            slices.append((offset, layout))
            offset += layout.slice_bytes
        return tuple(slices)

    @property
    def slice_bytes(self) -> int:
        """Bytes of the first slice, a multiple of 64."""
        return self.head_bytes + self.blocks * self.block_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, a multiple of 64."""
        return sum(layout.slice_bytes for _, layout in self.slices)

    @property
    def stored_name(self) -> str:
        """What its numbers are, for people."""
        return "float16" if self.kind == LinearKind.F16 else f"int{sum(layout.bits for _, layout in self.slices)}"


def round_up(size: int, step: int) -> int:
    """The first multiple of `step` that is not below `size`."""
    return -(-size // step) * step


def memory_group(group_size: int, inputs: int) -> int | None:
    """The group in memory for groups of `group_size` inputs; None where none fits and the weight is stored dense.

    A row that is one group is cut as it pads least, any other into the largest parts of 16 to 128 that it divides into.
    """
    if group_size >= inputs:
        return min(GROUPS, key=lambda group: (round_up(inputs, group), -group))
    return next((group for group in GROUPS if group_size % group == 0), None)
