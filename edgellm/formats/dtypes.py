"""The element types of a safetensors file and what NumPy calls them.

NumPy has no bfloat16: its bit patterns travel as uint16 (the upper half of a float32), and an array of uint16 means
bfloat16 wherever this package reads or writes tensors.
"""

from __future__ import annotations

import numpy as np

# name in the file -> how its bytes appear in NumPy, little-endian as stored
NUMPY_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}

FLOAT_DTYPES = ("F32", "F16", "BF16")

# what an array is written as; uint16 is bfloat16, as `Checkpoint.read` returns it
_STORED_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items() if name != "U16"}


def stored_name(dtype: np.dtype) -> str | None:
    """The safetensors name for arrays of `dtype` (uint16 -> "BF16"), None where there is none."""
    return _STORED_NAMES.get(np.dtype(dtype).newbyteorder("<"))


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """float32 of the same shape, exact; `bits` uint16."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of the same shape, rounded to nearest even; a NaN stays a NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # adding to a NaN could carry it into infinity or zero
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
