"""Launches of matrix products: which kernel, how many blocks, how the work is split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.calls import Call
from edgellm.backends.cuda.device import Properties
from edgellm.backends.cuda.kernels import linear_flags as flags
from edgellm.backends.cuda.kernels.gemv_plan import gemm_kernel, gemv_kernel, gemv_tokens, plan_gemv
from edgellm.backends.cuda.space import HalfView, View
from edgellm.backends.cuda.upload import Matrix

#: Below it the prefill kernels have blocks of 64 tokens alone.
_AMPERE = 80
#: Row tiles of a block of the prefill kernels.
_GEMM_TILES = 8
#: Inputs that a block of the embedding's kernel has.
_EMBEDDED = 1024
_FLOAT_BYTES = 4
#: Rows up to which products go through the decode kernels.
GEMV_TOKENS = 8


@dataclass(frozen=True)
class Around:
    """What a product has around it, see `kernels/linear_flags.py`.

    Attributes:
        norm: address of an RMSNorm's weight, 0 without; with `eps` and `offset`.
        adds: the output is added to.
        multiplier: of the product.
        softcap: of the output, 0 without.
        act: of a paired matrix, by its name in config.json.
    """

    norm: int = 0
    eps: float = 0.0
    offset: float = 0.0
    adds: bool = False
    multiplier: float = 1.0
    softcap: float = 0.0
    act: str | None = None


def gemvs(matrix: Matrix, x: View, out: View, rows: int, around: Around, chip: Properties, op: int) -> list[Call]:
    """y = W x for any number of rows, as many a launch as the device's kernels take."""
    most, calls = gemv_tokens(chip.capability), []
    for first in range(0, rows, most):
        part = (view_from(x, first), view_from(out, first))
        calls.append(gemv(matrix, *part, min(most, rows - first), around, chip, op))
    return calls


def view_from(view: View, first: int) -> View:
    """The rows from `first` on."""
    return View(view.address + _FLOAT_BYTES * view.stride * first, view.stride, view.width)


def gemv(matrix: Matrix, x: View, out: View, rows: int, around: Around, chip: Properties, op: int) -> Call:
    """y = W x for up to `gemv_tokens` rows."""
    layout = matrix.layout
    plan = plan_gemv(layout, rows, chip.multiprocessors, chip.capability)
    arguments = {
        **_weights(matrix, around),
        "x": x.address,
        "norm": around.norm,
        "order": matrix.order,
        "out": out.address,
        "batch": rows,
        "x_stride": x.stride,
        "out_stride": out.stride,
        "split_log": plan.split_log,
        "chunk": plan.chunk,
        "flags": _flags(matrix, around) | _input_flags(matrix, x, around),
        "eps": around.eps,
        "offset": around.offset,
    }
    return Call(gemv_kernel(layout, rows, chip.capability), (plan.blocks,), arguments, op)


def takes_half(matrix: Matrix, chip: Properties) -> bool:
    """Whether `gemm` serves the matrix on the device: it reads rows 16 bytes at a time."""
    return matrix.layout.inputs % 8 == 0 and gemm_kernel(matrix.layout, 64, chip.capability) is not None


def gemm(matrix: Matrix, x: HalfView, out: View, rows: int, around: Around, chip: Properties, op: int) -> Call:
    """Y = X W^T for many rows, of float16 activations; `around` without a norm."""
    layout = matrix.layout
    feature_blocks = -(-layout.row_tiles // _GEMM_TILES)
    tokens = 128 if rows > 64 and feature_blocks * -(-rows // 128) >= chip.multiprocessors else 64
    if chip.capability < _AMPERE:
        tokens = 64
    arguments = {
        **_weights(matrix, around),
        "x": x.address,
        "x_scales": x.scales,
        "out": out.address,
        "tokens": rows,
        "x_stride": x.stride,
        "out_stride": out.stride,
        "group_log": layout.group.bit_length() - 1,
        "flags": _flags(matrix, around),
    }
    name = gemm_kernel(layout, tokens, chip.capability) or ""
    return Call(name, (-(-rows // tokens), feature_blocks), arguments, op)


def embed(matrix: Matrix, ids: Mapping[str, int], out: View, rows: int, multiplier: float, op: int) -> Call:
    """Rows of a packed table; `ids`: where the token ids stand, and how far apart."""
    layout = matrix.layout
    arguments = {
        **ids,
        "tiles": matrix.tiles,
        "scales": matrix.scales,
        "zeros": matrix.zeros,
        "out": out.address,
        "rows": layout.rows,
        "inputs": layout.inputs,
        "steps": layout.steps,
        "group_log": layout.group.bit_length() - 1,
        "out_stride": out.stride,
        "zero": matrix.zero,
        "flags": flags.OWN_ZEROS if layout.own_zeros else 0,
        "factor": matrix.factor * multiplier,
    }
    return Call(f"embed_w{layout.bits}", (-(-layout.padded_inputs // _EMBEDDED), rows), arguments, op)


def _flags(matrix: Matrix, around: Around) -> int:
    bits = flags.OWN_ZEROS if matrix.layout.own_zeros else 0
    bits |= flags.BIAS if matrix.bias else 0
    bits |= flags.RESIDUAL if around.adds else 0
    bits |= flags.SOFTCAP if around.softcap else 0
    return bits | (flags.ACTIVATIONS[around.act] if around.act else 0)


def _input_flags(matrix: Matrix, x: View, around: Around) -> int:
    bits = flags.NORM if around.norm else 0
    bits |= flags.ORDER if matrix.order else 0
    aligned = not (matrix.layout.inputs | x.stride) % 4 and not x.address % 16
    return bits | (flags.VECTORS if aligned and not matrix.order else 0)


def _weights(matrix: Matrix, around: Around) -> dict[str, Any]:
    layout = matrix.layout
    return {
        "tiles": matrix.tiles,
        "scales": matrix.scales,
        "zeros": matrix.zeros,
        "bias": matrix.bias,
        "rows": layout.rows // 2 if layout.paired else layout.rows,
        "row_tiles": layout.row_tiles,
        "inputs": layout.inputs,
        "steps": layout.steps,
        "zero": matrix.zero,
        "factor": matrix.factor,
        "multiplier": around.multiplier,
        "softcap": around.softcap,
    }
