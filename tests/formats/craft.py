"""Safetensors files made by hand, right and wrong, without the code under test."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "U16": 2, "F64": 8}
NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64", "int32": "I32", "int8": "I8"}


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header text and this data; `length` lies about the header's."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: str, shape: list[Any], begin: Any, end: Any, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def with_header(table: Any, data: bytes = b"") -> bytes:
    return raw(json.dumps(table).encode(), data)


def tensor_file(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """A right file of these arrays (uint16 is BF16, uint8 is U8)."""
    table: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in tensors.items():
        dtype = NAMES.get(array.dtype.name, "U8")
        table[name] = entry(dtype, list(array.shape), len(data), len(data) + array.nbytes)
        data += array.tobytes()
    return with_header(table, data)


def write(path: Path, content: bytes | dict[str, Any]) -> Path:
    """`content` into a file; a dict as JSON."""
    path.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
    return path


def write_model(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Path:
    """A folder of one safetensors file and a config.json."""
    folder.mkdir(exist_ok=True)
    write(folder / "model.safetensors", tensor_file(tensors))
    write(folder / "config.json", {} if config is None else config)
    return folder
