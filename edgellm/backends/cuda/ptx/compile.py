"""From a declared kernel to PTX, with no device and no driver: numba-cuda's compiler behind one function."""

from __future__ import annotations

from typing import Any

from numba.cuda import types
from numba.cuda.compiler import _compile_pyfunc_with_fixup

from edgellm.backends.cuda.kernels.declare import Kernel, Parameter
from edgellm.backends.cuda.ptx.types import BY_NAME


def ptx_of(kernel: Kernel, capability: int) -> str:
    """PTX of a kernel, entry named as the kernel, for a compute capability (87 means 8.7).

    Raises:
        numba's own errors: the function cannot be compiled.
    """
    return _library(kernel, capability).get_asm_str(cc=divmod(capability, 10))


def _library(kernel: Kernel, capability: int) -> Any:
    signature = types.void(*(_type(parameter) for parameter in kernel.parameters))
    library, _ = _compile_pyfunc_with_fixup(
        kernel.function,
        signature,
        device=False,
        abi="numba",
        cc=divmod(capability, 10),
        launch_bounds=(kernel.threads, kernel.min_blocks),
    )
    return library


def _type(parameter: Parameter) -> Any:
    kind = BY_NAME[parameter.type.rstrip("*")]
    return types.CPointer(kind) if parameter.pointer else kind
