"""What one kernel's machine code depends on, in words: the key of its cache entry.

numba freezes globals and closure variables into the code. Its own cache keys the function's instructions and its
pickled closure; that misses constants (`x + 1` and `x + 2` have the same instructions) and globals, and never hits
where a closure holds another compiled function, for each carries a random number. So a function is described here by
its code, its constants, and the values that its names stand for, on through this package's functions that it calls.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_PLAIN = (int, float, complex, str, bytes, type(None), type(...), np.generic, np.dtype)
_OURS = "edgellm"


def describe_function(function: Callable[..., Any]) -> str:
    """The description of `function`; equal in every process that would compile it to the same code.

    Reads globals as they are now, so it belongs right before compiling.
    """
    return "\n".join(_function(function, set()))


def describe_options(options: dict[str, Any]) -> str:
    """The options a function is compiled with."""
    return str(sorted(map(_option, options.items())))


def describe_code(code: types.CodeType) -> str:
    """Instructions, constants and names of a code object, without paths and line numbers."""
    consts = [describe_code(item) if isinstance(item, types.CodeType) else _constant(item) for item in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    flags = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)  # numba flips others under a profiler
    return f"{code.co_code.hex()} {code.co_argcount} {code.co_kwonlyargcount} {flags} {names} {consts}"


def _constant(value: Any) -> str:
    if isinstance(value, frozenset):  # prints in another order in every process
        return f"frozenset({sorted(map(_constant, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    return f"{type(value).__name__} {value!r}"


def _function(function: Any, seen: set[int]) -> Iterator[str]:
    code = function.__code__
    yield f"{function.__module__}.{function.__qualname__}"
    if id(function) in seen or not (function.__module__ or "").startswith(_OURS):
        return
    seen.add(id(function))
    yield describe_code(code)
    yield f"{_constant(function.__defaults__)}"
    for name, value in free_values(function):
        yield from _value(name, value, (), seen)
    names = tuple(names_in(code))
    for name in names:
        if name in function.__globals__:
            yield from _value(name, function.__globals__[name], names, seen)


def free_values(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """A closure's free variables and what they hold; not those that nothing was assigned to yet."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):
            yield name, cell.cell_contents


def names_in(code: types.CodeType) -> Iterator[str]:
    """Global and attribute names in a code object and those within it."""
    yield from code.co_names
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            yield from names_in(item)


def _value(name: str, value: Any, names: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """`names` are those that the code may look up in a module."""
    if isinstance(value, types.ModuleType):
        yield f"{name} = module {value.__name__}"
        if value.__name__.startswith(_OURS):
            for attribute in names:
                if attribute in value.__dict__ and not isinstance(value.__dict__[attribute], types.ModuleType):
                    yield from _value(f"{name}.{attribute}", value.__dict__[attribute], (), seen)
    elif isinstance(value, types.FunctionType):
        yield f"{name} = function"
        yield from _function(value, seen)
    elif isinstance(getattr(value, "py_func", None), types.FunctionType):
        yield f"{name} = compiled with {describe_options(getattr(value, 'targetoptions', {}))}"
        yield from _function(value.py_func, seen)
    elif isinstance(getattr(value, "_defn", None), types.FunctionType):  # an intrinsic and its code generator
        yield f"{name} = intrinsic"
        yield from _function(value._defn, seen)
    elif isinstance(value, (tuple, list)):
        yield f"{name} = {type(value).__name__} of {len(value)}"
        for number, item in enumerate(value):
            yield from _value(f"{name}[{number}]", item, (), seen)
    else:
        yield f"{name} = {_data(value)}"


def _option(item: tuple[str, Any]) -> str:
    return f"{item[0]}={sorted(item[1]) if isinstance(item[1], (set, frozenset)) else item[1]!r}"


def _data(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(_data, value))})"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(_data, value)))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{_data(key)}: {_data(item)}' for key, item in value.items())})"
    if isinstance(value, np.ndarray):
        data = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"array {value.dtype.descr} {value.shape} {data}"
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__}"
    text = str(value)  # numba's types and signatures say all they are
    return f"{type(value).__qualname__} {'' if ' at 0x' in text else text}"
