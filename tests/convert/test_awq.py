"""AWQ: folding leaves the float model what it is on every architecture; the searches find what they should."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.reference.runner import ReferenceRunner
from edgellm.convert.awq import search_scales
from edgellm.convert.awq_fold import Fold, find_folds, fold_scales
from edgellm.convert.clip import rounding_errors, search_clip
from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError
from edgellm.formats import awq
from edgellm.model import fuse
from tests.backends.running import load, logits_of, relative_error
from tests.golden_models import GoldenCase, cases


def outliers(rows: int, inputs: int, seed: int, tokens: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """(weight [rows, inputs], inputs [tokens, inputs]) with a few loud channels, as in language models."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, inputs)).astype(np.float32) * 0.05
    x = rng.standard_normal((tokens, inputs)).astype(np.float32)
    x[:, rng.choice(inputs, 3, replace=False)] *= 30
    return weight, x


@pytest.mark.parametrize("case", cases(), ids=str)
def test_folding_leaves_the_logits_as_they_are(case: GoldenCase) -> None:
    runner, expected = load(case.folder, fused=False), case.reference()
    program, arrays, biases = runner.program, dict(runner._arrays), dict(runner._biases)
    folds = find_folds(program, lm_head=True)
    rng = np.random.default_rng(1)
    for fold in folds:
        scales = fold.tied(rng.uniform(0.25, 4, arrays[fold.linears[0]].shape[1]).astype(np.float32))
        fold_scales(fold, scales, arrays, biases)
    changed = {fold.source for fold in folds} | {name for fold in folds for name in fold.linears}
    assert all(not np.array_equal(arrays[name], runner._arrays[name]) for name in changed)
    folded = ReferenceRunner(program, arrays, biases)
    assert relative_error(logits_of(folded, expected["input_ids_1"]), expected["logits_1"]) < 1e-4


@pytest.mark.parametrize("case", cases(), ids=str)
def test_every_linear_that_can_be_scaled_has_one_fold(case: GoldenCase) -> None:
    program = load(case.folder, fused=False).program
    config = program.config
    folds = find_folds(program)
    linears = [name for fold in folds for name in fold.linears]
    assert len(linears) == len(set(linears))
    per_layer = {"self_attn.o_proj", "mlp.down_proj"}
    if config.pre_norms:
        per_layer |= {f"self_attn.{part}_proj" for part in "qkv"} | {"mlp.gate_proj", "mlp.up_proj"}
    expected = {f"layers.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in per_layer}
    assert set(linears) == expected
    assert find_folds(fuse(program)) == folds


def test_the_final_norm_folds_only_into_an_lm_head_of_its_own() -> None:
    found = {}
    for case in cases():
        program = load(case.folder, fused=False).program
        found[program.config.tie_word_embeddings] = "norm" in {f.source for f in find_folds(program, lm_head=True)}
    assert found == {True: False, False: True}


def test_shared_divisors() -> None:
    fold = Fold("v", ("o",), 0, repeat=2, head_dim=2)
    tied = fold.tied(np.array([1, 2, 4, 8, 3, 3, 3, 3], np.float32))
    np.testing.assert_allclose(tied, [2, 4, 2, 4, 3, 3, 3, 3], rtol=1e-6)
    np.testing.assert_array_equal(fold.divisors(tied), tied[[0, 1, 4, 5]])
    with pytest.raises(UsageError, match="v: channels that share"):
        fold.divisors(np.arange(1, 9, dtype=np.float32))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_would_break_the_model_are_refused(scale: float) -> None:
    weights = {"norm": np.ones(4, np.float32), "q": np.ones((2, 4), np.float32)}
    fold = Fold("norm", ("q",), 0, offset=0.0)
    with pytest.raises(NumericalError, match="norm"):
        fold_scales(fold, np.array([1, 1, scale, 1], np.float32), weights)
    with pytest.raises(UsageError, match=r"allowed: \[4\]"):
        fold_scales(fold, np.ones(3, np.float32), weights)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("sym", [True, False])
def test_scales_beat_plain_rounding_where_channels_differ(bits: int, sym: bool) -> None:
    weight, x = outliers(48, 128, 3)
    scheme = Scheme(bits, 32, sym)
    mean_abs = np.abs(x).mean(axis=0)
    found = search_scales([weight[:32], weight[32:]], mean_abs, x, scheme)
    assert 0 < found.loss < 0.6 * found.loss_unscaled
    assert found.scales[mean_abs.argmax()] > 2 * np.median(found.scales)
    # what is promised is what the scaled, quantized, unscaled weights do
    scaled = quantize_rtn(weight * found.scales, scheme).dequantize() / found.scales - weight
    assert np.square(x @ scaled.T).sum() == pytest.approx(found.loss, rel=1e-3)
    plain = quantize_rtn(weight, scheme).dequantize() - weight
    assert np.square(x @ plain.T).sum() == pytest.approx(found.loss_unscaled, rel=1e-3)


def test_a_hessian_says_what_the_inputs_say() -> None:
    weight, x = outliers(24, 64, 5)
    scheme, mean_abs = Scheme(4, 32), np.abs(x).mean(axis=0)
    one = search_scales([weight], mean_abs, x, scheme)
    other = search_scales([weight], mean_abs, None, scheme, hessian=x.T @ x)
    np.testing.assert_array_equal(one.scales, other.scales)
    assert one.loss == pytest.approx(other.loss, rel=1e-3)
    np.testing.assert_allclose(search_clip(weight, x, scheme), search_clip(weight, None, scheme, hessian=x.T @ x))


def test_shared_value_heads_get_equal_scales() -> None:
    weight, x = outliers(24, 64, 6)
    fold = Fold("v", ("o",), 0, repeat=4, head_dim=8)
    found = search_scales([weight], np.abs(x).mean(axis=0), x, Scheme(4, 32), fold=fold)
    assert found.ratio > 0 or found.duo
    assert fold.divisors(found.scales).shape == (16,)


@pytest.mark.parametrize("sym", [True, False])
def test_clipping_is_never_worse_on_its_inputs_group_by_group(sym: bool) -> None:
    weight, x = outliers(16, 72, 7)  # the last group is short
    scheme = Scheme(3, 32, sym)
    limits = search_clip(weight, x, scheme)
    plain = rounding_errors(weight, scheme)
    clipped = quantize_rtn(weight, scheme, limits=limits).dequantize() - weight
    gains = 0
    for group in range(3):
        part = slice(32 * group, 32 * group + 32)
        before = np.square(x[:, part] @ plain[:, part].T).sum(axis=0)
        after = np.square(x[:, part] @ clipped[:, part].T).sum(axis=0)
        assert (after <= before * 1.001).all()
        gains += (after < 0.9 * before).sum()
    assert gains > 4


def test_rounding_errors_are_those_of_round_to_nearest() -> None:
    weight, _ = outliers(20, 80, 8)
    for scheme in (Scheme(4, 32), Scheme(3, 16, sym=False), Scheme(8, -1)):
        found = rounding_errors(weight, scheme)
        np.testing.assert_allclose(found, quantize_rtn(weight, scheme).dequantize() - weight, atol=2e-7)


def test_the_result_can_be_written_as_awq() -> None:
    weight, x = outliers(16, 64, 9)
    scheme = Scheme(4, 32, sym=False)
    found = search_scales([weight], np.abs(x).mean(axis=0), x, scheme)
    tensor = quantize_rtn(weight * found.scales, scheme)
    back = awq.unpack(awq.pack(tensor), group_size=32)
    np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())


def test_bad_arguments_are_named() -> None:
    weight, x = outliers(8, 32, 10)
    mean_abs = np.abs(x).mean(axis=0)
    with pytest.raises(UsageError, match="inputs, hessian: one of them"):
        search_scales([weight], mean_abs, None, Scheme())
    with pytest.raises(UsageError, match="mean_abs"):
        search_scales([weight], mean_abs[:4], x, Scheme())
    with pytest.raises(UsageError, match="inputs, hessian: does not fit"):
        search_clip(weight, x[:, :5], Scheme())
    x[3, 3] = np.nan
    with pytest.raises(NumericalError, match="inputs"):
        search_scales([weight], mean_abs, x, Scheme())
