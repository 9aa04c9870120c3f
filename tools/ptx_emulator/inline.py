"""Calls of device functions in the same file, replaced by their bodies."""

from __future__ import annotations

from dataclasses import replace

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.syntax import (
    Address,
    Function,
    Guard,
    Instruction,
    Negated,
    Operand,
    Pair,
    Register,
    Symbol,
    Vector,
)


def symbols_used(function: Function) -> set[str]:
    """Names of the variables that the body mentions."""
    found: set[str] = set()

    def visit(operand: Operand | None) -> Operand | None:
        if isinstance(operand, Symbol):
            found.add(operand.name)
        return operand

    for ins in function.body:
        _mapped(ins, visit)
    return found


def _mapped(ins: Instruction, change) -> Instruction:
    """`ins` with `change` applied to every register and symbol in it."""

    def deep(operand: Operand | None) -> Operand | None:
        if isinstance(operand, Vector):
            return Vector(tuple(deep(item) for item in operand.items))
        if isinstance(operand, Pair):
            return Pair(deep(operand.first), deep(operand.second))
        if isinstance(operand, Address):
            return Address(deep(operand.base), operand.offset)
        if isinstance(operand, Negated):
            return Negated(deep(operand.register))
        return change(operand)

    guard = ins.guard and Guard(change(ins.guard.register), ins.guard.negate)
    return replace(ins, operands=tuple(deep(operand) for operand in ins.operands), guard=guard)


def inlined(function: Function, functions: dict[str, Function], above: tuple[str, ...] = ()) -> Function:
    """`function` without calls; EmulatorError for recursion, calls through a register, and functions that are absent.

    A call's parameters are variables of the caller that the callee's formal names are mapped to: nothing is copied.
    """
    if function.name in above:
        raise EmulatorError(f"{function.name} calls itself: the emulator inlines calls", function.line)
    if not any(ins.root == "call" for ins in function.body):
        return function
    result = replace(
        function,
        body=[],
        labels={},
        tables=dict(function.tables),
        registers=list(function.registers),
        variables=list(function.variables),
    )
    places: dict[int, list[str]] = {}
    for name, at in function.labels.items():
        places.setdefault(at, []).append(name)
    for at, ins in enumerate(function.body):
        for name in places.get(at, []):
            result.labels[name] = len(result.body)
        if ins.root == "call":
            _expand(ins, result, functions, (*above, function.name))
        else:
            result.body.append(ins)
    for name in places.get(len(function.body), []):
        result.labels[name] = len(result.body)
    return result


def _names(operand: Operand | None, ins: Instruction) -> list[str]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    if not all(isinstance(item, Symbol) for item in items):
        raise EmulatorError(f"a call with operands that are no variables: `{ins.text}`", ins.line)
    return [item.name for item in items]


def _expand(ins: Instruction, into: Function, functions: dict[str, Function], above: tuple[str, ...]) -> None:
    operands = list(ins.operands)
    returns = _names(operands.pop(0), ins) if isinstance(operands[0], Vector) else []
    callee = functions.get(operands[0].name) if isinstance(operands[0], Symbol) else None
    if callee is None or not callee.body:
        raise EmulatorError(f"a call of what this file does not define: `{ins.text}`", ins.line)
    given = _names(operands[1], ins) if len(operands) > 1 else []
    callee = inlined(callee, functions, above)
    if len(given) != len(callee.parameters) or len(returns) != len(callee.returns):
        raise EmulatorError(f"a call with other parameters than {callee.name} has: `{ins.text}`", ins.line)
    mark = f"@{len(into.body)}"
    names = {formal.name: actual for formal, actual in zip(callee.parameters, given, strict=True)}
    names |= {formal.name: actual for formal, actual in zip(callee.returns, returns, strict=True)}
    names |= {variable.name: variable.name + mark for variable in callee.variables}
    names |= {label: label + mark for label in callee.labels}
    names |= {table: table + mark for table in callee.tables}
    into.variables += [replace(variable, name=variable.name + mark) for variable in callee.variables]
    into.registers += [Register(register.name + mark, register.bits) for register in callee.registers]

    def renamed(operand: Operand | None) -> Operand | None:
        if isinstance(operand, Register):
            return Register(operand.name + mark, operand.bits)
        if isinstance(operand, Symbol):
            return Symbol(names.get(operand.name, operand.name))
        return operand

    start, end = len(into.body), f"end{mark}"
    for label, at in callee.labels.items():
        into.labels[label + mark] = start + at
    for table, targets in callee.tables.items():
        into.tables[table + mark] = tuple(target + mark for target in targets)
    for one in callee.body:
        changed = _mapped(one, renamed)
        if one.root == "ret":
            changed = replace(changed, parts=("bra",), operands=(Symbol(end),))
        into.body.append(changed)
    into.labels[end] = len(into.body)
