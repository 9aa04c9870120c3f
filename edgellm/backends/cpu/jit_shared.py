"""Kernels whose code their callers share.

numba links the code of every kernel that a kernel calls into the caller's, where LLVM optimizes all of it once more and
translates all of it once more: an op of the walker, four times. A kernel that is shared (`@kernel(shared=True)`) stays
out of its callers; they call a symbol. Its object code is kept here by that symbol, for whoever stores a caller's code
must store it too. A first start took 35 s so, where it had taken 45 (two cores of a Zen 4 server, `edgellm warmup`).

Of numba, the names `CPUCodeLibrary._shared_module` and `_get_compiled_object`, and `JitEngine._ee`, are private (tried
with numba 0.62 and 0.68). Where one of the first two is missing, a kernel is linked as numba does it.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm

from edgellm.backends.cpu import native_object

#: Object code of the shared kernels of this process, by the symbol that callers call.
_objects: dict[str, bytes] = {}


def share(result: Any, object_code: bytes | None = None) -> None:
    """From now on callers of the kernel of a compile result call its code: this, or what was just compiled."""
    library = result.library
    if hasattr(library, "_shared_module") and hasattr(library, "_get_compiled_object"):
        _objects[result.fndesc.llvm_func_name] = object_code or library._get_compiled_object()
        library._shared_module = llvm.parse_assembly("")


def needed(*objects: bytes) -> dict[str, bytes]:
    """Object code of the shared kernels that `objects` call, and that those call, by symbol."""
    found: dict[str, bytes] = {}
    asking = list(objects)
    while asking:
        for name, is_defined in native_object.symbols(asking.pop()):
            if not is_defined and name in _objects and name not in found:
                found[name] = _objects[name]
                asking.append(found[name])
    return found


def load(engine: Any, objects: dict[str, bytes]) -> None:
    """Let the code in numba's engine find shared kernels."""
    for symbol, data in objects.items():
        if symbol not in _objects:
            engine._ee.add_object_file(llvm.ObjectFileRef.from_data(data))
            _objects[symbol] = data
