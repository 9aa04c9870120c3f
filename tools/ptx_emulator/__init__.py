"""Executes PTX text with numpy, many blocks at a time: what the CUDA backend's kernels do, where there is no GPU.

`Module(text).launch(entry, grid, block, arguments)` runs a kernel on numpy arrays. Every access is checked for bounds
and alignment, warp-wide operations for lanes that are missing, barriers for threads that never come.
"""

from __future__ import annotations

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.memory import Memory
from tools.ptx_emulator.module import Module
from tools.ptx_emulator.statistics import Statistics

__all__ = ["EmulatorError", "Memory", "Module", "Statistics"]
