"""Programmatic dependent launch: a kernel begins while the one before it ends, and waits itself where it must.

From compute capability 9.0 on a kernel says `griddepcontrol.wait` before it touches what the launch before leaves; up
to there (its weights' first loads, its addresses) it may run beside it, if the launch asks for that. Asked for inside a
captured stream the graph has the same: CUDA 12.3 brought such edges. `EDGELLM_CUDA_PDL=0` turns all of it off.
"""

from __future__ import annotations

import ctypes
import os
import re
from ctypes import POINTER, Structure, c_int, c_ubyte, c_uint, c_void_p

from edgellm.backends.cuda.device import Device

LAUNCH = "cuLaunchKernelEx"
SWITCH = "EDGELLM_CUDA_PDL"
_LOWEST = 90
_LEAST_DRIVER = (12, 3)
#: CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_SERIALIZATION = 6
_MARK = re.compile(r"^\.visible \.entry (\w+)|^griddepcontrol\.wait;", re.M)


class LaunchAttribute(Structure):
    """CUlaunchAttribute: 8 bytes of id, 64 of a union."""

    _fields_ = (("id", c_int), ("pad", c_int), ("value", c_int), ("rest", c_ubyte * 60))


class LaunchConfig(Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("stream", c_void_p),
        ("attributes", POINTER(LaunchAttribute)),
        ("count", c_uint),
    )


def serves(device: Device) -> bool:
    """Whether launches on the device may ask for it: its capability, the driver, and nobody has turned it off."""
    if os.environ.get(SWITCH, "").strip() == "0":
        return False
    driver = device.driver
    return device.properties.capability >= _LOWEST and driver.version >= _LEAST_DRIVER and driver.has(LAUNCH)


def waiting(ptx: str) -> frozenset[str]:
    """The entries of a module that wait for the launch before them; others must not begin beside it."""
    found, entry = set(), ""
    for match in _MARK.finditer(ptx):
        if match[1]:
            entry = match[1]
        else:
            found.add(entry)
    return frozenset(found)


def dependent_config(grid: tuple[int, ...], threads: int, shared: int) -> LaunchConfig:
    """The configuration of a launch that may begin beside the one before it; its stream is yet to be set."""
    attribute = LaunchAttribute(_SERIALIZATION, 0, 1)
    return LaunchConfig((c_uint * 3)(*grid), (c_uint * 3)(threads, 1, 1), shared, None, ctypes.pointer(attribute), 1)
