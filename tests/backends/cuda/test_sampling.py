"""Sampling on the device against NumPy, as the emulator runs the kernels' PTX."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cuda.kernels import record
from edgellm.backends.cuda.kernels.sampling_plan import NOT_FINITE, sample_grid
from edgellm.backends.interface import Choice
from edgellm.engine.sampler import Sampler
from edgellm.engine.sampling import SamplingParams
from tests.backends.cuda.launching import launch
from tests.backends.cuda.racing import drawn, philox


def wanting(
    rows: int, vocab: int, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Records whose row r chooses from the first `vocab` ids and has drawn r tokens before."""
    words = np.zeros((rows, record.RECORD_WORDS), np.uint32)
    words[:, record.TEMPERATURE] = np.float32(temperature).view(np.uint32)
    words[:, record.TOP_K], words[:, record.TOP_P] = top_k, np.float32(top_p).view(np.uint32)
    words[:, record.SEED_LOW], words[:, record.SEED_HIGH] = seed & 0xFFFFFFFF, seed >> 32
    words[:, record.DRAW], words[:, record.VOCAB] = np.arange(rows), vocab
    return words.ravel()


def sample(logits: np.ndarray, words: np.ndarray, limits: np.ndarray | None = None, blocks: int = 2):
    """The token of each row."""
    rows, stride = logits.shape
    values, tokens = np.full((rows, blocks), np.nan, np.float32), np.full((rows, blocks), 7, np.uint32)
    out = np.full((rows, record.RECORD_WORDS), 7, np.uint32)
    given = {"logits": logits, "record": words, "thresholds": limits, "stride": stride}
    found = {"values": values, "tokens": tokens}
    launch("sample_blocks", (blocks, rows), {**given, **found, "limited": int(limits is not None)})
    launch("sample_rows", (rows,), {**found, "out": out, "out_stride": record.RECORD_WORDS, "blocks": blocks})
    assert (out[:, 1:] == 7).all()
    return out[:, 0]


def limits(logits: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The least logit that each row keeps."""
    rows, stride = logits.shape
    found = np.full(rows, np.nan, np.float32)
    given = {"logits": logits, "record": words, "thresholds": found, "stride": stride}
    launch("sample_threshold", (rows,), given)
    return found


def test_the_paper_s_own_answers() -> None:
    assert [int(word) for word in philox([0, 0, 0, 0], [0, 0])] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert [int(word) for word in philox([ones] * 4, [ones] * 2)] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_temperature_0_takes_the_largest_and_the_first_on_ties() -> None:
    rng = np.random.default_rng(1)
    logits = np.round(rng.standard_normal((4, 5003)) * 2).astype(np.float32)
    logits[:, 5000:] = 100  # rows that only pad the table
    logits[1, 4999], logits[2] = 50, -np.float32(3e38)
    np.testing.assert_array_equal(sample(logits, wanting(4, 5000)), logits[:, :5000].argmax(axis=1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_logit_that_is_not_finite_is_told(bad: float, temperature: float) -> None:
    logits = np.zeros((2, 300), np.float32)
    logits[1, 299] = bad
    for vocab in (300, 200):  # where it is never chosen it counts too
        found = sample(logits, wanting(2, vocab, temperature))
        assert found[0] < vocab
        assert found[1] == NOT_FINITE


def test_a_draw_is_philox_s_race_of_exponentials() -> None:
    rng, seed, temperature = np.random.default_rng(2), 0x123456789ABCDEF0, 0.7
    logits = rng.standard_normal((6, 1001)).astype(np.float32) * 3
    found = sample(logits, wanting(6, 1001, temperature, seed=seed))
    assert found.tolist() == [drawn(logits[row], Choice(1001, temperature, seed=seed, draw=row)) for row in range(6)]


def test_draws_follow_the_distribution() -> None:
    rows, weights = 400, np.array([0.4, 0.3, 0.2, 0.1])
    logits = np.tile(np.log(weights) * 1.5, (rows, 1)).astype(np.float32)
    counts = np.bincount(sample(logits, wanting(rows, 4, 1.5), blocks=1), minlength=4)
    expected = weights * rows
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom: one in a thousand


@pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"top_p": 0.8}, {"top_k": 12, "top_p": 0.7}])
def test_draws_follow_those_of_the_engine_s_sampler(options: dict[str, float]) -> None:
    """Two samples of one distribution: the device's by its records, the sampler's by its documented order."""
    rows, many, vocab = 500, 10_000, 25
    logit = (np.random.default_rng(6).standard_normal(vocab + 5) * 2).astype(np.float32)
    words = wanting(rows, vocab, 0.9, **options, seed=99)
    logits = np.tile(logit, (rows, 1))
    least = limits(logits[:1], words[: record.RECORD_WORDS])
    found = sample(logits, words, np.repeat(least, rows), blocks=1)
    sampler = Sampler(SamplingParams(temperature=0.9, seed=3, **options), vocab, ())
    counts = np.array(
        [np.bincount(found, minlength=vocab), np.bincount([sampler.pick(logit) for _ in range(many)], minlength=vocab)]
    )
    assert not counts[0, counts[1] == 0].any()  # what the sampler never draws is out
    rare = counts[1] < many / 100
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    counts = counts[:, counts.sum(axis=0) > 0]
    expected = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / counts.sum()
    freedom = counts.shape[1] - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson, Hilferty: 1 in 1000
    assert ((counts - expected) ** 2 / expected).sum() < bound


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_top_k_keeps_the_k_largest(temperature: float) -> None:
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((1, 3000)) * 3).astype(np.float32)
    logits[0, 5] = logits[0].max() + 40  # far above the others
    for k in (1, 2, 40):
        found = limits(logits, wanting(1, 2990, temperature, top_k=k))
        assert found[0] == np.sort(logits[0, :2990])[-k]


def test_top_p_keeps_the_fewest_that_reach_it_after_top_k() -> None:
    rng = np.random.default_rng(4)
    logits = (rng.standard_normal((1, 2000)) * 2).astype(np.float32)
    for k, p in ((0, 0.9), (0, 0.3), (50, 0.95), (1, 0.5), (0, 0.99999)):
        found = limits(logits, wanting(1, 2000, 0.8, top_k=k, top_p=p))[0]
        order = np.sort(logits[0].astype(np.float64))[::-1][: k or None]
        weights = np.exp(order / 0.8)
        wanted = order[np.searchsorted(weights.cumsum(), p * weights.sum())]
        assert found == np.float32(wanted)


def test_rows_without_a_limit_keep_everything() -> None:
    logits = np.array([[1, -50, 3], [1, -50, 3], [1, -50, 3]], np.float32)
    words = np.concatenate([wanting(1, 3), wanting(1, 3, 0.5, top_k=3), wanting(1, 3, 0.5, top_k=9, top_p=1.0)])
    assert (limits(logits, words) == -np.inf).all()


def test_only_what_is_kept_is_drawn() -> None:
    logits = np.tile(np.array([0, 1, 2, 3, 4, 5, 6, 7], np.float32), (50, 1))
    words = wanting(50, 8, 100.0, top_k=2)
    kept = limits(logits, words)
    assert (kept == 6).all()
    assert set(sample(logits, words, kept, blocks=1).tolist()) == {6, 7}


def test_gathering_rows_and_finishing_logits() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((5, 300)).astype(np.float32)
    rows, out = np.array([4, 1], np.uint32), np.full((2, 290), np.nan, np.float32)
    launch("gather_rows", (2, 2), {"x": x, "rows": rows, "out": out, "stride": 300, "width": 290})
    np.testing.assert_array_equal(out, x[[4, 1], :290])
    launch("finish_logits", (3,), {"logits": out, "count": 580, "multiplier": 20.0, "softcap": 30.0})
    np.testing.assert_allclose(out, 30 * np.tanh(x[[4, 1], :290] * 20 / 30), rtol=1e-5)


def test_blocks_along_the_vocabulary() -> None:
    assert sample_grid(100, 132) == 1
    assert sample_grid(128_256, 132) == 126
    assert sample_grid(128_256, 8) == 8
