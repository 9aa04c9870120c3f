"""From a declared kernel to PTX, with no device and no driver: numba-cuda's compiler behind one function.

numba-cuda's own `compile_ptx` asks NVRTC, 140 MB more to install, which targets there are and where NVVM's library of
functions lies; so NVVM is called here.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from cuda.pathfinder import find_bitcode_lib
from numba.core.errors import NumbaWarning
from numba.cuda import types
from numba.cuda.compiler import _compile_pyfunc_with_fixup
from numba.cuda.cudadrv import nvvm

from edgellm.backends.cuda.entry import Parameter
from edgellm.backends.cuda.kernels.declare import Kernel
from edgellm.backends.cuda.ptx.asm import OLDER, OPS
from edgellm.backends.cuda.ptx.text import body
from edgellm.backends.cuda.ptx.types import BY_NAME
from edgellm.backends.cuda.shipped import VERSIONS, header
from edgellm.errors import UsageError

#: Compute capabilities that code is built for; a device runs the greatest that is not above its own.
TARGETS = tuple(VERSIONS)
_LOWEST_COMPILED = 75  # what CUDA 13 still compiles for; older code is the same text where it uses no newer op


def ptx_of(kernel: Kernel, capability: int) -> str:
    """A module of PTX with this one kernel, its entry named as the kernel, for a compute capability (87 means 8.7).

    The text's target is the greatest of `TARGETS` that is not above the capability; a driver takes it from there.

    Raises:
        UsageError: the kernel does not run there.
        EdgeLLMError: something in it stayed a call.
        numba's own errors: the function cannot be compiled.
    """
    target = max((known for known in TARGETS if known <= capability), default=0)
    if not target or not kernel.runs_on(target):
        allowed = f"{kernel.lowest} to {kernel.highest or 'any'}"
        raise UsageError("a kernel does not run there", key=kernel.name, found=capability, allowed=allowed)
    return header(target) + compiled_body(kernel, target)


def compiled_body(kernel: Kernel, target: int) -> str:
    """The kernel's text for one of `TARGETS`, without a header. Errors as `ptx_of`."""
    return body(compiled(kernel, max(target, _LOWEST_COMPILED)), kernel.name)


def texts_of(kernel: Kernel) -> dict[int, str]:
    """The kernel's texts by target: of the lowest it runs on, and of each where an op of it has become better.

    Other targets take the text of the next lower one: what NVVM itself knows of them changes nothing in float32 code.
    Errors as `ptx_of`.
    """
    texts: dict[int, str] = {}
    newer_ops: set[int] = set()
    for target in TARGETS:
        if kernel.runs_on(target) and (not texts or any(max(texts) < newer <= target for newer in newer_ops)):
            code = compiled(kernel, max(target, _LOWEST_COMPILED))
            texts[target] = body(code, kernel.name)
            newer_ops = {OPS[name].lowest for name in re.findall(rf"{OLDER}(\w+)", code)}
    return texts


def compiled(kernel: Kernel, capability: int) -> str:
    """What NVVM writes for a compute capability from 7.5 on, as it is."""
    signature = types.void(*(_type(parameter) for parameter in kernel.parameters))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaWarning)
        library, _ = _compile_pyfunc_with_fixup(
            kernel.function,
            signature,
            device=False,
            abi="numba",
            cc=divmod(capability, 10),
            launch_bounds=(kernel.threads, kernel.min_blocks),
        )
    if nvvm.LibDevice._cache_ is None:
        nvvm.LibDevice._cache_ = Path(find_bitcode_lib("device")).read_bytes()
    code = nvvm.compile_ir(library.llvm_strs, arch=f"compute_{capability}", opt=3)
    return code.decode().strip("\x00").strip()


def _type(parameter: Parameter) -> Any:
    kind = BY_NAME[parameter.type.rstrip("*")]
    return types.CPointer(kind) if parameter.pointer else kind
