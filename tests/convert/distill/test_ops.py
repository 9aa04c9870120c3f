"""Each op's backward against central finite differences, its forward against the reference backend's."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.reference import ops as reference
from edgellm.convert.distill.ops import act_mul, add, attention, embed, linear, logits, rms_norm, rope, softcap
from edgellm.model.rope import Rope
from tests.convert.distill.differences import check

ROWS, WIDTH = 6, 8


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(11)


def test_embed(random):
    table, ids, g = random.normal(size=(5, WIDTH)), np.array([3, 0, 3, 4, 0, 3]), random.normal(size=(ROWS, WIDTH))
    np.testing.assert_array_equal(embed.forward(table, ids, 1.0), table[ids])
    into = np.ones_like(table)
    embed.backward(g, ids, 1.5, into)
    check(lambda: float((embed.forward(table, ids, 1.5) * g).sum()), {"table": table}, {"table": into - 1})


@pytest.mark.parametrize(("group", "offset"), [(None, 0.0), (None, 1.0), (4, 0.0), (4, 1.0)])
def test_rms_norm(random, group, offset):
    x, weight, g = (random.normal(size=shape) for shape in ((ROWS, WIDTH), (group or WIDTH,), (ROWS, WIDTH)))
    out, saved = rms_norm.forward(x, weight, 1e-2, offset, group)
    np.testing.assert_allclose(out, reference.rms_norm(x, weight, 1e-2, offset, group), rtol=1e-6)
    into = np.zeros_like(weight)
    grad = rms_norm.backward(g, weight, offset, saved, into)

    def loss() -> float:
        return float((rms_norm.forward(x, weight, 1e-2, offset, group)[0] * g).sum())

    check(loss, {"x": x, "weight": weight}, {"x": grad, "weight": into})


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(random, residual, biased):
    x, weight, bias = random.normal(size=(ROWS, WIDTH)), random.normal(size=(3, WIDTH)), random.normal(size=3)
    base, g = random.normal(size=(ROWS, 3)), random.normal(size=(ROWS, 3))
    multiplier = 0.5 if residual else 1.0

    def out() -> np.ndarray:
        return linear.forward(x, weight, bias if biased else None, base if residual else None, multiplier)

    plain = reference.linear(x, weight, bias if biased else None)
    np.testing.assert_allclose(out(), base + 0.5 * plain if residual else plain)
    into, bias_into = np.zeros_like(weight), np.zeros_like(bias)
    grad = linear.backward(g * multiplier, x, weight, into, bias_into if biased else None)
    arrays, grads = {"x": x, "weight": weight}, {"x": grad, "weight": into}
    if biased:
        arrays["bias"], grads["bias"] = bias, bias_into
    check(lambda: float((out() * g).sum()), arrays, grads)


@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_rope(random, rotary_dim):
    x, g = random.normal(size=(2, 3, 2, 8)), random.normal(size=(2, 3, 2, 8))
    cos, sin = Rope(100.0, rotary_dim).cos_sin(np.arange(3))
    expected = np.stack([reference.rope(one, cos, sin) for one in x])
    np.testing.assert_allclose(rope.forward(x, cos, sin), expected, rtol=1e-6)
    check(lambda: float((rope.forward(x, cos, sin) * g).sum()), {"x": x}, {"x": rope.backward(g, cos, sin)})


@pytest.mark.parametrize("act", list(act_mul.CURVES))
def test_act_mul(random, act):
    gate, up, g = (2 * random.normal(size=(ROWS, WIDTH)) for _ in range(3))
    np.testing.assert_allclose(act_mul.forward(gate, up, act), reference.act_mul(gate, up, act), rtol=2e-6, atol=1e-6)
    grads = dict(zip(("gate", "up"), act_mul.backward(g, gate, up, act), strict=True))
    check(lambda: float((act_mul.forward(gate, up, act) * g).sum()), {"gate": gate, "up": up}, grads)


def test_act_mul_far_from_zero():
    gate, up = np.array([[-200.0, 200.0]], np.float32), np.ones((1, 2), np.float32)
    slope, value = act_mul.backward(up, gate, up, "silu")
    np.testing.assert_allclose(slope, [[0, 1]], atol=1e-30)
    np.testing.assert_allclose(value, [[0, 200]], atol=1e-30)


def test_add(random):
    x, y, g = (random.normal(size=(ROWS, WIDTH)) for _ in range(3))
    grads = dict(zip(("x", "y"), add.backward(g, 0.25), strict=True))
    check(lambda: float((add.forward(x, y, 0.25) * g).sum()), {"x": x, "y": y}, grads)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_softcap(random, cap):
    x, g = 3 * random.normal(size=(ROWS, WIDTH)), random.normal(size=(ROWS, WIDTH))
    y = softcap.forward(x, cap)
    np.testing.assert_allclose(y, reference.softcap(x, cap), rtol=1e-6)
    check(lambda: float((softcap.forward(x, cap) * g).sum()), {"x": x}, {"x": softcap.backward(g, y, cap)})


@pytest.mark.parametrize(("window", "cap"), [(None, None), (3, None), (None, 2.0), (2, 2.0), (1, None)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention(random, window, cap, kv_heads, monkeypatch):
    monkeypatch.setattr(attention, "SPAN", 2)  # three spans, the last of one token
    batch, tokens, heads, head_dim, scale = 2, 5, 4, 6, 0.7
    q = random.normal(size=(batch, tokens, heads, head_dim))
    k, v = (random.normal(size=(batch, tokens, kv_heads, head_dim)) for _ in range(2))
    g = random.normal(size=(batch * tokens, heads * head_dim))
    out, saved = attention.forward(q, k, v, scale, window, cap)
    np.testing.assert_allclose(out, _attend_plainly(q, k, v, scale, window, cap), rtol=1e-9)
    grads = dict(zip("qkv", attention.backward(g, saved, scale, cap), strict=True))
    check(lambda: float((attention.forward(q, k, v, scale, window, cap)[0] * g).sum()), {"q": q, "k": k, "v": v}, grads)


def _attend_plainly(q, k, v, scale, window, cap):
    """The op's formula, a token and head at a time."""
    batch, tokens, heads, head_dim = q.shape
    out = np.zeros((batch, tokens, heads, head_dim))
    for b, t, h in np.ndindex(batch, tokens, heads):
        kv = h * k.shape[2] // heads
        oldest = 0 if window is None else max(t - window + 1, 0)
        scores = k[b, oldest : t + 1, kv] @ q[b, t, h] * scale
        if cap is not None:
            scores = cap * np.tanh(scores / cap)
        weights = np.exp(scores)
        out[b, t, h] = weights / weights.sum() @ v[b, oldest : t + 1, kv]
    return out.reshape(batch * tokens, -1)


@pytest.mark.parametrize(("multiplier", "cap"), [(1.0, None), (0.5, None), (2.0, 1.5)])
def test_logits(random, multiplier, cap):
    h, weight, bias = random.normal(size=(ROWS, WIDTH)), random.normal(size=(5, WIDTH)), random.normal(size=5)
    g = random.normal(size=(ROWS, 5))
    found = logits.forward(h, weight, bias, multiplier, cap)
    np.testing.assert_allclose(found, reference.softcap((h @ weight.T + bias) * multiplier, cap), rtol=1e-6)
    into, bias_into = np.zeros_like(weight), np.zeros_like(bias)
    grad = logits.backward(g, h, found, weight, multiplier, cap, into, bias_into)

    def loss() -> float:
        return float((logits.forward(h, weight, bias, multiplier, cap) * g).sum())

    check(loss, {"h": h, "weight": weight, "bias": bias}, {"h": grad, "weight": into, "bias": bias_into})
