"""What a model writes may not steer the terminal it is shown on.

Stripped: C0 and C1 controls but newline and tab (ESC, BEL, carriage return, the introducers of OSC and CSI among them),
DEL, and the bidirectional controls and marks. Each is one character, so text may be filtered piece by piece.
"""

from __future__ import annotations

import re

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_STRIPPED = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}]")


def strip_controls(text: str) -> str:
    """`text` without characters that could steer a terminal."""
    return _STRIPPED.sub("", text)
