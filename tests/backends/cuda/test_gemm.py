"""Prefill products against float64, as the emulator runs their PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.backends.cuda.kernels import linear_flags as flags
from edgellm.backends.cuda.kernels.gemv_plan import gemm_kernel
from edgellm.backends.cuda.layout import LinearLayout
from edgellm.backends.cuda.packing import PackedLinear, pack_linear, unpack_linear
from edgellm.backends.reference.ops import ACTIVATIONS
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import nmse, quantized

BOUND = 2e-7  # float16 of weights and activations: some 4e-8 each


def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as float16 and the power of two that each was divided by, as `rows.py` has them."""
    scales = np.ldexp(np.float32(1), np.frexp(np.abs(x).max(1))[1] - 15).astype(np.float32)
    return (x / scales[:, None]).astype(np.float16), scales


def gemm(packed: PackedLinear, x: np.ndarray, block_tokens: int, out: np.ndarray, **given: Any) -> np.ndarray:
    layout, tokens = packed.layout, len(x)
    half, scales = halves(x)
    arguments = {
        "tiles": packed.tiles,
        "scales": packed.scales,
        "zeros": packed.zeros,
        "bias": None,
        "x": half.view(np.uint16),
        "x_scales": scales,
        "out": out,
        "rows": layout.rows // 2 if layout.paired else layout.rows,
        "row_tiles": layout.row_tiles,
        "inputs": layout.inputs,
        "steps": layout.steps,
        "tokens": tokens,
        "x_stride": x.shape[1],
        "out_stride": out.shape[1],
        "group_log": layout.group.bit_length() - 1,
        "zero": packed.zero,
        "flags": given.pop("flags", 0) | flags.OWN_ZEROS * layout.own_zeros,
        "factor": packed.factor,
        "multiplier": 1.0,
        "softcap": 0.0,
    }
    capability = given.pop("capability", 80)
    name = gemm_kernel(layout, block_tokens, capability)
    launch(name, (-(-tokens // block_tokens), -(-layout.row_tiles // 8)), arguments | given, capability)
    return out


def empty(tokens: int, rows: int) -> np.ndarray:
    return np.full((tokens, rows), np.nan, np.float32)


def product(packed: PackedLinear, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ unpack_linear(packed).astype(np.float64).T


@pytest.mark.parametrize("block_tokens", [64, 128])
@pytest.mark.parametrize(
    ("bits", "group"), [(4, 16), (4, 32), (4, 64), (4, 128), (8, 16), (8, 32), (8, 64), (8, 128), (16, 128)]
)
def test_every_kernel_multiplies(bits: int, group: int, block_tokens: int) -> None:
    rng = np.random.default_rng(bits * group)
    dense = rng.standard_normal((136, 344)).astype(np.float32)
    packed = pack_linear([dense if bits == 16 else quantized(rng, 136, 344, bits, group, False)])
    x = rng.standard_normal((block_tokens + 3, 344)).astype(np.float32)
    x[1] *= 1e20
    x[2] *= 1e-20
    found, expected = gemm(packed, x, block_tokens, empty(len(x), 136)), product(packed, x)
    for rows in (slice(1, 2), slice(2, 3), slice(3, None)):
        assert nmse(found[rows], expected[rows]) < BOUND


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_a_pair_ends_in_its_activation(act: str) -> None:
    rng = np.random.default_rng(8)
    packed = pack_linear([quantized(rng, 20, 256, 4, 128, True) for _ in range(2)], paired=True)
    x = 4 * rng.standard_normal((9, 256)).astype(np.float32)
    bias = rng.standard_normal(48).astype(np.float32)
    found = gemm(packed, x, 64, empty(9, 20), flags=flags.ACTIVATIONS[act] | flags.BIAS, bias=bias)
    slots = bias.reshape(3, 2, 8).transpose(1, 0, 2).reshape(2, 24)[:, :20]
    gate, up = np.split(product(packed, x), 2, axis=1)
    expected = ACTIVATIONS[act]((gate + slots[0]).astype(np.float32)).astype(np.float64) * (up + slots[1])
    assert nmse(found, expected) < 2 * BOUND


def test_a_residual_takes_the_product() -> None:
    rng = np.random.default_rng(9)
    packed = pack_linear([quantized(rng, 24, 128, 8, 64, True)])
    x, before = rng.standard_normal((5, 128)).astype(np.float32), rng.standard_normal((5, 30)).astype(np.float32)
    found = gemm(packed, x, 64, before.copy(), flags=flags.RESIDUAL, multiplier=0.25)
    assert nmse(found[:, :24], before[:, :24] + 0.25 * product(packed, x)) < BOUND
    np.testing.assert_array_equal(found[:, 24:], before[:, 24:])


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 128), (8, 32), (8, 64), (16, 128)])
def test_turing_multiplies(bits: int, group: int) -> None:
    rng = np.random.default_rng(bits * group)
    dense = rng.standard_normal((40, 136)).astype(np.float32)
    packed = pack_linear([dense if bits == 16 else quantized(rng, 40, 136, bits, group, False)])
    x = rng.standard_normal((67, 136)).astype(np.float32)
    found = gemm(packed, x, 64, empty(67, 40), capability=75)
    assert nmse(found, product(packed, x)) < BOUND


def test_there_is_no_kernel_before_turing() -> None:
    assert gemm_kernel(LinearLayout(4, 16, 128), 64, 72) is None
