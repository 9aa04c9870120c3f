"""A kernel's machine code, and a way into it from Python without numba.

The kernel is compiled as numba compiles it for its callers, without the wrapper through which Python would call it. A
function of our own (`native.py` has what it takes) builds the kernel's arguments from the block and makes the call by
numba's own means, so nothing here knows how numba passes arguments. Both objects are taken as LLVM wrote them: a kernel
counts no references, so beyond the C library nothing is left for them to call.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.compiler_lock import global_compiler_lock
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import from_dtype

from edgellm.backends.cpu import jit_progress, jit_shared, native_apart, native_object
from edgellm.backends.cpu.collector import collecting_rarely

_WORD = ir.IntType(64)


class NotNative(Exception):
    """This numba does not let its machine code be taken."""


def build(kernel: Any, arguments: tuple[Any, ...], *, threaded: bool) -> bytes:
    """What `native_object.load` loads: `kernel`, compiled for arguments of these kinds.

    Raises:
        NotNative: it must be called through numba.
        numba.core.errors.NumbaError: it does not compile.
    """
    if not hasattr(kernel, "_compiler"):
        raise NotNative("no compiler in its dispatcher")
    kinds = tuple(map(_type_of, arguments))
    # as in Dispatcher.compile, whose events and cache these compilations must not touch
    with (
        global_compiler_lock,
        collecting_rarely(),
        jit_progress.announced(kernel.py_func.__qualname__),
        native_apart.parts_compiled(kernel, kinds),
    ):
        compiler = copy.copy(kernel._compiler)
        compiler.targetoptions = {**compiler.targetoptions, "no_cpython_wrapper": True}
        compiler._failed_cache = {}
        result = compiler.compile((*kinds, types.int64, types.int64) if threaded else kinds, None)
        name = "edgellm_" + hashlib.sha256(result.fndesc.llvm_func_name.encode()).hexdigest()[:16]
        entrance = _entrance(name, result, kinds, threaded)
        objects = [_object_of(result.library), _object_of(entrance)]
        return native_object.payload_of(name, [*objects, *jit_shared.needed(*objects).values()])


def _object_of(library: Any) -> bytes:
    try:
        return library._get_compiled_object()
    except (AttributeError, RuntimeError, ValueError) as error:
        raise NotNative(str(error)) from error


def _type_of(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return types.Array(from_dtype(argument.dtype), argument.ndim, "C")
    if isinstance(argument, tuple):
        return types.BaseTuple.from_types(tuple(map(_type_of, argument)))
    if isinstance(argument, np.float32):
        return types.float32
    return types.float64 if isinstance(argument, float) else types.int64


def _entrance(name: str, result: Any, kinds: tuple[Any, ...], threaded: bool) -> Any:
    """The library of a function `name` that calls the compiled one with what a block holds."""
    context, signature = result.target_context, result.signature
    library = context.codegen().create_library(name)
    library.enable_object_caching()
    module = library.create_ir_module(name)
    function = ir.Function(module, ir.FunctionType(_WORD, [_WORD.as_pointer(), _WORD, _WORD]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    block, ith, nth = function.args
    reader = _Reader(context, builder, block)
    values = [reader.read(kind) for kind in kinds] + ([ith, nth] if threaded else [])
    kind = context.call_conv.get_function_type(signature.return_type, signature.args)
    callee = ir.Function(module, kind, result.fndesc.llvm_func_name)
    status, returned = context.call_conv.call_function(builder, callee, signature.return_type, signature.args, values)
    if signature.return_type != types.none:
        number = context.cast(builder, returned, signature.return_type, types.float64)
        builder.store(builder.bitcast(number, _WORD), block)
    builder.ret(builder.sext(status.code, _WORD))
    library.add_ir_module(module)
    library.finalize()
    return library


class _Reader:
    """Takes a block's words one by one, for values as numba has them."""

    def __init__(self, context: Any, builder: ir.IRBuilder, block: ir.Value) -> None:
        self._context, self._builder, self._block = context, builder, block
        self._at = 1  # behind what is returned

    def read(self, kind: Any) -> ir.Value:
        """A value of that numba type."""
        builder = self._builder
        if isinstance(kind, types.BaseTuple):
            return self._context.make_tuple(builder, kind, [self.read(item) for item in kind.types])
        if isinstance(kind, types.Array):
            return self._array(kind)
        word = self._word()
        if kind == types.int64:
            return word
        number = builder.bitcast(word, ir.DoubleType())
        return self._context.cast(builder, number, types.float64, kind)

    def _word(self) -> ir.Value:
        self._at += 1
        return self._builder.load(self._builder.gep(self._block, [ir.Constant(_WORD, self._at - 1)]))

    def _array(self, kind: Any) -> ir.Value:
        context, builder = self._context, self._builder
        element = context.get_data_type(kind.dtype)
        itemsize = ir.Constant(_WORD, context.get_abi_sizeof(element))
        data = builder.inttoptr(self._word(), element.as_pointer())
        shape = [self._word() for _ in range(kind.ndim)]
        strides = [itemsize]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(length, strides[0]))
        array = context.make_array(kind)(context, builder)
        populate_array(array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
        return array._getvalue()
