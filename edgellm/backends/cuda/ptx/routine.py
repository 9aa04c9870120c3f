"""Functions of ops that are compiled once and become part of each caller in LLVM, not in numba.

`device` copies a function's body into its caller before types are known, and again at every level of nesting, which is
most of what a large kernel takes to compile. A `routine` is typed and lowered once for the argument types it is called
with, and LLVM inlines it always: the PTX is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.cuda.compiler import compile_cuda
from numba.cuda.core.targetconfig import ConfigStack
from numba.cuda.dispatcher import CUDADispatcher

_OPTIONS = {"device": True, "inline": "never", "forceinline": True, "opt": True, "debug": False, "lineinfo": False}


class _Routine(CUDADispatcher):
    """numba's own dispatcher compiles for the device of the present context; this one for the caller's target."""

    _target: Any = None

    def compile_device(self, args: Any, return_type: Any = None) -> Any:
        target = ConfigStack().top().compute_capability
        if target != self._target:  # ops may differ between targets
            self.overloads.clear()
            self._target = target
        if args not in self.overloads:
            with self._compiling_counter:
                compiled = compile_cuda(
                    self.py_func,
                    return_type,
                    args,
                    forceinline=True,
                    inline="never",
                    nvvm_options={"opt": 3},
                    cc=target,
                )
                self.overloads[args] = compiled
                compiled.target_context.insert_user_function(compiled.entry_point, compiled.fndesc, [compiled.library])
        return self.overloads[args]


def routine(function: Callable[..., Any]) -> Any:
    """A function of ops that kernels and other routines may call; it becomes part of each."""
    return _Routine(function, targetoptions=dict(_OPTIONS))
