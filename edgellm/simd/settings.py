"""What numba compiles for, found without importing it: a start whose machine code is at hand does without numba."""

from __future__ import annotations

import os
import sys
from typing import Any

import llvmlite.binding as llvm

#: numba's settings that change machine code, as they are where nobody says otherwise.
DEFAULTS: dict[str, Any] = {
    "BOUNDSCHECK": None,
    "CPU_FEATURES": None,
    "CPU_NAME": None,
    "DEBUGINFO_DEFAULT": 0,
    "DISABLE_JIT": 0,
    "LOOP_VECTORIZE": 1,
    "OPT": 3,
    "SLP_VECTORIZE": 0,
}
#: Where somebody could say otherwise: these variables, numba's file in the working directory, a program with numba.
_VARIABLES = (
    "NUMBA_BOUNDSCHECK",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "NUMBA_DEBUGINFO",
    "NUMBA_DISABLE_JIT",
    "NUMBA_ENABLE_AVX",
    "NUMBA_ENABLE_PROFILING",
    "NUMBA_LOOP_VECTORIZE",
    "NUMBA_OPT",
    "NUMBA_SLP_VECTORIZE",
)
_FILE = ".numba_config.yaml"
#: Processors whose AVX numba leaves alone, whatever LLVM says of it.
_WITHOUT_AVX = ("corei7-avx", "core-avx-i", "sandybridge", "ivybridge", "nocona")


def setting(name: str) -> Any:
    """numba's setting `name`, of `DEFAULTS`."""
    if _numba_knows_better():
        from numba.core import config

        found = getattr(config, name, None)
        return "max" if getattr(found, "is_opt_max", False) else int(found) if isinstance(found, int) else found
    return DEFAULTS[name]


def processor() -> tuple[str, str, str]:
    """Target triple, name and features of the processor that numba compiles for."""
    name, features = setting("CPU_NAME"), setting("CPU_FEATURES")
    if name is None:
        name = llvm.get_host_cpu_name()
    return llvm.get_process_triple(), name, _host_features() if features is None else features


def _host_features() -> str:
    if _numba_knows_better() or llvm.get_host_cpu_name() in _WITHOUT_AVX:
        from numba.core.codegen import get_host_cpu_features

        return get_host_cpu_features()
    try:
        return llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot ask this processor
        return ""


def _numba_knows_better() -> bool:
    return "numba" in sys.modules or any(name in os.environ for name in _VARIABLES) or os.path.exists(_FILE)
