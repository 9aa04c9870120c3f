"""How much is read of a weight in halves, see `linear_refine.py`."""

from __future__ import annotations

from edgellm.backends.cpu.layout import LinearKind, LinearLayout

#: Blocks that get all their bits, at least, by what halves are stored as; at most an eighth more, but for equal peaks.
REFINED = {LinearKind.INT4: 256, LinearKind.INT2: 512}
#: Blocks from which on a weight is stored in halves: below, the low halves that are read would be most of them.
HALVED_FROM = 1280


def refined_bytes(layout: LinearLayout) -> int:
    """Bytes that are read of low halves with that layout where not all are, as a rule."""
    return layout.head_bytes + min(REFINED[layout.kind], layout.blocks) * layout.block_bytes
