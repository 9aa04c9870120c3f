"""The cells through which the threads of a step meet, see `barrier.py` and `work.py`.

They are elements of an int64 array, each on a cache line of its own.
"""

from __future__ import annotations

ARRIVED, RELEASED, STOP, TAKEN = 0, 8, 16, 24
SYNC_SIZE = 32
