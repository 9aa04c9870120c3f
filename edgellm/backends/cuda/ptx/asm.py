"""How an op is written: a Python signature over a PTX template.

    @asm("fma.rn.f16x2 $0, $1, $2, $3;")
    def fma_f16x2(a: u32, b: u32, c: u32) -> u32:
        "a * b + c of both halves, each rounded once."

Operands are numbered outputs first. A parameter annotated `Global` or `Shared` is memory: the kernel gives it an array
or pointer, the op's next parameter is the index of the element, and the template gets one operand, its address (64 bits
in global memory, 32 in shared). `OPS` holds every op by name; `twins.py` says in NumPy what each computes.

What takes several ops is a `device` function (`function.py`), compiled into every kernel that calls it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.core.targetconfig import ConfigStack
from numba.cuda.extending import intrinsic

from edgellm.backends.cuda.ptx.types import BY_NAME, CONSTRAINT, LLVM

_GLOBAL_SPACE, _SHARED_SPACE = 1, 3
OLDER = "// stands in for "
WAITING = "//{} "  # the newer op itself, in a comment that goes when a module for a newer device is put together


class Global:
    """Annotation of a parameter in global memory."""


class Shared:
    """Annotation of a parameter in shared memory."""


@dataclass(frozen=True)
class Op:
    """One op. `inputs` and `outputs` are names of types, "Global" and "Shared" among the inputs."""

    name: str
    template: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lowest: int
    older: str | None
    pure: bool
    collective: bool

    def template_for(self, capability: int) -> str:
        """The PTX there. What stands in for a newer op says so in a comment: `text.py` and `compile.py` look for it."""
        if capability >= self.lowest or self.older is None:
            return self.template
        return f"{self.older} {OLDER}{self.name}" if self.older else f"{WAITING.format(self.lowest)}{self.template}"


OPS: dict[str, Op] = {}


def asm(
    template: str, *, lowest: int = 70, older: str | None = None, pure: bool | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Declare the decorated signature an op: numba compiles a call of it to `template`.

    Args:
        template: PTX, operands $0, $1 ... outputs first.
        lowest: the least compute capability that has it.
        older: what stands in its place below `lowest`; "": nothing does, and the text for older devices serves newer
            ones too (`shipped.ready`); None: a kernel for older ones must not call it.
        pure: whether the result depends on the operands alone, so that the compiler may move the op, merge equal ones
            and drop unused ones. By default what touches no memory is pure. `.sync` ops are never moved into a branch.
    """

    def declare(function: Callable[..., Any]) -> Any:
        hints = dict(function.__annotations__)
        outputs = tuple(re.findall(r"[uif]\d+", str(hints.pop("return", ""))))
        inputs = tuple(str(hint) for hint in hints.values())
        memory = any(kind in ("Global", "Shared") for kind in inputs)
        collective = ".sync" in template or "bar." in template
        is_pure = (bool(outputs) and not memory) if pure is None else pure
        op = Op(function.__name__, template, inputs, outputs, lowest, older, is_pure, collective)
        OPS[op.name] = op
        made = _intrinsic(op, list(hints))
        made.__doc__ = function.__doc__
        return made

    return declare


def _intrinsic(op: Op, names: list[str]) -> Any:
    """numba wants a typing function with the very parameters of the op, so one is made of source."""
    typer = _typer(op)
    source = f"def {op.name}(typingctx, {', '.join(names)}):\n    return typer({', '.join(names)})\n"
    if not names:
        source = f"def {op.name}(typingctx):\n    return typer()\n"
    scope: dict[str, Any] = {"typer": typer}
    exec(source, scope)
    return intrinsic(scope[op.name])


def _typer(op: Op) -> Callable[..., Any]:
    kinds = [BY_NAME[name] for name in op.outputs]
    result = types.void if not kinds else kinds[0] if len(kinds) == 1 else types.Tuple(kinds)

    def typer(*given: Any) -> Any:
        wanted: list[Any] = []
        for position, (kind, found) in enumerate(zip(op.inputs, given, strict=True)):
            if kind in ("Global", "Shared"):
                if not isinstance(found, types.Array | types.CPointer):
                    return None
                wanted.append(found)
            elif position and op.inputs[position - 1] in ("Global", "Shared"):
                wanted.append(types.intp if getattr(found, "signed", True) else types.uintp)
            else:
                wanted.append(BY_NAME[kind])
        return result(*wanted), lambda context, builder, sig, args: _lower(op, context, builder, sig, args)

    return typer


def _lower(op: Op, context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
    operands, classes = [], []
    position = 0
    while position < len(args):
        kind = op.inputs[position]
        if kind in ("Global", "Shared"):
            operands.append(_address(context, builder, sig.args[position], args[position], args[position + 1], kind))
            classes.append("l" if kind == "Global" else "r")
            position += 2
            continue
        operands.append(args[position])
        classes.append(CONSTRAINT[BY_NAME[kind]])
        position += 1
    outputs = [BY_NAME[name] for name in op.outputs]
    kinds = [LLVM[output] for output in outputs]
    returned = ir.VoidType() if not kinds else kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)
    constraints = ["=" + CONSTRAINT[output] for output in outputs] + classes
    constraints += [] if op.pure else ["~{memory}"]
    signature = ir.FunctionType(returned, [operand.type for operand in operands])
    major, minor = ConfigStack().top().compute_capability[:2]
    template = op.template_for(10 * major + minor)
    text = ir.InlineAsm(signature, template, ",".join(constraints), side_effect=not op.pure)
    # Without `convergent` LLVM may sink a warp-wide op into a branch; without `readnone` it takes any for a barrier.
    attributes = (["convergent"] if op.collective or not op.pure else []) + (["readnone"] if op.pure else [])
    value = builder.call(text, operands, attrs=(*attributes, "nounwind"))
    if not outputs:
        return context.get_dummy_value()
    if len(outputs) == 1:
        return value
    return context.make_tuple(builder, sig.return_type, [builder.extract_value(value, k) for k in range(len(outputs))])


def _address(context: Any, builder: Any, kind: Any, base: ir.Value, index: ir.Value, memory: str) -> ir.Value:
    """Address of an element: i64 in global memory, i32 in shared memory."""
    if isinstance(kind, types.Array):
        base = context.make_array(kind)(context, builder, base).data
    pointer = builder.gep(base, [index])
    space, width = (_GLOBAL_SPACE, 64) if memory == "Global" else (_SHARED_SPACE, 32)
    if pointer.type.addrspace != space:
        pointer = builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, space))
    return builder.ptrtoint(pointer, ir.IntType(width))
