"""Vector types for numba, each an LLVM vector, and the way an op over them is written.

`F32`, `I32`, `I16`, `I8`, `U8` fill one native vector of the target. A `mask` has one bit a lane. Types never convert
into each other by themselves: an op takes exactly the types that it names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import types
from numba.core.cgutils import create_struct_proxy, get_or_insert_function
from numba.core.errors import TypingError
from numba.core.typing import signature
from numba.extending import intrinsic, models, register_model

from edgellm.simd.target import F32_LANES, I8_LANES, I16_LANES, I32_LANES, U8_LANES

LLVM_VERSION = binding.llvm_version_info[0]
_ELEMENTS = {
    "f32": ir.FloatType(),
    "i32": ir.IntType(32),
    "i16": ir.IntType(16),
    "i8": ir.IntType(8),
    "u8": ir.IntType(8),
    "mask": ir.IntType(1),
}


class VectorType(types.Type):
    """`lanes` elements of one kind; two of the same kind and length are the same type."""

    def __init__(self, kind: str, lanes: int) -> None:
        self.kind = kind
        self.lanes = lanes
        super().__init__(name=f"{kind}x{lanes}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENTS[self.kind], self.lanes)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, vector.llvm)


F32 = VectorType("f32", F32_LANES)
I32 = VectorType("i32", I32_LANES)
I16 = VectorType("i16", I16_LANES)
I8 = VectorType("i8", I8_LANES)
U8 = VectorType("u8", U8_LANES)
INTEGERS = (I32, I16, I8, U8)
VECTORS = (F32, *INTEGERS)


def mask_of(vector: VectorType) -> VectorType:
    """The type of a comparison of two such vectors."""
    return VectorType("mask", vector.lanes)


MASKS = tuple(dict.fromkeys(mask_of(vector) for vector in VECTORS))


class ArrayOf:
    """A parameter that is a C-contiguous 1-D array, of one of `dtypes` or of bytes."""

    def __init__(self, *dtypes: types.Type, written: bool = False, bytes_too: bool = True) -> None:
        self.dtypes = (*dtypes, types.uint8, types.int8) if bytes_too else dtypes
        self.written = written

    def __str__(self) -> str:
        return f"C-contiguous {'writable ' if self.written else ''}array of " + "/".join(map(str, self.dtypes))

    def accepts(self, given: types.Type) -> bool:
        fits = isinstance(given, types.Array) and given.ndim == 1 and given.layout == "C" and given.dtype in self.dtypes
        return fits and (given.mutable or not self.written)


class Emitter:
    """What an op writes its LLVM instructions with: the builder, and the types of the operands at hand."""

    def __init__(self, context: Any, builder: ir.IRBuilder, operands: Sequence[Any], result: Any) -> None:
        self.context = context
        self.builder = builder
        self.operands = operands
        self.result = result

    def call(self, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
        """Call the LLVM intrinsic of that whole name."""
        kind = ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(get_or_insert_function(self.builder.module, kind, name), values)

    def splat(self, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
        """The scalar in every lane."""
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, undefined, [0] * vector.count)

    def shuffle(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """Lanes of `a` (from 0) and of `b` (counted on behind them)."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))

    def halves(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The lower and the upper half of a vector."""
        half = value.type.count // 2
        return self.shuffle(value, value, range(half)), self.shuffle(value, value, range(half, 2 * half))

    def first(self, count: ir.Value, lanes: int) -> ir.Value:
        """A mask that holds for the first `count` lanes."""
        wide = ir.VectorType(count.type, lanes)
        return self.builder.icmp_signed("<", ir.Constant(wide, list(range(lanes))), self.splat(count, wide))

    def pointer(self, operand: int, array: ir.Value, index: ir.Value, pointee: ir.Type, size_bytes: int) -> ir.Value:
        """Where element `index` of the array, operand number `operand`, lies, as a pointer to `pointee`.

        Compiled with bounds checks on, the op raises IndexError unless `size_bytes` from there lie in the array.
        """
        kind = self.operands[operand]
        struct = create_struct_proxy(kind)(self.context, self.builder, array)
        if self.context.enable_boundscheck:
            self._check_bounds(struct, index, -(-size_bytes * 8 // kind.dtype.bitwidth))
        return self.builder.bitcast(self.builder.gep(struct.data, [index]), pointee.as_pointer())

    def _check_bounds(self, struct: Any, index: ir.Value, elements: int) -> None:
        builder = self.builder
        end = builder.add(index, ir.Constant(index.type, elements))
        negative = builder.icmp_signed("<", index, ir.Constant(index.type, 0))
        with builder.if_then(builder.or_(negative, builder.icmp_signed(">", end, struct.nitems)), likely=False):
            self.context.call_conv.return_user_exc(builder, IndexError, ("vector access outside the array",))


def constant(vector: ir.VectorType, value: float) -> ir.Constant:
    """A vector with `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def _accepts(parameter: Any, given: types.Type) -> types.Type | None:
    """The type an operand is passed as, None if it does not fit: scalars are cast to the parameter's type."""
    if isinstance(parameter, ArrayOf):
        return given if parameter.accepts(given) else None
    if isinstance(parameter, types.Float):
        return parameter if isinstance(given, types.Float | types.Integer) else None
    if isinstance(parameter, types.Integer):
        return parameter if isinstance(given, types.Integer) else None
    return given if given == parameter else None


def form(result: types.Type, *parameters: Any) -> tuple[types.Type, tuple[Any, ...]]:
    """One way to call an op: what it gives, what it takes."""
    return result, parameters


def operation(*forms: tuple[types.Type, tuple[Any, ...]]) -> Callable[[Callable[..., Any]], Any]:
    """Make a numba intrinsic of `emit(emitter, *values) -> value`, callable in each of `forms`.

    The LLVM value that `emit` returns must be of the form's result; an op without a result returns None.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: Sequence[ir.Value]) -> ir.Value:
            value = emit(Emitter(context, builder, sig.args, sig.return_type), *values)
            return context.get_dummy_value() if value is None else value

        def define(typing_context: Any, *given: types.Type) -> Any:
            for result, parameters in forms:
                passed = [_accepts(*pair) for pair in zip(parameters, given, strict=False)]
                if len(parameters) == len(given) and None not in passed:
                    return signature(result, *passed), lower
            takes = " or ".join("(" + ", ".join(map(str, parameters)) + ")" for _, parameters in forms)
            raise TypingError(f"{emit.__name__} takes {takes}, not ({', '.join(map(str, given))})")

        define.__name__ = define.__qualname__ = emit.__name__
        define.__doc__ = emit.__doc__
        define.__module__ = emit.__module__
        named = list(inspect.signature(emit).parameters.values())
        define.__signature__ = inspect.Signature(named)  # the emitter stands where numba passes its typing context
        return intrinsic(define)

    return decorate
