"""What the parser makes of PTX text: functions, instructions and operands, without meaning."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Register:
    """A declared register; `bits` is 1 for a predicate. Scoped names carry their scope's number."""

    name: str
    bits: int


@dataclass(frozen=True)
class Special:
    """A read-only register of the machine: %tid.x, %laneid ..."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A literal: an int, or a float's bits with their width."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True)
class Symbol:
    """A variable's or parameter's or function's name."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]; `base` is None for an absolute address."""

    base: Register | Symbol | None
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}; an item is None for the sink `_`."""

    items: tuple[Operand | None, ...]


@dataclass(frozen=True)
class Pair:
    """first|second, as shfl and setp write."""

    first: Operand | None
    second: Operand | None


@dataclass(frozen=True)
class Negated:
    """!predicate."""

    register: Register


Operand = Register | Special | Immediate | Symbol | Address | Vector | Pair | Negated


@dataclass(frozen=True)
class Guard:
    """@p or @!p before an instruction."""

    register: Register
    negate: bool


@dataclass
class Instruction:
    """One instruction: `parts` is the opcode cut at its dots."""

    line: int
    text: str
    parts: tuple[str, ...]
    operands: tuple[Operand | None, ...]
    guard: Guard | None = None

    @property
    def root(self) -> str:
        return self.parts[0]


@dataclass(frozen=True)
class Variable:
    """A variable outside registers: `space` is global, const, shared, local or param; size 0 is `.extern name[]`."""

    name: str
    space: str
    size: int
    align: int
    initial: bytes | None = None
    type_name: str = "b8"
    line: int = 0


@dataclass
class Function:
    """An entry or a device function. `labels` maps a name to the index of the instruction after it."""

    name: str
    entry: bool
    parameters: list[Variable]
    returns: list[Variable] = field(default_factory=list)
    body: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    registers: list[Register] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    max_threads: int = 0
    line: int = 0


@dataclass
class Text:
    """A whole PTX file."""

    version: tuple[int, int]
    target: str
    functions: dict[str, Function]
    variables: dict[str, Variable]

    @property
    def entries(self) -> list[str]:
        return [name for name, function in self.functions.items() if function.entry]
