"""Constants of `pack.py` that whoever launches it needs."""

from __future__ import annotations

#: `half` of a weight that is not paired.
PLAIN = 2
#: How numbers are stored, by the file's name for it: values of `kind`.
KINDS = {"F16": 0, "BF16": 1, "F32": 2}
