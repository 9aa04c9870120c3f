"""Machine code of a kernel as it is kept, and loading it: LLVM's linker alone, without a compiler.

one line of JSON     function: its symbol; needs: symbols of the process; sizes: bytes of each object
the objects          relocatable, in the system's format, as LLVM wrote them
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm

#: Engines own the code; what was loaded stays for the life of the process.
_engines: list[Any] = []


class Unresolved(Exception):
    """Code that calls what this process does not have."""


def payload_of(function: str, objects: list[bytes]) -> bytes:
    """What `load` takes. Raises `Unresolved` for an object whose symbols cannot be read."""
    undefined: set[str] = set()
    defined: set[str] = set()
    for data in objects:
        for name, is_defined in symbols(data):
            (defined if is_defined else undefined).add(name)
    described = {"function": function, "needs": sorted(undefined - defined), "sizes": [len(data) for data in objects]}
    return json.dumps(described).encode() + b"\n" + b"".join(objects)


def load(payload: bytes) -> int:
    """The function's address.

    Raises:
        Unresolved: the process lacks a symbol that it needs; LLVM itself would end the process.
    """
    line, _, objects = payload.partition(b"\n")
    described = json.loads(line)
    engine = _engine()  # with it LLVM knows the symbols of the process
    missing = [name for name in described["needs"] if not llvm.address_of_symbol(name)]
    if missing:
        raise Unresolved(f"it needs {', '.join(missing)}")
    begin = 0
    for size in described["sizes"]:
        engine.add_object_file(llvm.ObjectFileRef.from_data(objects[begin : begin + size]))
        begin += size
    engine.finalize_object()
    address = engine.get_function_address(described["function"])
    if not address:
        raise Unresolved(f"it has no {described['function']}")
    _engines.append(engine)
    return address


def _engine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly("")
    module.triple = llvm.get_process_triple()
    return llvm.create_mcjit_compiler(module, llvm.Target.from_triple(module.triple).create_target_machine(jit=True))


def symbols(data: bytes) -> Iterator[tuple[str, bool]]:
    """Names that an object mentions beyond its own sections, and whether it defines them."""
    if data[:5] == b"\x7fELF\x02":
        return _elf_symbols(data)
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return _mach_symbols(data)
    if data[:2] in (b"\x64\x86", b"\x64\xaa"):
        return _coff_symbols(data)
    raise Unresolved("its format is not known")


def _elf_symbols(data: bytes) -> Iterator[tuple[str, bool]]:
    (sections_at,) = struct.unpack_from("<Q", data, 40)
    entry, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + n * entry) for n in range(count)]
    for _, kind, _, _, at, nbytes, link, _, _, _ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", data[at : at + nbytes]):
            if info >> 4:  # not STB_LOCAL
                yield _text(data, names + name), section != 0


def _mach_symbols(data: bytes) -> Iterator[tuple[str, bool]]:
    (commands,) = struct.unpack_from("<I", data, 16)
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command == 2:  # LC_SYMTAB
            symbols, count, names, _ = struct.unpack_from("<IIII", data, at + 8)
            for name, kind, _, _, value in struct.iter_unpack("<IBBHQ", data[symbols : symbols + 16 * count]):
                if kind & 1 and not kind & 0xE0:  # external, not for debuggers
                    yield _text(data, names + name).removeprefix("_"), bool(kind & 0x0E or value)
        at += size


def _coff_symbols(data: bytes) -> Iterator[tuple[str, bool]]:
    symbols, count = struct.unpack_from("<II", data, 8)
    names, number = symbols + 18 * count, 0
    while number < count:
        short, value, section, _, kind, more = struct.unpack_from("<8sIhHBB", data, symbols + 18 * number)
        zero, at = struct.unpack("<II", short)
        if kind == 2:  # external
            yield short.rstrip(b"\0").decode() if zero else _text(data, names + at), bool(section or value)
        number += 1 + more


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
