"""How an op is written: what it takes and gives, and the LLVM instructions it becomes.

An op is written for vectors. Where it is given tiles in their place, all of one length, it is done vector by vector,
and what is not a tile serves them all; the result is a tile. That is unrolled here, once and for all, so that a tile's
vectors stay in registers: LLVM unrolls a loop over them only while its body is short.
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
from numba.extending import intrinsic

from edgellm.simd.vector import TileType

LLVM_VERSION = binding.llvm_version_info[0]


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

    def pointer(self, operand: int, array: ir.Value, index: ir.Value, pointee: ir.Type, size_bytes: Any) -> ir.Value:
        """Where element `index` of the array, operand number `operand`, lies, as a pointer to `pointee`.

        Compiled with bounds checks on, the op raises IndexError unless `size_bytes` (a number or a value of the index's
        type; None: no matter) from there lie in the array.
        """
        kind = self.operands[operand]
        struct = create_struct_proxy(kind)(self.context, self.builder, array)
        if self.context.enable_boundscheck and size_bytes is not None:
            size = size_bytes if isinstance(size_bytes, ir.Value) else ir.Constant(index.type, size_bytes)
            self._check_bounds(struct, index, size, ir.Constant(index.type, kind.dtype.bitwidth // 8))
        return self.builder.bitcast(self.builder.gep(struct.data, [index]), pointee.as_pointer())

    def _check_bounds(self, struct: Any, index: ir.Value, size: ir.Value, itemsize: ir.Value) -> None:
        builder = self.builder
        end = builder.add(index, builder.udiv(size, itemsize))
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


def one_of_each(given: Sequence[types.Type]) -> tuple[tuple[types.Type, ...], int | None]:
    """The operands' types with a tile's element in place of a tile, and the length of the tiles, None without any.

    Raises:
        TypingError: tiles of different lengths.
    """
    counts = {operand.count for operand in given if isinstance(operand, TileType)}
    if len(counts) > 1:
        raise TypingError(f"tiles of different lengths: {', '.join(map(str, given))}")
    elements = tuple(operand.element if isinstance(operand, TileType) else operand for operand in given)
    return elements, counts.pop() if counts else None


def tiled(result: types.Type, given: Sequence[types.Type], passed: Sequence[types.Type], count: int | None) -> Any:
    """The signature for `given` of an op that gives `result` for `passed`, one of each."""
    if count is None:
        return signature(result, *passed)
    operands = [TileType(p, count) if isinstance(g, TileType) else p for p, g in zip(passed, given, strict=True)]
    return signature(result if result == types.void else TileType(result, count), *operands)


def lower_with(emit: Callable[..., Any]) -> Callable[..., Any]:
    """A lowering as numba has them, which calls `emit(emitter, *values)`, for tiles once for each vector."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: Sequence[ir.Value]) -> ir.Value:
        elements, count = one_of_each(sig.args)
        if count is None:
            value = emit(Emitter(context, builder, elements, sig.return_type), *values)
            return context.get_dummy_value() if value is None else value
        result = sig.return_type.element if isinstance(sig.return_type, TileType) else sig.return_type
        emitter = Emitter(context, builder, elements, result)
        pairs = list(zip(values, sig.args, strict=True))
        filled = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
        for position in range(count):
            one = [builder.extract_value(v, position) if isinstance(t, TileType) else v for v, t in pairs]
            value = emit(emitter, *one)
            if value is not None:
                filled = builder.insert_value(filled, value, position)
        return context.get_dummy_value() if result == types.void else filled

    return lower


def form(result: types.Type, *parameters: Any) -> tuple[types.Type, tuple[Any, ...]]:
    """One way to call an op: what it gives, what it takes."""
    return result, parameters


def operation(*forms: tuple[types.Type, tuple[Any, ...]]) -> Callable[[Callable[..., Any]], Any]:
    """Make a numba intrinsic of `emit(emitter, *values) -> value`, callable in each of `forms`.

    The LLVM value that `emit` returns must be of the form's result; an op without a result returns None.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        lower = lower_with(emit)

        def define(typing_context: Any, *given: types.Type) -> Any:
            one, count = one_of_each(given)
            for result, parameters in forms:
                passed = [_accepts(*pair) for pair in zip(parameters, one, strict=False)]
                if len(parameters) == len(given) and None not in passed:
                    return tiled(result, given, passed, count), lower
            takes = " or ".join("(" + ", ".join(map(str, parameters)) + ")" for _, parameters in forms)
            raise TypingError(f"{emit.__name__} takes {takes}, not ({', '.join(map(str, given))})")

        define.__name__ = define.__qualname__ = emit.__name__
        define.__doc__ = emit.__doc__
        define.__module__ = emit.__module__
        named = list(inspect.signature(emit).parameters.values())
        define.__signature__ = inspect.Signature(named)  # the emitter stands where numba passes its typing context
        return intrinsic(define)

    return decorate
