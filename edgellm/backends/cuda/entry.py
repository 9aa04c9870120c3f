"""What the host knows of a kernel: enough to launch it."""

from __future__ import annotations

from dataclasses import dataclass

SCALARS = {"u16": 2, "u32": 4, "i32": 4, "f32": 4, "u64": 8}  # what a parameter may be by value: bytes
POINTEES = {"u8": 1, "i8": 1, **SCALARS, "i64": 8}  # what it may point at: bytes an element


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel. `type` is a scalar ("u32") or a pointer ("u32*"), 8 bytes on the device."""

    name: str
    type: str

    @property
    def pointer(self) -> bool:
        return self.type.endswith("*")

    @property
    def bytes(self) -> int:
        return 8 if self.pointer else SCALARS[self.type]


@dataclass(frozen=True)
class Entry:
    """A kernel as the host sees it.

    Attributes:
        name: its name, and the entry's in the PTX.
        parameters: in order.
        threads: threads a block (the x axis; blocks are one-dimensional).
        min_blocks: how many blocks a multiprocessor should hold at once; bounds the registers.
        lowest, highest: compute capabilities that run it (80 means 8.0); `highest` None: all above.
        dynamic_shared: bytes of dynamic shared memory a launch asks for, 0 for none.
    """

    name: str
    parameters: tuple[Parameter, ...]
    threads: int
    min_blocks: int
    lowest: int
    highest: int | None
    dynamic_shared: int

    def runs_on(self, capability: int) -> bool:
        """Whether a device of that compute capability (87 means 8.7) runs it."""
        return self.lowest <= capability and (self.highest is None or capability <= self.highest)
