"""An lm_head in halves: all bits for the rows that may win, half of them for the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cpu import packed_plan
from edgellm.backends.cpu.backend import CpuBackend
from edgellm.backends.cpu.halves import HALVED_FROM, REFINED, refined_bytes
from edgellm.backends.cpu.layout import LinearKind
from edgellm.backends.cpu.linear_int import op_linear_int2, op_linear_int4
from edgellm.backends.cpu.linear_refine import make_refine, op_peaks
from edgellm.backends.cpu.linear_tiles import STAGE, scratch_sizes
from edgellm.backends.cpu.optable import OP_DTYPE
from edgellm.backends.cpu.packing import plan_linear, unpack_linear
from edgellm.backends.cpu.quantize import op_quantize
from edgellm.backends.cpu.work import share
from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState
from edgellm.model import fuse, open_model
from edgellm.simd import F32_LANES
from tests.backends.cpu.kernels import WITHOUT_JIT
from tests.backends.cpu.linears import Linear
from tests.backends.running import geometry
from tools.make_synthetic import Storage, make_synthetic

#: Blocks that are to get all their bits here, and more rows than that.
WANTED = 8
ROWS = 30 * F32_LANES - 3
REFINES = {LinearKind.INT4: make_refine(op_linear_int4, WANTED), LinearKind.INT2: make_refine(op_linear_int2, WANTED)}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": HALVED_FROM * F32_LANES + 5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}


def gaussian(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, rows, inputs)).standard_normal((rows, inputs)).astype(np.float32)


class Head:
    """The rows of the op table that make logits of a weight in halves, called by themselves."""

    def __init__(self, weight: np.ndarray, bits: int, bias: np.ndarray | None = None) -> None:
        self.linear = Linear(weight, bits, bias=bias, halves=True)
        four = self.linear.layout.kind == LinearKind.INT4
        self.op_linear = op_linear_int4 if four else op_linear_int2
        self.op_refine = REFINES[self.linear.layout.kind]

    def run(self, x: np.ndarray, *, exact: bool, planes: int = 1, nth: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Logits [T, rows] after the high halves alone, and after all."""
        linear, layout = self.linear, self.linear.layout
        tokens, inputs = x.shape
        sizes = scratch_sizes(layout, tokens, planes)
        quads, xs = np.zeros(sizes[0], np.int32), np.zeros(sizes[1], np.float32)
        stage = np.full(nth * STAGE, np.nan, np.float32)
        act = np.full(x.size + layout.blocks + F32_LANES, np.nan, np.float32)
        act[: x.size] = x.reshape(-1)
        logits = np.full(tokens * layout.rows, np.nan, np.float32)
        linear.ops["source"], linear.ops["source_stride"] = 0, inputs
        linear.ops["out"], linear.ops["out_stride"], linear.ops["adds"] = 0, layout.rows, 0
        linear.ops["multiplier"] = 1.0
        table = np.zeros(2, OP_DTYPE)
        for half, row in enumerate(table):
            linear.ops["adds"], row["other"] = half, x.size
            for name in linear.ops.dtype.names:
                row[name] = linear.half(half)[name]
        first, second = table
        for ith in range(nth):
            op_quantize(quads, xs, act, stage, linear.permutations, first, tokens, planes, ith, nth)
        arrays = (logits, quads, xs, stage, linear.arena.bytes)

        def of_all_blocks(op) -> None:
            for ith in reversed(range(nth)):
                self.op_linear(*arrays, op, tokens, planes, *share(ith, nth, layout.blocks), ith * STAGE)

        of_all_blocks(first)
        coarse = logits.copy()
        if exact:
            of_all_blocks(second)
            return coarse.reshape(tokens, -1), logits.reshape(tokens, -1)
        for ith in reversed(range(nth)):
            op_peaks(act, x.size, logits, layout.rows, ith, nth)
        for ith in reversed(range(nth)):
            self.op_refine(*arrays, act, second, planes, ith, nth)
        return coarse.reshape(tokens, -1), logits.reshape(tokens, -1)


BITS = pytest.mark.parametrize("bits", [8, 4])


@pytest.mark.parametrize("inputs", [32, 96, 200, 1100])
def test_halves_of_four_bits_are_the_codes_of_four_bits(inputs: int) -> None:
    weight = gaussian(21, inputs)
    halved, whole = Linear(weight, 4, halves=True), Linear(weight, 4)
    assert (halved.layout.stored_name, halved.layout.bits) == ("int4", 2)
    np.testing.assert_allclose(halved.dense, whole.dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inputs", [32, 96, 200])
def test_halves_of_eight_bits_and_the_first_of_them(inputs: int) -> None:
    weight = gaussian(21, inputs)
    linear = Linear(weight, 8, halves=True)
    layout = linear.layout
    assert (layout.stored_name, layout.nbytes) == ("int8", 2 * layout.half_bytes)
    padded = np.pad(weight, ((0, 0), (0, layout.padded_inputs - inputs))).reshape(21, layout.groups, -1)
    step = np.repeat(np.abs(padded).max(axis=2) / 119, layout.group, axis=1)[:, :inputs]
    assert (np.abs(linear.dense - weight) <= step * 0.5 * (1 + 119 * 2**-10)).all()
    half = replace(layout, halves=1)
    begin = int(linear.ops["weight"][0])
    first = unpack_linear(linear.arena.bytes[begin : begin + half.nbytes], half, float(linear.ops["factor"][0]))
    assert (np.abs(first - weight) <= step * 8.5 * (1 + 2**-9)).all()


@BITS
def test_an_embedding_is_the_sum_of_both_halves(bits: int) -> None:
    linear, ids = Linear(gaussian(40, 96), bits, halves=True), np.array([0, 39, 17, 17], np.int32)
    expected = linear.dense[ids] * np.float32(0.5)
    np.testing.assert_allclose(linear.rows_of(ids, 2), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 9])
@BITS
def test_exact_logits_are_those_of_all_bits(bits: int, tokens: int, planes: int) -> None:
    bias = gaussian(1, 77)[0]
    head, x = Head(gaussian(77, 160), bits, bias), gaussian(tokens, 160, 1)
    found = head.run(x, exact=True, planes=planes, nth=2)[1]
    np.testing.assert_allclose(found, head.linear.expected(x, planes), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("planes", [1, 2])
@BITS
def test_rows_that_may_win_have_all_their_bits_and_the_others_half(bits: int, planes: int) -> None:
    head, x = Head(gaussian(ROWS, 32), bits), gaussian(1, 32, 1)
    coarse, exact = head.run(x, exact=True, planes=planes)
    for nth in (1, 2, 3, 7):
        _, found = head.run(x, exact=False, planes=planes, nth=nth)
        peaks = [block.max() for block in np.split(coarse[0], range(F32_LANES, ROWS, F32_LANES))]
        taken = np.repeat(peaks >= np.sort(peaks)[-WANTED], F32_LANES)[:ROWS]
        others = np.repeat(peaks < np.sort(peaks)[-WANTED * 9 // 8], F32_LANES)[:ROWS]
        np.testing.assert_array_equal(found[0][taken], exact[0][taken])
        np.testing.assert_array_equal(found[0][others], coarse[0][others])
        assert ((found == exact) | (found == coarse)).all()
        assert others.any()
        assert bits == 4 or found.argmax() == exact.argmax()  # so few blocks are too few for the errors of 2 bits


def test_equal_peaks_are_all_taken_and_few_blocks_too() -> None:
    for rows in (ROWS, 5 * F32_LANES + 1, 3):
        weight = np.repeat(gaussian(1, 32), rows, axis=0)
        _, exact = Head(weight, 8).run(gaussian(1, 32, 1), exact=True)
        coarse, found = Head(weight, 8).run(gaussian(1, 32, 1), exact=False)
        np.testing.assert_array_equal(found, exact)
        assert (found != coarse).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_ends_and_is_seen(bad: float) -> None:
    x = gaussian(1, 32, 1)
    x[0, 3] = bad
    assert np.isnan(Head(gaussian(ROWS, 32), 4).run(x, exact=False)[1]).all()


@pytest.mark.parametrize("tied", [True, False])
@BITS
def test_a_model_gives_the_same_token_and_says_what_it_reads(
    bits: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CONFIG, "tie_word_embeddings": tied}
    if WITHOUT_JIT:  # a small one, of which all blocks get all their bits
        config["vocab_size"] = 3 * F32_LANES + 1
        monkeypatch.setattr(packed_plan, "HALVED_FROM", 1)
    folder = make_synthetic(
        config, tmp_path / "model", Storage("gptq", 4, 32, sym=True, desc_act=False), tokenizer=False
    )
    runners = {}
    with open_model(folder) as model:
        program = fuse(model.weights.program)
        halved, whole = f"int{bits}", f"int{bits}-whole"
        for head in (halved, whole):
            options = {"threads": 2, "lm_head": head, "activations": "int16"}
            runners[head] = CpuBackend().load(program, model.weights, **options)
            plan = CpuBackend().plan_bytes(program, model.weights, geometry(runners[head], 8, 1), 1, lm_head=head)
            described = runners[head].describe()
            assert (plan.lm_head, plan.lm_head_bytes) == (described["lm_head"], described["lm_head_bytes"])
            assert runners[head].weight_nbytes <= plan.weights
    runner = runners[halved]
    cache = runner.new_cache(geometry(runner, 16, 2), 2)
    all_bits = runners[whole].run(cache, Batch.of([(SlotState(0), [3, 5, 7], "last")]))[0]
    exact = runner.run(cache, Batch.of([(SlotState(0), [3, 5, 7], "last")]))[0]
    drawn = runner.run(cache, Batch.of([(SlotState(0), [3, 5, 7], "last")], exact=False))[0]
    several = [(SlotState(0), [3, 5, 7], "last"), (SlotState(1), [3, 5, 7], "last")]
    both = runner.run(cache, Batch.of(several, exact=False))
    np.testing.assert_array_equal(both, [exact, exact])
    assert drawn.argmax() == exact.argmax()
    best = np.argsort(-exact)[:5]
    np.testing.assert_array_equal(drawn[best], exact[best])
    assert 0 < (drawn == exact).mean() < 1 + WITHOUT_JIT
    # the same codes of 4 bits; of 8 bits, to 119 or to 127, they differ by the errors of both, 0.7 % each
    assert np.linalg.norm(exact - all_bits) < (0.02 if bits == 8 else 1e-5) * np.linalg.norm(all_bits)
    assert np.linalg.norm(drawn - exact) < (0.2 if bits == 8 else 0.5) * np.linalg.norm(exact)
    work = {head: runner.describe()["work"]["weight_bytes"] for head, runner in runners.items()}
    assert WITHOUT_JIT or work[halved] < 0.9 * work[whole]
    for made in runners.values():
        made.close()


def test_refined_bytes_are_those_of_the_blocks() -> None:
    layout = plan_linear(2 * REFINED[LinearKind.INT4] * F32_LANES, 64, 8, halves=2)
    assert refined_bytes(layout) == layout.head_bytes + REFINED[LinearKind.INT4] * layout.block_bytes
    few = replace(layout, rows=3)
    assert refined_bytes(few) == few.half_bytes
