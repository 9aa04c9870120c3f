from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgellm.cli import tracing
from edgellm.cli.tracing import Event, compare, compare_logits, error_of


def test_the_reference_agrees_with_itself(cli, tiny):
    done = cli("verify", tiny, "--tokens", "12")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["equal"] * 3
    assert "only the reference" in done.err


def test_json(cli, tiny):
    found = json.loads(cli("verify", tiny, "--tokens", "12", "--json").out)
    assert found["ok"]
    assert len(found["comparisons"]) == 3
    assert all(entry["error"] <= entry["bound"] for entry in found["comparisons"])


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
    done = cli("verify", tiny, "--tokens", "12")
    assert done.code == 1
    first = next(line for line in done.out.splitlines() if "first beyond" in line)
    assert "layer 1 rms_norm input_layernorm -> h" in first
    assert "token 2, element 7" in first
    assert json.loads(cli("verify", tiny, "--tokens", "12", "--json").out)["ok"]  # one call alone was wrong


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
    assert error_of(a, a + np.float32(0.5)) == pytest.approx(0.5 / np.sqrt(12.5))
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
    assert found.worst == pytest.approx(0.25)
    assert "2.5 where 2 is right" in found.first_beyond


def test_logits_are_compared_with_their_place():
    a = np.ones((3, 4), np.float32)
    b = a.copy()
    b[1, 2] = 2
    assert "token 1, element 2" in compare_logits(a, b, 1e-3).first_beyond
    assert compare_logits(a, a, 1e-3).first_beyond is None


def test_bounds():
    assert tracing.bound_for("reference") < tracing.bound_for("cpu")
    assert tracing.prompt(10, 5) == tracing.prompt(10, 5)


def test_a_quantized_model_may_be_asked_for_a_bound(cli, tiny):
    found = json.loads(cli("verify", tiny, "--tokens", "8", "--bound", "1e-30", "--json").out)
    assert not found["ok"]
    assert SimpleNamespace(**found["comparisons"][1]).first_beyond is not None
