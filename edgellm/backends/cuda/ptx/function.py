"""Functions of ops that kernels call: compiled once for each target and types, made part of every caller by LLVM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.cuda.compiler import compile_cuda
from numba.cuda.core.targetconfig import ConfigStack
from numba.cuda.dispatcher import CUDADispatcher

_OPTIONS = {"device": True, "inline": "never", "forceinline": True, "opt": True, "debug": False, "lineinfo": False}


class _Function(CUDADispatcher):
    """numba's own dispatcher compiles for the device at hand, and there is none; this one for its caller's target."""

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


def device(function: Callable[..., Any]) -> Any:
    """A function of ops that kernels and other functions may call; it becomes part of each.

    numba's own way (`inline="always"`) ends in the same PTX, but copies bodies before types are known, at every level
    of nesting: decode attention took 20 s to compile, and takes 3 (Zen 4, one core, 2026-11).
    """
    return _Function(function, targetoptions=dict(_OPTIONS))
