"""Rotary embedding against the reference: whole and partial rotation, odd halves, any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu.rope import op_rope
from edgellm.backends.reference import ops
from edgellm.model.rope import Rope
from tests.backends.cpu.kernels import THREADS, cases, nmse, run_parts


@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "rotary_dim"),
    cases(
        (2, 3, 8, 8),
        (1, 2, 40, 34),
        (1, 2, 40, 6),
        (1, 1, 16, 2),
        (5, 4, 64, 64),
        (3, 2, 80, 80),
        (4, 2, 128, 32),
        (1, 32, 96, 96),
    ),
)
def test_equals_the_reference_for_any_number_of_threads(
    tokens: int, heads: int, head_dim: int, rotary_dim: int
) -> None:
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal((tokens, heads, head_dim), np.float32)
    cos, sin = Rope(10000.0, rotary_dim).cos_sin(np.arange(tokens) + 100_003)
    expected = ops.rope(x, cos, sin)
    stride, table = heads * head_dim + 2, 9
    padded = [np.concatenate([np.zeros(table, np.float32), part.ravel()]) for part in (cos, sin)]
    found = []
    for nth in THREADS:
        act = np.full(3 + tokens * stride, 5, np.float32)
        rows = act[3:].reshape(tokens, stride)
        rows[:, : heads * head_dim] = x.reshape(tokens, -1)
        sizes = (rotary_dim // 2, tokens, heads, head_dim)
        run_parts(op_rope, act, 3, stride, *padded, table, *sizes, nth=nth)
        assert (rows[:, heads * head_dim :] == 5).all()
        found.append(rows[:, : heads * head_dim].reshape(x.shape).copy())
    assert nmse(found[0], expected) < 1e-12
    assert (found[0][..., rotary_dim:] == x[..., rotary_dim:]).all()
    assert all((other == found[0]).all() for other in found)
