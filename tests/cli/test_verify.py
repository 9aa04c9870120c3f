from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgellm.cli import tracing
from edgellm.cli.precision import Cost, HalfWeights, exact
from edgellm.cli.tracing import Event, compare, compare_logits, error_of
from tests.shared_data import SHARED_DATA, needs_shared_data


def test_the_reference_agrees_with_itself(cli, tiny):
    done = cli("verify", tiny, "--tokens", "12", "--backend", "reference")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["equal"] * 3
    assert "its fused program is compared with its plain one" in done.err


def test_the_default_backend_agrees_with_the_reference_and_says_what_its_precision_costs(cli, tiny):
    done = cli("verify", tiny, "--tokens", "12")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["equal"] * 3 + ["costs"] * 2
    assert "of 12, KL divergence" in done.out


@needs_shared_data
def test_kernels_for_quantized_weights_stay_within_16_bits(cli):
    folder = SHARED_DATA / "quantized" / "autogptq-sym-g32-actorder"
    found = json.loads(cli("verify", folder, "--tokens", "24", "--backend", "cpu", "--json").out)
    assert found["ok"]
    first, *_ = found["comparisons"]
    assert first["bound"] == pytest.approx(0.005 * np.sqrt(3))  # of three layers
    assert 1e-4 < first["error"] < 5e-3
    prefill, decode = found["precision"]
    assert prefill["logit_error"] < 0.1  # 8-bit activations
    assert decode["logit_error"] < 0.05  # 16-bit activations, an 8-bit lm_head


def test_json(cli, tiny):
    found = json.loads(cli("verify", tiny, "--tokens", "12", "--json").out)
    assert found["ok"]
    assert len(found["comparisons"]) == 3
    assert all(entry["error"] <= entry["bound"] == 1e-4 for entry in found["comparisons"])
    assert [cost["name"] for cost in found["precision"]] == ["prefill", "token by token"]
    for cost in found["precision"]:
        assert cost["tokens"] == 12
        assert 1e-4 < cost["logit_error"] < 0.1
        assert 0.5 < cost["same_top1"] <= 1
        assert 0 < cost["kl_nats"] < 0.1
    assert json.loads(cli("verify", tiny, "--backend", "reference", "--json").out)["precision"] == []


def test_a_difference_is_found_where_it_begins(cli, tiny, monkeypatch):
    from edgellm.backends.reference import ops

    real, calls = ops.rms_norm, []

    def wrong(*args, **kwargs):
        calls.append(1)
        out = real(*args, **kwargs)
        if len(calls) == 5 + 3:  # the plain run has five norms; the third of the fused one is the second layer's first
            out[2, 7] += 1
        return out

    monkeypatch.setattr(ops, "rms_norm", wrong)
    arguments = ("verify", tiny, "--tokens", "12", "--backend", "reference")
    done = cli(*arguments)
    assert done.code == 1
    first = next(line for line in done.out.splitlines() if "first beyond" in line)
    assert "layer 1 rms_norm input_layernorm -> h" in first
    assert "token 2, element 7" in first
    assert json.loads(cli(*arguments, "--json").out)["ok"]  # one call alone was wrong


def test_a_difference_of_the_cpu_backend_is_found(cli, tiny, monkeypatch):
    from edgellm.backends.cpu.backend import CpuBackend

    class Off:
        def __init__(self, weights):
            self.weights = weights

        def __getattr__(self, name):
            return getattr(self.weights, name)

        def vector(self, name):
            return self.weights.vector(name) + np.float32(0.1) * (name == "layers.1.input_layernorm")

    real = CpuBackend.load
    monkeypatch.setattr(CpuBackend, "load", lambda self, program, w, **chosen: real(self, program, Off(w), **chosen))
    done = cli("verify", tiny, "--tokens", "12", "--backend", "cpu")
    assert done.code == 1
    assert "layer 1 rms_norm input_layernorm -> h" in done.out


def test_a_model_that_the_reference_cannot_hold(cli, tiny, monkeypatch):
    import edgellm

    real = edgellm.estimate
    monkeypatch.setattr(edgellm, "estimate", lambda *args, **options: replace(real(*args, **options), fits=False))
    assert cli("verify", tiny, "--tokens", "8").code == 75
    assert cli("verify", tiny, "--tokens", "8", "--force").code == 0


def test_more_tokens_than_the_context(cli, tiny):
    done = cli("verify", tiny, "--tokens", "32768")
    assert done.code == 2


def test_errors_are_measured_against_the_size_of_the_values():
    a = np.array([[3.0, -4.0]], np.float32)
    assert error_of(a, a) == 0
    assert error_of(a, a + np.float32(0.5)) == pytest.approx(0.5 / (np.sqrt(12.5) + 3))
    assert error_of(np.array([[1e4, 1.0], [1.0, 1.0]]), np.array([[1e4, 1.0], [1.0, 1.1]])) == pytest.approx(0.05)
    assert error_of(a, a * np.nan) == float("inf")
    assert error_of(a, a[:, :1]) == float("inf")
    assert error_of(a * 0, a * 0) == 0
    assert error_of(a * 0, a) == float("inf")


def test_events_are_matched_by_buffer_and_order():
    def event(buffer: str, value: float) -> Event:
        return Event("op", buffer, np.full((1, 2), value, np.float32))

    plain = [event("x", 1), event("y", 5), event("x", 2), event("y", 6), event("x", 3)]
    assert compare(plain, [event("x", 1), event("x", 2), event("x", 3)], 1e-6).first_beyond is None
    found = compare(plain, [event("x", 1), event("x", 2.5), event("x", 3)], 1e-6)
    assert found.worst == pytest.approx(0.125)
    assert "2.5 where 2 is right" in found.first_beyond


def test_logits_are_compared_with_their_place():
    a = np.ones((3, 4), np.float32)
    b = a.copy()
    b[1, 2] = 2
    assert "token 1, element 2" in compare_logits(a, b, 1e-3).first_beyond
    assert compare_logits(a, a, 1e-3).first_beyond is None


def test_bounds():
    assert exact("cpu").bound_for(16, False) == exact("reference").bound_for(16, True) == 1e-4
    assert exact("cpu").bound_for(16, True) == pytest.approx(0.02)
    assert exact("another").bound_for(1, False) == 1e-3
    assert tracing.prompt(10, 5) == tracing.prompt(10, 5)


def test_half_weights_are_what_float16_holds():
    stored = {"big": 3e8, "small": 1e-9, "odd": 1 + 2**-12, "not": np.inf}

    def linear(name: str) -> np.ndarray:
        return np.full((5000, 2), stored[name], np.float32)

    half = HalfWeights(SimpleNamespace(linear=linear, bias=lambda name: None))
    for name in ("big", "small"):
        np.testing.assert_allclose(half.linear(name), linear(name), rtol=2**-11)
    assert np.isinf(half.linear("not")).all()
    half.changed = False
    np.testing.assert_array_equal(half.linear("odd"), np.ones((5000, 2), np.float32))
    assert half.changed
    assert half.bias("odd") is None


def test_costs():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.4, 0.4]], np.float32))
    cost = Cost.of("x", logits, other)
    assert (cost.tokens, cost.same_top1) == (2, 0.5)
    assert cost.kl_nats == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2, rel=1e-5)
    assert cost.logit_error == pytest.approx(np.sqrt(2) * np.log(2) / np.linalg.norm(logits), rel=1e-5)


def test_a_quantized_model_may_be_asked_for_a_bound(cli, tiny):
    found = json.loads(cli("verify", tiny, "--tokens", "8", "--bound", "1e-30", "--json").out)
    assert not found["ok"]
    assert SimpleNamespace(**found["comparisons"][1]).first_beyond is not None
