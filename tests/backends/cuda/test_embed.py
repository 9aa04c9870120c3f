"""Rows of a packed table by token id."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cuda.kernels import linear_flags as flags
from edgellm.backends.cuda.packing import pack_linear, unpack_linear
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import quantized


@pytest.mark.parametrize(("inputs", "symmetric"), [(101, False), (256, True)])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_token_is_its_row(bits: int, inputs: int, symmetric: bool) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.standard_normal((50, inputs)).astype(np.float32)
    packed = pack_linear([weight if bits == 16 else quantized(rng, 50, inputs, bits, 32, symmetric)])
    layout = packed.layout
    records = np.full((6, 16), 7777, np.uint32)
    records[:, 0] = [3, 0, 49, 17, 9, 4_000_000_000]  # the last of a record that belongs to nobody
    out = np.full((6, inputs), np.nan, np.float32)
    launch(
        f"embed_w{bits}",
        (-(-layout.padded_inputs // 4 // 256), 6),
        {
            "tiles": packed.tiles,
            "scales": packed.scales,
            "zeros": packed.zeros,
            "token_ids": records,
            "out": out,
            "rows": 50,
            "inputs": inputs,
            "steps": layout.steps,
            "group_log": layout.group.bit_length() - 1,
            "id_stride": 16,
            "out_stride": inputs,
            "zero": packed.zero,
            "flags": flags.OWN_ZEROS * layout.own_zeros,
            "factor": 0.5 * packed.factor,
        },
        capability=75,
    )
    np.testing.assert_array_equal(out[:5], 0.5 * unpack_linear(packed)[records[:5, 0]])
    assert np.isfinite(out).all()
