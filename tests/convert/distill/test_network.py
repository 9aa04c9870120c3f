"""A whole program forward and in reverse, on every golden model."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.convert.distill.network import Network
from edgellm.convert.distill.parameters import Parameters, read_parameters
from edgellm.model import fuse, open_model
from tests.backends.running import load, logits_of, relative_error
from tests.convert.distill.differences import slope
from tests.golden_models import GoldenCase, cases


def network_of(case: GoldenCase, tokens: int, *, fused: bool = False, dtype: type = np.float32) -> Network:
    with open_model(case.folder) as model:
        parameters = read_parameters(model)
        program = fuse(model.weights.program) if fused else model.weights.program
    arrays = {name: array.astype(dtype) for name, array in parameters.arrays.items()}
    return Network(program, Parameters(arrays, parameters.tied), tokens)


def hidden(network: Network, ids: np.ndarray, tape: list | None = None) -> np.ndarray:
    return network.forward(network.body, {"token_ids": ids}, tape)["h"]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_logits_equal_the_reference_backends(case: GoldenCase) -> None:
    expected = case.reference()
    runner = load(case.folder)
    for i in (0, 1):
        ids = expected[f"input_ids_{i}"]
        network = network_of(case, len(ids), fused=bool(i))
        found = network.logits(hidden(network, ids))
        assert relative_error(found, logits_of(runner, ids)) < 1e-5
        assert relative_error(found[expected[f"pos_{i}"]], expected[f"logits_{i}"]) < 1e-4


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_gradients_equal_finite_differences(case: GoldenCase, fused: bool) -> None:
    """Two sequences in float64; every array of the model along a random direction."""
    tokens = 5
    random = np.random.default_rng(3)
    network = network_of(case, tokens, fused=fused, dtype=np.float64)
    ids = random.integers(3, network.config.vocab_size, 2 * tokens)
    g = random.normal(size=(2 * tokens, network.config.vocab_size))

    def loss() -> float:
        return float((network.logits(hidden(network, ids)) * g).sum())

    tape: list = []
    h = hidden(network, ids, tape)
    into = network.parameters.zeros()
    grad = network.logits_back(g, h, network.logits(h), into)
    left = network.backward(tape, {"h": grad}, into)
    assert (tape, left) == ([], {})
    for name, array in network.parameters.arrays.items():
        direction = random.normal(size=array.shape)
        expected = slope(loss, array, direction)
        found = float((into[name] * direction).sum())
        assert abs(found - expected) <= 1e-6 * max(abs(expected), 1.0), name


def test_a_tied_embedding_gets_both_gradients() -> None:
    case = next(case for case in cases() if case.name == "llama-tied")
    network = network_of(case, 4)
    assert network.parameters.tied
    assert "lm_head" not in network.parameters.arrays
    assert network.parameters["lm_head"] is network.parameters["embed_tokens"]


def test_weights_that_are_not_asked_for_cost_nothing() -> None:
    case = cases()[0]
    network = network_of(case, 4)
    ids = np.arange(3, 11)
    tape: list = []
    hidden(network, ids, tape)
    into = network.parameters.zeros(["norm"])
    network.backward(tape, {"h": np.ones((8, network.config.hidden_size), np.float32)}, into)
    assert list(into) == ["norm"]
    assert np.abs(into["norm"]).max() > 0


def test_a_layer_runs_alone() -> None:
    case = cases()[0]
    ids = np.arange(3, 11)
    network = network_of(case, 4)
    whole = hidden(network, ids)
    buffers = network.forward(network.first, {"token_ids": ids})
    x = buffers["x"]
    for layer in range(network.config.num_hidden_layers):
        x = network.forward(network.layer_ops(layer), {"x": x})["x"]
    np.testing.assert_array_equal(network.forward(network.last, {"x": x})["h"], whole)
