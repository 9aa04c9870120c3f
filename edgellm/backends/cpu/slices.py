"""How much is read of a weight in slices, see `linear_refine.py`."""

from __future__ import annotations

from edgellm.backends.cpu.layout import LinearKind, LinearLayout
from edgellm.simd.target import F32_LANES

#: Rows that get the bits of a slice behind the first, by what that is stored as: a row costs more than its bytes, for a
#: block that does not follow the one before is read at two thirds of the speed (2 bits, rows of 896 and 2048, Zen 4).
_REFINED_ROWS = {LinearKind.INT2: 8192, LinearKind.INT4: 2048}
#: Rows from which on an lm_head is stored in slices.
SLICED_FROM = 16384


def refined_blocks(kind: LinearKind) -> int:
    """Blocks that get the bits of a slice of that kind, at most an eighth more, but for equal peaks."""
    return _REFINED_ROWS[kind] // F32_LANES


def refined_bytes(layout: LinearLayout) -> int:
    """Bytes that are read of a slice with that layout behind the first, where not all are, as a rule."""
    return layout.head_bytes + min(refined_blocks(layout.kind), layout.blocks) * layout.block_bytes
