"""The cells through which the threads of a step meet, see `barrier.py`: an int64 array, a cache line a counter."""

from __future__ import annotations

ARRIVED, RELEASED, STOP = 0, 8, 16
SYNC_SIZE = 24
