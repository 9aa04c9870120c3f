"""The header of a safetensors file, held to the letter of its specification and to our limits.

    8 bytes   N, unsigned little-endian
    N bytes   JSON, begins with "{", may be padded with spaces at its end:
              {"__metadata__": {str: str}, NAME: {"dtype": str, "shape": [int], "data_offsets": [begin, end]}, ...}
    the rest  the tensors' bytes, little-endian and row-major, without a gap, an overlap or anything after the last

The safetensors library accepts more than that (leading blanks, duplicate names, control characters in names, rank
100, dimensions of 2**62); a file that relies on it was not written by an honest tool, so here it ends in a
`ModelError`. Sizes are multiplied as Python integers, which do not overflow.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from edgellm.errors import ModelError, printable
from edgellm.formats.dtypes import NUMPY_DTYPES
from edgellm.formats.limits import (
    MAX_DIMENSION,
    MAX_HEADER_BYTES,
    MAX_METADATA_ENTRIES,
    MAX_NAME_CHARS,
    MAX_RANK,
    MAX_TENSORS,
)
from edgellm.jsonfile import parse_json

PREFIX_BYTES = 8
_FIELDS = ("dtype", "shape", "data_offsets")
_DTYPES = ", ".join(NUMPY_DTYPES)
_COMMAS_PER_OBJECT = 8  # a tensor of rank r has r + 3


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint: what it is called and how it is stored, not its values.

    Attributes:
        name: as in the file.
        dtype: the safetensors name, "F32", "BF16", "I32" ...
        shape: dimensions, outermost first; () is a scalar.
        nbytes: size of its data.
        file: path of the safetensors file that holds it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        tensors: by name, in the order of their data.
        begins: where each tensor's data begins, in bytes from the end of the header.
        metadata: `__metadata__`.
        notes: oddities that change nothing, worth a line under `-v`.
    """

    tensors: dict[str, TensorInfo]
    begins: dict[str, int]
    metadata: dict[str, str]
    notes: list[str]


def header_length(prefix: bytes, file_bytes: int, file: str | os.PathLike[str]) -> int:
    """N, from the first eight bytes of a file of `file_bytes`. Raises `ModelError`."""
    if file_bytes == 0:
        raise ModelError("file is empty", file=file)
    if len(prefix) < PREFIX_BYTES or file_bytes < PREFIX_BYTES + 2:
        raise ModelError("too short to be a safetensors file", file=file, found=f"{file_bytes} bytes")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > file_bytes - PREFIX_BYTES:
        raise ModelError(
            "the header would end past the end of the file",
            file=file,
            found=f"header of {length:,} bytes in a file of {file_bytes:,}",
            hint="The file is truncated or is not safetensors; download it again.",
        )
    if length > MAX_HEADER_BYTES:
        raise ModelError("header too large", file=file, found=f"{length:,} bytes", allowed=f"{MAX_HEADER_BYTES:,}")
    return length


def parse_header(text: bytes, data_bytes: int, file: str | os.PathLike[str]) -> Header:
    """Check a header and the claims it makes about the `data_bytes` that follow it.

    Raises:
        ModelError: it breaks the specification or a limit; the file and the tensor are named.
    """
    if text[:1] != b"{":
        raise ModelError("the header must begin with '{'", file=file, found=repr(text[:8]))
    _refuse_bombs(text, file)
    table = parse_json(text, file)
    notes: list[str] = []
    metadata = _check_metadata(table.pop("__metadata__", {}), file)
    if len(table) > MAX_TENSORS:
        raise ModelError("too many tensors", file=file, found=f"{len(table):,}", allowed=f"{MAX_TENSORS:,}")
    entries = [(*_check_entry(name, entry, data_bytes, file, notes), name) for name, entry in table.items()]
    entries.sort(key=lambda entry: entry[:2])
    position = 0
    for begin, end, _, name in entries:
        if begin != position:
            what = "its data overlaps another tensor's" if begin < position else "there is a gap before its data"
            raise ModelError(what, file=file, key=name, found=f"begins at {begin:,}", allowed=f"{position:,}")
        position = end
    if position != data_bytes:
        raise ModelError(
            "bytes after the last tensor", file=file, found=f"{data_bytes:,} bytes of data", allowed=f"{position:,}"
        )
    return Header(
        tensors={name: info for _, _, info, name in entries},
        begins={name: begin for begin, _, _, name in entries},
        metadata=metadata,
        notes=notes,
    )


def _refuse_bombs(text: bytes, file: str | os.PathLike[str]) -> None:
    """Bound what the JSON can grow to in memory by counting its punctuation first."""
    objects = text.count(b"{")
    if objects > MAX_TENSORS + MAX_METADATA_ENTRIES:
        raise ModelError("too many tensors", file=file, found=f"{objects:,}", allowed=f"{MAX_TENSORS:,}")
    values = text.count(b",")
    allowed = _COMMAS_PER_OBJECT * objects + MAX_METADATA_ENTRIES
    if values > allowed or text.count(b"[") > 4 * objects:
        raise ModelError("the header holds more than tensors", file=file, found=f"{values:,} values")


def _check_metadata(metadata: Any, file: str | os.PathLike[str]) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ModelError("must be an object", file=file, key="__metadata__", found=type(metadata).__name__)
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise ModelError("too many entries", file=file, key="__metadata__", found=len(metadata))
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ModelError("must be a string", file=file, key=f"__metadata__.{key}", found=type(value).__name__)
    return metadata


def _check_entry(
    name: str, entry: Any, data_bytes: int, file: str | os.PathLike[str], notes: list[str]
) -> tuple[int, int, TensorInfo]:
    def refuse(what: str, found: Any = None, allowed: str | None = None, hint: str | None = None) -> ModelError:
        return ModelError(what, file=file, key=printable(name), found=found, allowed=allowed, hint=hint)

    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isascii() or not name.isprintable():
        raise refuse(
            "a tensor's name must be printable ASCII", f"{len(name):,} characters", f"1 to {MAX_NAME_CHARS} characters"
        )
    if not isinstance(entry, dict):
        raise refuse("a tensor's entry must be an object", type(entry).__name__)
    for field in _FIELDS:
        if field not in entry:
            raise refuse(f"'{field}' is missing")
    if len(entry) > len(_FIELDS):
        notes.append(f"{printable(name)}: unknown fields in the header were ignored")
    dtype, shape, offsets = (entry[field] for field in _FIELDS)
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        fp8 = isinstance(dtype, str) and dtype.startswith(("F8", "F4", "F6"))
        hint = "Checkpoints in 8-bit or 4-bit floating point are not supported." if fp8 else None
        raise refuse("unsupported dtype", dtype, _DTYPES, hint)
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= MAX_DIMENSION for n in shape):
        raise refuse("bad shape", shape, f"a list of integers from 0 to {MAX_DIMENSION:,}")
    if len(shape) > MAX_RANK:
        raise refuse("too many dimensions", len(shape), str(MAX_RANK))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise refuse("bad data_offsets", offsets, "two integers")
    begin, end = offsets
    if not 0 <= begin <= end <= data_bytes:
        raise refuse("its data lies outside the file", offsets, f"0 to {data_bytes:,}")
    nbytes = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if nbytes != end - begin:
        raise refuse("shape and data size disagree", f"{end - begin:,} bytes", f"{nbytes:,} for {dtype} {shape}")
    return begin, end, TensorInfo(name, dtype, tuple(shape), nbytes, os.fspath(file))
