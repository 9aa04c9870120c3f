"""A PTX file made ready to launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from tools.ptx_emulator import operations as _operations  # noqa: F401  (declares the opcodes)
from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.frame import Frame, Shape
from tools.ptx_emulator.inline import inlined, symbols_used
from tools.ptx_emulator.memory import Memory
from tools.ptx_emulator.overlap import Overlap
from tools.ptx_emulator.parser import parse
from tools.ptx_emulator.races import RaceFinder
from tools.ptx_emulator.registry import unknown
from tools.ptx_emulator.schedule import Program, is_known
from tools.ptx_emulator.slots import slots
from tools.ptx_emulator.statistics import Statistics
from tools.ptx_emulator.syntax import Function, Variable
from tools.ptx_emulator.types import TYPES

# Threads that run together: more means fewer numpy calls, fewer means that registers stay in the processor's cache.
BATCH_THREADS = 8192
BATCH_SHARED_BYTES = 32 << 20
KEPT_BYTES = 32 << 20
Argument = np.ndarray | np.generic | int | float | bytes


class Module:
    """PTX text, parsed once, with its entries launched on numpy arrays.

    Args:
        text: a PTX file.
        memory: the device memory that addresses refer to; a new one by default.
        races: raise for races in shared memory.
        unwritten: with `races`, raise for reads of shared memory that nobody has written, too. Kernels may read it
            where they throw the result away: it is poison then.
        measure: count what is executed and reached, in `statistics` by entry.
        lanes: with `races`, lanes of one warp race too where no bar.warp.sync stands between them.
        backwards: blocks run one at a time, the last first, instead of many at once in order: a kernel whose result
            depends on the order of its blocks gives another.
        rough: .approx functions are off by as much as the manual allows, instead of correctly rounded.
    """

    def __init__(
        self,
        text: str,
        memory: Memory | None = None,
        races: bool = False,
        measure: bool = False,
        unwritten: bool = False,
        rough: bool = False,
        lanes: bool = False,
        backwards: bool = False,
    ) -> None:
        self.text = parse(text)
        self.memory = memory if memory is not None else Memory()
        self.races = races
        self.unwritten = unwritten
        self.rough = rough
        self.lanes = lanes
        self.backwards = backwards
        self.statistics: dict[str, Statistics] = {}
        self.measure = measure
        self.addresses = {
            name: self.memory.bind(np.frombuffer(variable.initial or bytes(variable.size), np.uint8).copy(), name)
            for name, variable in self.text.variables.items()
            if variable.space in ("global", "const")
        }
        self._kernels: dict[str, Kernel] = {}

    @property
    def entries(self) -> list[str]:
        return self.text.entries

    def kernel(self, entry: str | None = None) -> Kernel:
        """The entry of that name; the only one when there is but one and no name is given."""
        if entry is None:
            if len(self.entries) != 1:
                raise EmulatorError(f"name an entry: there are {len(self.entries)}")
            entry = self.entries[0]
        if entry not in self._kernels:
            if entry not in self.entries:
                raise EmulatorError(f"no entry {entry!r}; there are {', '.join(self.entries) or 'none'}")
            self._kernels[entry] = Kernel(self, self.text.functions[entry])
        return self._kernels[entry]

    def launch(
        self,
        entry: str | None,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Argument],
        shared: int = 0,
        together: bool = False,
    ) -> None:
        """Runs `entry` over `grid` blocks of `block` threads.

        Args:
            arguments: one a parameter; an array is bound to a device address for the launch, an int is an address
                in `memory` or a scalar, bytes fill a structure.
            shared: bytes of dynamic shared memory.
            together: all blocks run at the same time, for kernels whose blocks wait for each other.

        Raises:
            EmulatorError: with the PTX line, the thread and the address of the fault.
        """
        kernel = self.kernel(entry)
        bound = []
        try:
            values = []
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    values.append(self.memory.bind(argument, f"argument {len(values)}"))
                    bound.append(values[-1])
                else:
                    values.append(argument)
            kernel.run(_three(grid), _three(block), kernel.packed(values), shared, together)
        finally:
            for address in bound:
                self.memory.free(address)


def _three(extent: Sequence[int]) -> tuple[int, int, int]:
    found = (*extent, 1, 1)[:3]
    return found[0], found[1], found[2]


class Kernel:
    """One entry: its code with calls inlined, the layout of its memory, and frames kept between launches."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module = module
        self.function = inlined(function, module.text.functions)
        for ins in self.function.body:
            if not is_known(ins):
                raise unknown(ins)
        self.slots = slots(self.function)
        used = symbols_used(self.function)
        self.symbols: dict[str, tuple[str, int]] = {
            name: ("global", address) for name, address in module.addresses.items() if name in used
        }
        shared = [v for v in module.text.variables.values() if v.space == "shared" and v.name in used]
        shared += [v for v in self.function.variables if v.space == "shared"]
        self.static_shared = self._place(sorted(shared, key=lambda v: v.size == 0), "shared")
        local = [v for v in self.function.variables if v.space in ("local", "param")]
        self.local_bytes = self._place(local, "local")
        self.parameter_bytes = self._place(self.function.parameters, "param")
        self._frames: OrderedDict[tuple[Shape, int], tuple[Frame, Program]] = OrderedDict()

    def _place(self, variables: list[Variable], space: str) -> int:
        end = 0
        for variable in variables:
            # Arrays of unknown size are the dynamic shared memory: all begin where the static part ends.
            align = max(variable.align, 1)
            start = -(-end // align) * align
            self.symbols[variable.name] = (space, start)
            end = start + variable.size if variable.size else max(end, start)
        return end

    def packed(self, values: Sequence[np.generic | int | float | bytes]) -> np.ndarray:
        """The bytes of the parameters, as cuLaunchKernel lays them out."""
        parameters = self.function.parameters
        if len(values) != len(parameters):
            raise EmulatorError(
                f"{self.function.name} takes {len(parameters)} arguments, not {len(values)}", self.function.line
            )
        data = np.zeros(self.parameter_bytes, np.uint8)
        for variable, value in zip(parameters, values, strict=True):
            start = self.symbols[variable.name][1]
            data[start : start + variable.size] = np.frombuffer(_bytes_of(value, variable), np.uint8)
        return data

    def run(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: np.ndarray,
        dynamic_shared: int = 0,
        together: bool = False,
        overlap: Overlap | None = None,
    ) -> None:
        """Runs every block with `parameters` as `packed` gives them; `overlap` sees what it reaches."""
        blocks = grid[0] * grid[1] * grid[2]
        threads = block[0] * block[1] * block[2]
        most = self.function.max_threads or 1024
        if not 0 < threads <= most or min(grid) < 1:
            raise EmulatorError(f"{self.function.name}: a block of {threads} threads (1 to {most}), a grid of {grid}")
        shared = self.static_shared + dynamic_shared
        lanes = -(-threads // 32) * 32
        batch = max(1, min(BATCH_THREADS // lanes, BATCH_SHARED_BYTES // max(shared, 1), blocks))
        batch = 1 if self.module.backwards else -(-blocks // -(-blocks // batch))
        if together:
            batch = blocks
        starts = range(0, blocks, batch)
        for first in reversed(starts) if self.module.backwards else starts:
            shape = Shape(block, min(batch, blocks - first))
            frame, program = self._frame(shape, shared)
            frame.overlap = overlap
            frame.begin(grid, first, parameters)
            program.run()
        if overlap is not None:
            overlap.end(self.function.name)
        if self.module.measure:
            self.module.statistics[self.function.name].launched()

    def _frame(self, shape: Shape, shared: int) -> tuple[Frame, Program]:
        key = (shape, shared)
        if key not in self._frames:
            frame = Frame(shape, self.slots, self.module.memory, (shared, self.local_bytes))
            frame.symbols = self.symbols
            frame.rough = self.module.rough
            if self.module.races:
                frame.watch = RaceFinder(frame, self.module.unwritten, self.module.lanes)
            if self.module.measure:
                frame.meter = self.module.statistics.setdefault(self.function.name, Statistics())
            self._frames[key] = (frame, Program(self.function, frame))
            while len(self._frames) > 1 and sum(f.bytes for f, _ in self._frames.values()) > KEPT_BYTES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return self._frames[key]


def _bytes_of(value: np.generic | int | float | bytes, variable: Variable) -> bytes:
    if isinstance(value, bytes):
        if len(value) != variable.size:
            raise EmulatorError(f"{variable.name} takes {variable.size} bytes, not {len(value)}", variable.line)
        return value
    of = TYPES[variable.type_name]
    if variable.size != of.bytes:
        raise EmulatorError(f"{variable.name} takes {variable.size} bytes", variable.line)
    if isinstance(value, np.generic) and value.dtype.itemsize == of.bytes:
        return value.tobytes()
    if of.kind == "f":
        return of.dtype.type(value).tobytes()
    if not isinstance(value, int | np.integer):
        raise EmulatorError(f"{variable.name} is a .{of.name}, not a {type(value).__name__}", variable.line)
    return (int(value) & ((1 << of.bits) - 1)).to_bytes(of.bytes, "little")
