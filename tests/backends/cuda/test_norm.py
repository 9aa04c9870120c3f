"""RMSNorm kernels against the reference, as the emulator runs their PTX."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cuda.kernels.record import COUNT, RECORD_WORDS
from edgellm.backends.reference import ops
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import nmse


def record_of(count: int) -> np.ndarray:
    words = np.zeros(RECORD_WORDS, np.uint32)
    words[COUNT] = count
    return words


@pytest.mark.parametrize("width", [8, 257, 1000])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rows_in_place(width: int, offset: float) -> None:
    rng = np.random.default_rng(width)
    x, weight = rng.standard_normal((3, width)).astype(np.float32), rng.standard_normal(width).astype(np.float32)
    x[1] *= np.float32(1e-4)
    expected = ops.rms_norm(x, weight, 1e-5, offset)
    kept = x[2].copy()
    given = {"record": record_of(2), "width": width, "step": 0, "eps": 1e-5, "offset": offset}
    launch("rms_norm", (3,), {"x": x, "weight": weight, "out": x, **given})
    assert nmse(x[:2], expected[:2]) < 1e-12
    np.testing.assert_array_equal(x[2], kept)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e15])
def test_rows_to_float16_fit_whatever_their_size(size: float) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 300)).astype(np.float32)
    weight = (rng.standard_normal(300) * size).astype(np.float32)
    x[1] = 0
    out, scales = np.full((2, 300), 0x7E00, np.uint16), np.full(2, np.nan, np.float32)
    given = {"record": record_of(0), "width": 300, "step": 1, "eps": 1e-5, "offset": 0.0}
    launch("rms_norm_float16", (2,), {"x": x, "weight": weight, "out": out, "scales": scales, **given})
    found = out.view(np.float16).astype(np.float64) * scales[:, None]
    assert nmse(found[0], ops.rms_norm(x, weight, 1e-5, 0.0)[0]) < 1e-7
    assert not found[1].any()
    assert np.abs(out[0].view(np.float16)).max() >= 2**14
    assert np.frexp(scales)[0].tolist() == [0.5, 0.5]


def test_not_a_number_stays_in_float16() -> None:
    x, weight = np.ones((1, 64), np.float32), np.ones(64, np.float32)
    x[0, 5] = np.nan
    out, scales = np.zeros((1, 64), np.uint16), np.zeros(1, np.float32)
    given = {"record": record_of(1), "width": 64, "step": 0, "eps": 1e-5, "offset": 0.0}
    launch("rms_norm_float16", (1,), {"x": x, "weight": weight, "out": out, "scales": scales, **given})
    assert np.isnan(out.view(np.float16)).all()


@pytest.mark.parametrize("head_dim", [6, 48, 256])
def test_heads(head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    heads, stride = 5, 5 * head_dim + 3
    x, weight = rng.standard_normal((2, stride)).astype(np.float32), rng.standard_normal(head_dim).astype(np.float32)
    out = np.full_like(x, np.nan)
    given = {"record": record_of(0), "stride": stride, "heads": heads, "head_dim": head_dim, "step": 1}
    launch("rms_norm_heads", (2, 2), {"x": x, "weight": weight, "out": out, "eps": 1e-6, "offset": 1.0, **given})
    whole = x[:, : heads * head_dim]
    assert nmse(out[:, : heads * head_dim], ops.rms_norm(whole, weight, 1e-6, 1.0, head_dim)) < 1e-12
    assert np.isnan(out[:, heads * head_dim :]).all()
