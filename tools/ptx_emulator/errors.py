"""What the emulator raises."""

from __future__ import annotations


class EmulatorError(Exception):
    """PTX that cannot be read, is not known, or does something a device would not survive or not define.

    Attributes:
        line: the line of the PTX text, from 1; 0 when no line is at fault.
        thread: ((block x, y, z), (thread x, y, z)) of the first thread at fault, or None.
        address: the device address at fault, or None.
    """

    def __init__(
        self,
        message: str,
        line: int = 0,
        thread: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None,
        address: int | None = None,
    ) -> None:
        where = f"PTX line {line}: " if line else ""
        who = f" (block {thread[0]}, thread {thread[1]})" if thread else ""
        at = f" at address {address:#x}" if address is not None else ""
        super().__init__(f"{where}{message}{at}{who}")
        self.line = line
        self.thread = thread
        self.address = address
