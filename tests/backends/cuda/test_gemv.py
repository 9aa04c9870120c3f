"""Decode products against float64, as the emulator runs their PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.backends.cuda.kernels import linear_flags as flags
from edgellm.backends.cuda.kernels.gemv_plan import GemvPlan, gemv_kernel, plan_gemv
from edgellm.backends.cuda.layout import GROUPS, LinearLayout
from edgellm.backends.cuda.packing import PackedLinear, pack_linear, unpack_linear
from edgellm.backends.reference.ops import ACTIVATIONS
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import nmse, quantized

BOUND = 1e-10  # 16 bits of mantissa in x leave 1e-11


def random_weight(rng: np.random.Generator, rows: int, inputs: int, bits: int, group: int, symmetric: bool = False):
    if bits == 16:
        return rng.standard_normal((rows, inputs)).astype(np.float32)
    return quantized(rng, rows, inputs, bits, group, symmetric)


def gemv(packed: PackedLinear, x: np.ndarray, plan: GemvPlan, out: np.ndarray, **given: Any) -> np.ndarray:
    """W x by the kernel for the weight and batch; `out` is NaN where it is not added to."""
    layout, batch = packed.layout, len(x)
    aligned = layout.inputs % 4 == 0 and given.get("order") is None
    bits = given.pop("flags", 0) | flags.OWN_ZEROS * layout.own_zeros | flags.VECTORS * aligned
    arguments = {
        "tiles": packed.tiles,
        "scales": packed.scales,
        "zeros": packed.zeros,
        "bias": None,
        "x": x,
        "norm": None,
        "order": None,
        "out": out,
        "rows": layout.rows // 2 if layout.paired else layout.rows,
        "row_tiles": layout.row_tiles,
        "inputs": layout.inputs,
        "steps": layout.steps,
        "batch": batch,
        "x_stride": x.shape[1],
        "out_stride": out.shape[1],
        "split_log": plan.split_log,
        "chunk": plan.chunk,
        "zero": packed.zero,
        "flags": bits,
        "factor": packed.factor,
        "multiplier": 1.0,
        "eps": 1e-5,
        "offset": 0.0,
        "softcap": 0.0,
    }
    capability = given.pop("capability", 80)
    name = gemv_kernel(layout, batch, capability)
    launch(name, (plan.blocks,), arguments | given, capability)
    return out


def empty(tokens: int, rows: int) -> np.ndarray:
    return np.full((tokens, rows), np.nan, np.float32)


def product(packed: PackedLinear, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ unpack_linear(packed).astype(np.float64).T


@pytest.mark.parametrize("tokens", [3, 7])
@pytest.mark.parametrize(("bits", "group"), [*((bits, group) for bits in (4, 8) for group in GROUPS), (16, 128)])
def test_every_kernel_multiplies(bits: int, group: int, tokens: int) -> None:
    rng = np.random.default_rng(bits * group + tokens)
    packed = pack_linear([random_weight(rng, 41, 334, bits, group)])
    x = rng.standard_normal((tokens, 334)).astype(np.float32)
    found = gemv(packed, x, GemvPlan(2, 3, 8), empty(tokens, 41))
    assert nmse(found, product(packed, x)) < BOUND


@pytest.mark.parametrize("plan", [GemvPlan(1, 0, 7), GemvPlan(3, 3, 8), GemvPlan(2, 1, 2), GemvPlan(1, 2, 4)])
@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_any_split_gives_the_product(plan: GemvPlan, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    packed = pack_linear([random_weight(rng, 112, 896, 4, 64, True)])
    x = rng.standard_normal((tokens, 896)).astype(np.float32)
    found = gemv(packed, x, plan, empty(tokens, 112))
    assert nmse(found, product(packed, x)) < BOUND
    np.testing.assert_array_equal(found, gemv(packed, x, plan, empty(tokens, 112)))


def test_numbers_of_any_size_pass() -> None:
    rng = np.random.default_rng(5)
    packed = pack_linear([random_weight(rng, 16, 256, 4, 128, True)])
    x = rng.standard_normal((2, 256)).astype(np.float32) * np.array([[1e30], [1e-25]], np.float32)
    x[0, 7] *= 100  # an outlier
    found, expected = gemv(packed, x, GemvPlan(1, 1, 2), empty(2, 16)), product(packed, x)
    assert nmse(found[0], expected[0]) < BOUND
    assert nmse(found[1], expected[1]) < BOUND


@pytest.mark.parametrize("inputs", [320, 2050])
def test_a_norm_before_and_a_residual_behind(inputs: int) -> None:
    rng = np.random.default_rng(6)
    packed = pack_linear([random_weight(rng, 24, inputs, 4, 32, False)])
    x = rng.standard_normal((4, inputs)).astype(np.float32)
    norm, bias = rng.standard_normal(inputs).astype(np.float32), rng.standard_normal(32).astype(np.float32)
    before = rng.standard_normal((4, 24)).astype(np.float32)
    found = gemv(
        packed,
        x,
        GemvPlan(1, 3, 16) if inputs > 320 else GemvPlan(2, 1, 4),
        before.copy(),
        flags=flags.NORM | flags.BIAS | flags.RESIDUAL,
        norm=norm,
        bias=bias,
        offset=1.0,
        multiplier=0.5,
    )
    wide = x.astype(np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + 1e-5) * (1.0 + norm)
    expected = before + 0.5 * (product(packed, normed) + bias[:24])
    assert nmse(found, expected) < BOUND


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_a_pair_ends_in_its_activation(act: str) -> None:
    rng = np.random.default_rng(8)
    pair = [random_weight(rng, 20, 256, 4, 128, True) for _ in range(2)]
    packed = pack_linear(pair, paired=True)
    x = 4 * rng.standard_normal((3, 256)).astype(np.float32)
    bias = rng.standard_normal(48).astype(np.float32)
    found = gemv(packed, x, GemvPlan(2, 1, 2), empty(3, 20), flags=flags.ACTIVATIONS[act] | flags.BIAS, bias=bias)
    slots = bias.reshape(3, 2, 8).transpose(1, 0, 2).reshape(2, 24)[:, :20]
    gate, up = np.split(product(packed, x), 2, axis=1)
    expected = ACTIVATIONS[act]((gate + slots[0]).astype(np.float32)).astype(np.float64) * (up + slots[1])
    assert nmse(found, expected) < BOUND


def test_inputs_are_gathered_by_the_permutation() -> None:
    rng = np.random.default_rng(9)
    packed = pack_linear([random_weight(rng, 16, 200, 8, 64)])
    x = rng.standard_normal((2, 200)).astype(np.float32)
    order = rng.permutation(200).astype(np.uint32)
    found = gemv(packed, x, GemvPlan(1, 0, 2), empty(2, 16), flags=flags.ORDER, order=order)
    assert nmse(found, product(packed, x[:, order])) < BOUND


def test_logits_are_multiplied_and_capped() -> None:
    rng = np.random.default_rng(10)
    packed = pack_linear([random_weight(rng, 50, 128, 16, 128)])
    x = rng.standard_normal((2, 128)).astype(np.float32)
    found = gemv(packed, x, GemvPlan(1, 0, 1), empty(2, 50), flags=flags.SOFTCAP, multiplier=0.7, softcap=5.0)
    assert nmse(found, 5 * np.tanh(0.7 * product(packed, x) / 5)) < BOUND


@pytest.mark.parametrize(
    ("rows", "inputs", "batch", "blocks", "split_log"),
    [
        (4096, 4096, 1, 128, 3),
        (22016, 4096, 1, 132, 2),
        (128256, 4096, 1, 132, 0),
        (4096, 11008, 8, 128, 3),
        (64, 64, 1, 1, 0),
    ],
)
def test_work_is_shared_out(rows: int, inputs: int, batch: int, blocks: int, split_log: int) -> None:
    layout = LinearLayout(4, rows, inputs)
    plan = plan_gemv(layout, batch, 132)
    assert plan.chunk * batch <= 64
    assert plan.chunk % (1 << plan.split_log) == 0
    assert (plan.blocks, plan.split_log) == (blocks, split_log)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("bits", "group"), [*((bits, group) for bits in (4, 8) for group in GROUPS), (16, 128)])
def test_every_kernel_of_older_devices_multiplies(bits: int, group: int, tokens: int) -> None:
    rng = np.random.default_rng(bits * group + tokens)
    packed = pack_linear([random_weight(rng, 41, 334, bits, group, tokens == 1)])
    x = rng.standard_normal((tokens, 334)).astype(np.float32)
    x[0] *= 1e15
    norm = rng.uniform(0.5, 2, 334).astype(np.float32)
    plan = GemvPlan(2, 4, 16)  # of sixteen warps, where a block has eight
    found = gemv(packed, x, plan, empty(tokens, 41), capability=75, flags=flags.NORM, norm=norm)
    wide = x.astype(np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + 1e-5) * norm
    assert nmse(found, product(packed, normed)) < (1e-12 if bits == 16 else 1e-9)
