"""PTX to machine code with no device: nvJitLink holds the very assembler that a driver has."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FUNCTION = re.compile(
    r"Function properties for '(?P<name>\w+)':\s*\n\s*info\s*: used (?P<registers>\d+) registers.*?(?P<stack>\d+) stack"
    r"(?:, (?P<shared>\d+) bytes smem)?.*?(?P<local>\d+) bytes lmem"
)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers a thread, bytes of static shared memory a block and of local memory a thread."""

    registers: int
    shared: int
    local: int


@dataclass(frozen=True)
class Assembled:
    """Machine code of a module, and what each of its kernels takes."""

    cubin: bytes
    resources: dict[str, Resources]


class AssemblyError(Exception):
    """The assembler refuses the text; its own words."""


def assemble(ptx: str, capability: int) -> Assembled:
    """Assemble a module for a device of that compute capability (87 means 8.7).

    Raises:
        AssemblyError: the text is not valid PTX of its version and target.
        ImportError: cuda-bindings is not installed.
    """
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{capability}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        data = ptx.encode("ascii")
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernels")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        raise AssemblyError(log.decode(errors="replace").strip("\x00")) from error
    finally:
        nvjitlink.destroy(handle)
    return Assembled(bytes(cubin), _resources(log.decode(errors="replace")))


def _resources(log: str) -> dict[str, Resources]:
    found = {}
    for match in _FUNCTION.finditer(log):
        local = int(match["stack"]) + int(match["local"])
        found[match["name"]] = Resources(int(match["registers"]), int(match["shared"] or 0), local)
    return found
