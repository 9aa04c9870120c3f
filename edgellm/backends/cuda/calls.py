"""Launches as data, and the kernels that make them real: what is launched is what the driver compiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.entry import Entry
from edgellm.backends.cuda.module import Function, Launch, Module
from edgellm.backends.cuda.shipped import shipped


@dataclass(frozen=True)
class Call:
    """A launch to be: the kernel's name, its grid, its arguments by name, and the op of the program it belongs to."""

    kernel: str
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    op: int


class Code(Protocol):
    """Where PTX comes from: `Shipped`, or `Fresh` for who edits kernels."""

    entries: Mapping[str, Entry]

    def module(self, names: Iterable[str], capability: int) -> str:
        """PTX of the kernels `names` for a device of that compute capability (87 means 8.7)."""


class KernelSet:
    """The kernels in use on one device, compiled as they are asked for, many at a time.

    Args:
        device: that runs them.
        code: where their PTX comes from; by default what the package carries.
    """

    def __init__(self, device: Device, code: Code | None = None) -> None:
        self.device = device
        self._code = code or shipped()
        self._functions: dict[str, Function] = {}

    @property
    def capability(self) -> int:
        """Compute capability of the device, 87 for 8.7."""
        return self.device.properties.capability

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every kernel that there is, by name."""
        return self._code.entries

    def runs(self, name: str) -> bool:
        """Whether there is a kernel of that name for this device."""
        entry = self.entries.get(name)
        return entry is not None and entry.runs_on(self.capability)

    def load(self, names: Iterable[str]) -> None:
        """Have the driver compile those of `names` that it has not yet. Raises `BackendUnavailable`."""
        missing = sorted(set(names) - self._functions.keys())
        if not missing:
            return
        module = Module(self.device, self._code.module(missing, self.capability))
        self._functions.update({name: module.function(self.entries[name]) for name in missing})

    def function(self, name: str) -> Function:
        """A kernel. Raises `BackendUnavailable`."""
        self.load([name])
        return self._functions[name]

    def prepare(self, calls: Sequence[Call]) -> list[Launch]:
        """The launches of `calls`."""
        self.load(call.kernel for call in calls)
        return [self._functions[call.kernel].prepare(call.grid, **call.arguments) for call in calls]
