"""Golden models in memory, and networks over them."""

from __future__ import annotations

import numpy as np

from edgellm.convert.distill.network import Network, sequences
from edgellm.convert.distill.reduce import Model
from edgellm.convert.distill.sources import read_model
from edgellm.model import open_model
from tests.golden_models import GoldenCase, cases


def golden(name: str) -> GoldenCase:
    return next(case for case in cases() if case.name == name)


def read(case: GoldenCase) -> Model:
    with open_model(case.folder) as opened:
        return read_model(opened)


def network_of(model: Model, tokens: int) -> Network:
    return Network(model.program, model.parameters, tokens)


def logits_of(model: Model, rows: np.ndarray) -> np.ndarray:
    """Logits of rows int [N, T]."""
    network = network_of(model, rows.shape[1])
    return network.logits(network.forward(network.body, {"token_ids": sequences(rows)})["h"])


def random_rows(model: Model, count: int, tokens: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, model.program.config.vocab_size, (count, tokens)).astype(np.int32)
