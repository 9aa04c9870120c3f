"""The one form in which quantized weights are handed on, whatever packing they came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.errors import UsageError
from edgellm.formats.limits import MAX_GROUP_SIZE


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A linear layer's weight W [out, in] in groups of `group_size` inputs that share a scale and a zero point:

        W[o, i] = scales[o, g(i)] * (codes[o, i] - zeros[o, g(i)]),    g(i) = i // group_size

    Where `permutation` p is given (GPTQ's act-order), column j belongs to input p[j] and to group j // group_size:
    W[o, p[j]] = scales[o, j // group_size] * (codes[o, j] - zeros[o, j // group_size]). Groups are full but the last.

    Attributes:
        codes: uint8 [out, in], 0 to 2**bits - 1.
        scales: float16, or float32 where they were stored as BF16 or F32, [out, groups].
        zeros: int16 [out, groups], 0 to 2**bits; symmetric weights have 2**(bits - 1) everywhere.
        bits: 2 to 8.
        group_size: in inputs; in_features where a whole row is one group.
        permutation: int32 [in], or None for the identity.

    Raises:
        UsageError: the arrays do not fit each other.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    bits: int
    group_size: int
    permutation: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError("out of range", key="bits", found=self.bits, allowed="2 to 8")
        if not 1 <= self.group_size <= MAX_GROUP_SIZE:
            raise UsageError("out of range", key="group_size", found=self.group_size, allowed=f"1 to {MAX_GROUP_SIZE}")
        rows, inputs = self.codes.shape
        groups = (rows, group_count(inputs, self.group_size))
        expected = {
            "codes": (("uint8",), (rows, inputs)),
            "scales": (("float16", "float32"), groups),
            "zeros": (("int16",), groups),
            "permutation": (("int32",), (inputs,)),
        }
        for name, (dtypes, shape) in expected.items():
            array = getattr(self, name)
            if array is not None and (array.dtype.name not in dtypes or array.shape != shape):
                found, allowed = f"{array.dtype} {array.shape}", f"{' or '.join(dtypes)} {shape}"
                raise UsageError("does not fit the codes", key=name, found=found, allowed=allowed)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays as they stand here, a byte a code."""
        arrays = (self.codes, self.scales, self.zeros, self.permutation)
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle code."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def dequantize(self) -> np.ndarray:
        """W: float32 [out, in] in the original order of inputs. One rounding, in the product."""
        rows, inputs = self.shape
        groups = self.scales.shape[1]
        padded = np.zeros((rows, groups, min(self.group_size, inputs)), np.float32)  # the last group made full
        flat = padded.reshape(rows, -1)
        flat[:, :inputs] = self.codes
        padded -= self.zeros.astype(np.float32)[..., None]
        padded *= self.scales.astype(np.float32)[..., None]
        weight = np.ascontiguousarray(flat[:, :inputs])
        if self.permutation is None:
            return weight
        ordered = np.empty_like(weight)
        ordered[:, self.permutation] = weight
        return ordered


def group_count(in_features: int, group_size: int) -> int:
    """How many groups a row has; the last may be shorter."""
    return -(-in_features // group_size)
