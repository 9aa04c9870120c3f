"""The one place where kernels get their compiler options and their cache.

    @kernel
    def op_add(out, left, right, ith, nth): ...

Options that every kernel has, and why:

    nogil        the team's threads run kernels side by side
    error_model  "numpy": a division by zero gives infinity or NaN, which travel to the logits and are found there;
                 Python's model would raise, and a kernel has nobody to raise to
    fastmath     {"contract"}: a * b + c may become one fused multiply-add, which is faster and rounds once less.
                 Not "nnan", "ninf": the compiler might drop the very NaN that tells of a broken model.
                 Not "reassoc": it undoes compensated sums and two-part range reductions (x - n * hi) - n * lo, and
                 kernels state the order of their sums with vector types already.
                 Not "arcp", "afn", "nsz": they lose digits or signs and win nothing here.
    no_cfunc_wrapper, no_cpython_wrapper  no kernel is called from C so, and few from Python, see `Kernel`; wrappers for
                 that are a tenth and a sixth of the compiling time
    _nrt         False: no references to arrays are counted, whose counts are atomic; activations are quantized four
                 times as fast (0.45 ns an input instead of 1.75, one Zen 4 core). Making an array does not compile.
    boundscheck  left to NUMBA_BOUNDSCHECK

numba's own `cache=True` is not used: see `jit_cache`. With NUMBA_DISABLE_JIT=1 a kernel is the plain Python function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, overload

import numba
from numba.core import config
from numba.core.registry import CPUDispatcher

from edgellm.backends.cpu import jit_cache, jit_progress
from edgellm.errors import UsageError

#: LLVM's fast-math flags that every kernel is compiled with.
FASTMATH = frozenset({"contract"})
_HIDES_NAN = {"nnan", "ninf", "fast"}

#: Without `fastmath`; "boundscheck" and "nopython" are what `numba.njit` sets.
_OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    "no_cpython_wrapper": True,
    "boundscheck": None,
    "nopython": True,
    "_nrt": False,
}

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Kernel(CPUDispatcher):
    """A kernel, as kernels call it: without a way in from Python. When Python calls it, it is compiled once more."""

    @cached_property
    def from_python(self) -> Any:
        """The same with a way in."""
        dispatcher = numba.jit(**{**self.targetoptions, "no_cpython_wrapper": False})(self.py_func)
        jit_cache.attach(dispatcher)
        return dispatcher

    def __call__(self, *arguments: Any) -> Any:
        """Call it from Python."""
        return self.from_python(*arguments)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What numba asks for to compile a call. A constant is of a type of its own to it, and so is a variable until a
        loop has changed it: the kernel would be compiled for all of them (48 of 200), which nobody calls then."""
        unliteral = numba.types.unliteral
        arguments, keywords = map(unliteral, args), {name: unliteral(kind) for name, kind in kws.items()}
        return super().get_call_template(tuple(arguments), keywords)


@overload
def kernel(function: _Function) -> _Function: ...
@overload
def kernel(**options: Any) -> Callable[[_Function], _Function]: ...
def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile `function` in nopython mode when it is first called, or take it from the cache.

    Args:
        function: a module's function, or a closure over integers, types and other kernels.
        options: further options of `numba.njit`, such as `inline="always"`; `fastmath` is a set of flags. `shared`:
            whether callers share its code (`jit_shared`), for kernels that are large and not called in inner loops.

    Raises:
        UsageError: an option that kernels may not have.
    """
    if function is None:
        return lambda decorated: kernel(decorated, **options)
    flags, shared = _fastmath(options.pop("fastmath", FASTMATH)), options.pop("shared", False)
    if "cache" in options:
        raise UsageError("kernels have a cache of their own", key="cache")
    if config.DISABLE_JIT:
        return function
    made = Kernel(function, targetoptions={**_OPTIONS, "fastmath": flags, **options})
    jit_progress.listen()
    jit_cache.attach(made, shared=shared)
    return made


def _fastmath(flags: Any) -> set[str]:
    if isinstance(flags, bool) or set(flags) & _HIDES_NAN:
        raise UsageError(
            "NaN must travel to the logits", key="fastmath", found=flags, allowed="a set without nnan, ninf"
        )
    return set(flags)
