"""Where a packed linear's bytes lie: computed from shapes alone, so that memory can be planned before a file is read.

    a weight    [line of zero points, 64 bytes: INT4, INT8][block][block] ...
    a block     LANES output rows (the last one padded with rows of scale 0):
                [scales][own zero points, where groups have them][zeros up to 64 bytes][lines]
    scales      float16 [groups, LANES]
    zero points [groups, LANES], uint8 for INT4, float16 for INT8, both exact; where the whole weight has one zero point
                (symmetric quantization), the line at its head holds it and the blocks have none
    lines       INT4  [groups, group / 8, LANES, 4 bytes]: the low nibble of byte b is input 8 line + b, the high
                      nibble input 8 line + 4 + b
                INT8  [groups, group / 4, LANES, 4 bytes]: byte b is input 4 line + b
                F16   [inputs, LANES] float16, no scales

         line 0 of a group, INT4     lane 0                       lane 1
                                     row 0                        row 1
                                     [4|0][5|1][6|2][7|3]         [4|0][5|1][6|2][7|3]  ...   high | low nibble

So a 32-bit lane of a vector is an output row, the four activations that its four bytes meet are one broadcast for all
lanes, and no sum ever goes across lanes. LANES is the number of floats in a vector: 16, 8 or 4.

A weight is scale * (code - zero point) * `factor`. The factor, a power of two for the whole tensor, moves scales (F16:
the weights) that are not float16 already into its range, so that bfloat16 enters exactly.

Groups in memory have 16, 32, 64 or 128 inputs; longer ones repeat their scale. Inputs are padded to whole groups with
codes of 0, which meet activations of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from edgellm.errors import UsageError
from edgellm.simd.target import F32_LANES

ALIGNMENT = 64
#: Bytes of the line of zero points at a quantized weight's head.
HEAD_BYTES = 64
#: Sizes of a group in memory, best first.
GROUPS = (128, 64, 32, 16)


class LinearKind(IntEnum):
    """How a packed weight stores its numbers."""

    F16 = 0
    INT8 = 1
    INT4 = 2


@dataclass(frozen=True)
class LinearLayout:
    """The layout of one packed weight.

    Attributes:
        kind: how numbers are stored.
        rows, inputs: shape of the weight, [out_features, in_features].
        group: inputs that share a scale in memory; 1 for F16.
        own_zeros: whether every group has its zero points, or the whole weight one.
        lanes: rows of a block.

    Raises:
        UsageError: no such group.
    """

    kind: LinearKind
    rows: int
    inputs: int
    group: int
    own_zeros: bool = False
    lanes: int = F32_LANES

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
        return {LinearKind.F16: 16, LinearKind.INT8: 8, LinearKind.INT4: 4}[self.kind]

    @property
    def scales_bytes(self) -> int:
        """Bytes of a block's scales."""
        return 0 if self.kind == LinearKind.F16 else self.groups * self.lanes * 2

    @property
    def zeros_bytes(self) -> int:
        """Bytes of a block's own zero points."""
        if not self.own_zeros:
            return 0
        return self.groups * self.lanes * (1 if self.kind == LinearKind.INT4 else 2)

    @property
    def lines_offset(self) -> int:
        """Where a block's lines begin, in bytes from the block."""
        return round_up(self.scales_bytes + self.zeros_bytes, ALIGNMENT)

    @property
    def lines_bytes(self) -> int:
        """Bytes of a block's lines."""
        return self.padded_inputs * self.bits * self.lanes // 8

    @property
    def block_bytes(self) -> int:
        return self.lines_offset + round_up(self.lines_bytes, ALIGNMENT)

    @property
    def head_bytes(self) -> int:
        return 0 if self.kind == LinearKind.F16 else HEAD_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, a multiple of 64."""
        return self.head_bytes + self.blocks * self.block_bytes


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
