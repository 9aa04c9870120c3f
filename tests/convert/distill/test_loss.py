from __future__ import annotations

import numpy as np
import pytest

from edgellm.convert.distill import loss
from tests.convert.distill.differences import check
from tests.convert.distill.models import golden, network_of, random_rows, read


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.0), (1.0, 1.0), (2.0, 0.7), (0.5, 0.3)])
def test_the_gradient_of_the_loss(temperature, alpha):
    random = np.random.default_rng(2)
    student, teacher = random.normal(size=(2, 6, 9))
    targets = random.integers(0, 9, 6)

    def value() -> float:
        found, _ = loss.loss_of_logits(student.copy(), teacher.copy(), targets, temperature, alpha)
        return found.loss(temperature, alpha) * found.tokens

    _, g = loss.loss_of_logits(student.copy(), teacher.copy(), targets, temperature, alpha)
    check(value, {"student": student}, {"student": g})


def test_the_sums_are_those_of_the_formulas():
    random = np.random.default_rng(4)
    student, teacher = random.normal(size=(2, 5, 7))
    targets = np.array([0, 6, 3, 3, 1])
    found, _ = loss.loss_of_logits(student.copy(), teacher.copy(), targets, 2.0, 0.5)
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (teacher, student))
    plain = np.exp(student) / np.exp(student).sum(-1, keepdims=True)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum())
    assert found.nll == pytest.approx(-np.log(plain[np.arange(5), targets]).sum())
    assert found.agreed == (student.argmax(-1) == teacher.argmax(-1)).sum()
    assert found.loss(2.0, 0.5) == pytest.approx((0.5 * 4 * found.kl + 0.5 * found.nll) / 5)


def test_a_student_like_its_teacher_has_nothing_to_learn():
    logits = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    found, g = loss.loss_of_logits(logits.copy(), logits.copy(), np.arange(4), 1.5, 1.0)
    assert abs(found.kl) < 1e-6
    assert np.abs(g).max() < 1e-6
    assert found.agreed == 4


def test_chunks_of_rows_give_what_one_gives(monkeypatch):
    model = read(golden("gemma2"))
    network, targets = network_of(model, 4), random_rows(model, 10, 4).reshape(-1)
    h, other = np.random.default_rng(0).normal(size=(2, 40, model.program.config.hidden_size)).astype(np.float32)
    results = []
    for numbers in (1 << 20, 1):
        monkeypatch.setattr(loss, "CHUNK_NUMBERS", numbers)
        into = model.parameters.zeros(["embed_tokens"])
        found, g = loss.loss_and_gradient(network, h, network, other, targets, 1.0, 0.5, 0.1, into)
        results.append((found.kl, found.nll, g, into["embed_tokens"]))
    for one, many in zip(*results, strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-5)
