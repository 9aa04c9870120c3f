"""An lm_head in slices: all bits for the rows that may win, fewer for the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cpu import packed_plan
from edgellm.backends.cpu.backend import CpuBackend
from edgellm.backends.cpu.layout import LinearKind
from edgellm.backends.cpu.linear_int import op_linear_int2, op_linear_int4
from edgellm.backends.cpu.linear_refine import make_refine, op_peaks
from edgellm.backends.cpu.linear_tiles import STAGE, scratch_sizes
from edgellm.backends.cpu.optable import OP_DTYPE
from edgellm.backends.cpu.packing import plan_linear, unpack_linear
from edgellm.backends.cpu.quantize import op_quantize
from edgellm.backends.cpu.slices import SLICED_FROM, refined_blocks, refined_bytes
from edgellm.backends.cpu.work import share
from edgellm.backends.interface import Batch, LogitsUse
from edgellm.backends.slots import SlotState
from edgellm.model import fuse, open_model
from edgellm.simd import F32_LANES
from tests.backends.cpu.kernels import WITHOUT_JIT
from tests.backends.cpu.linears import Linear
from tests.backends.running import geometry
from tools.make_synthetic import Storage, make_synthetic

#: Blocks that are to get all their bits here, and more rows than that.
WANTED = 8
ROWS = 32 * F32_LANES - 3
LINEARS = {LinearKind.INT4: op_linear_int4, LinearKind.INT2: op_linear_int2}
REFINES = {kind: make_refine(16 >> kind, WANTED) for kind in LINEARS}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": SLICED_FROM + 5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}


def gaussian(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, rows, inputs)).standard_normal((rows, inputs)).astype(np.float32)


class Head:
    """The rows of the op table that make logits of a weight in slices, called by themselves."""

    def __init__(self, weight: np.ndarray, bits: int, bias: np.ndarray | None = None) -> None:
        self.linear = Linear(weight, bits, bias=bias, sliced=True)

    def run(self, x: np.ndarray, *, refined: int = 0, planes: int = 1, nth: int = 1) -> list[np.ndarray]:
        """Logits [T, rows] after each slice; the last `refined` slices are read of some blocks."""
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
        slices = list(linear.slices())
        table = np.array([fields for _, fields in slices], OP_DTYPE)
        table["other"] = x.size
        for ith in range(nth):
            op_quantize(quads, xs, act, stage, linear.permutations, table[0], tokens, planes, ith, nth)
        arrays, steps = (logits, quads, xs, stage, linear.arena.bytes), []
        for number, ((kind, _), op) in enumerate(zip(slices, table, strict=True)):
            some = number >= len(slices) - refined
            for ith in reversed(range(nth if some else 0)):
                op_peaks(act, x.size, logits, layout.rows, ith, nth)
            for ith in reversed(range(nth)):
                if some:
                    REFINES[kind](*arrays, act, op, planes, ith, nth)
                else:
                    blocks = (*share(ith, nth, layout.blocks), 0, ith * STAGE)
                    LINEARS[kind](*arrays, op, tokens, planes, *blocks)
            steps.append(logits.reshape(tokens, -1).copy())
        return steps


BITS = pytest.mark.parametrize("bits", [8, 4])


@pytest.mark.parametrize("inputs", [32, 96, 200, 1100])
def test_slices_of_four_bits_are_the_codes_of_four_bits(inputs: int) -> None:
    weight = gaussian(21, inputs)
    sliced, whole = Linear(weight, 4, sliced=True), Linear(weight, 4)
    assert (sliced.layout.stored_name, sliced.layout.bits) == ("int4", 2)
    np.testing.assert_allclose(sliced.dense, whole.dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inputs", [16, 32, 96, 200, 2200])
def test_slices_of_eight_bits_and_the_first_of_them(inputs: int) -> None:
    weight = gaussian(21, inputs)
    linear = Linear(weight, 8, sliced=True)
    layout = linear.layout
    assert [kind for kind, _ in linear.slices()] == [LinearKind.INT2, LinearKind.INT2, LinearKind.INT4]
    assert (layout.stored_name, layout.nbytes) == ("int8", layout.slices[2][0] + layout.slices[2][1].nbytes)
    padded = np.pad(weight, ((0, 0), (0, layout.padded_inputs - inputs))).reshape(21, layout.groups, -1)
    step = np.repeat(np.abs(padded).max(axis=2) / 119, layout.group, axis=1)[:, :inputs]
    assert (np.abs(linear.dense - weight) <= step * 0.5 * (1 + 119 * 2**-10)).all()
    begin, factor, found = int(linear.ops["weight"][0]), float(linear.ops["factor"][0]), 0
    for (offset, piece), most in zip(layout.slices, (32.5 + 8, 8.5, 0.5), strict=True):
        found = found + unpack_linear(linear.arena.bytes[begin + offset :][: piece.nbytes], piece, factor)
        assert (np.abs(found - weight) <= step * most * (1 + 119 * 2**-10)).all()


@BITS
def test_an_embedding_is_the_sum_of_all_slices(bits: int) -> None:
    linear, ids = Linear(gaussian(40, 96), bits, sliced=True), np.array([0, 39, 17, 17], np.int32)
    expected = linear.dense[ids] * np.float32(0.5)
    np.testing.assert_allclose(linear.rows_of(ids, 2), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 9])
@BITS
def test_exact_logits_are_those_of_all_bits(bits: int, tokens: int, planes: int) -> None:
    bias = gaussian(1, 77)[0]
    head, x = Head(gaussian(77, 160), bits, bias), gaussian(tokens, 160, 1)
    found = head.run(x, planes=planes, nth=2)[-1]
    np.testing.assert_allclose(found, head.linear.expected(x, planes), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("inputs", [32, 2200])
@BITS
def test_rows_that_may_win_have_all_their_bits_and_the_others_fewer(bits: int, inputs: int, planes: int) -> None:
    head, x = Head(gaussian(ROWS, inputs), bits), gaussian(1, inputs, 1)
    before, exact = head.run(x, planes=planes)[-2:]
    for nth in (1, 2, 3, 7):
        found = head.run(x, refined=1, planes=planes, nth=nth)[-1]
        peaks = [block.max() for block in np.split(before[0], range(F32_LANES, ROWS, F32_LANES))]
        taken = np.repeat(peaks >= np.sort(peaks)[-WANTED], F32_LANES)[:ROWS]
        others = np.repeat(peaks < np.sort(peaks)[-WANTED * 9 // 8], F32_LANES)[:ROWS]
        np.testing.assert_array_equal(found[0][taken], exact[0][taken])
        np.testing.assert_array_equal(found[0][others], before[0][others])
        assert ((found == exact) | (found == before)).all()
        assert others.any()
        assert bits == 4 or found.argmax() == exact.argmax()  # so few blocks are too few for the errors of 2 bits


def test_two_bits_then_four_then_eight() -> None:
    head, x = Head(gaussian(ROWS, 96), 8), gaussian(1, 96, 1)
    two, four, exact = head.run(x)
    for nth in (1, 2, 3, 7):
        steps = head.run(x, refined=2, nth=nth)
        np.testing.assert_array_equal(steps[0], two)
        assert ((steps[1] == two) | (steps[1] == four)).all()
        assert (steps[2] == exact).sum() > WANTED * F32_LANES / 2
        assert steps[2].argmax() == exact.argmax()


def test_equal_peaks_are_all_taken_and_few_blocks_too() -> None:
    for rows in (ROWS, 5 * F32_LANES + 1, 3):
        weight = np.repeat(gaussian(1, 32), rows, axis=0)
        exact = Head(weight, 8).run(gaussian(1, 32, 1))
        found = Head(weight, 8).run(gaussian(1, 32, 1), refined=2)
        np.testing.assert_array_equal(found, exact)
        assert (found[2] != found[0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_ends_and_is_seen(bad: float) -> None:
    x = gaussian(1, 32, 1)
    x[0, 3] = bad
    for bits in (4, 8):
        assert np.isnan(Head(gaussian(ROWS, 32), bits).run(x, refined=1)[-1]).all()


@pytest.mark.parametrize("tied", [True, False])
@BITS
def test_a_model_gives_the_same_token_and_says_what_it_reads(
    bits: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CONFIG, "tie_word_embeddings": tied}
    if WITHOUT_JIT:  # a small one, of which all blocks get all their bits
        config["vocab_size"] = 3 * F32_LANES + 1
        monkeypatch.setattr(packed_plan, "SLICED_FROM", 1)
    folder = make_synthetic(
        config, tmp_path / "model", Storage("gptq", 4, 32, sym=True, desc_act=False), tokenizer=False
    )
    runners = {}
    with open_model(folder) as model:
        program = fuse(model.weights.program)
        sliced, whole = f"int{bits}", f"int{bits}-whole"
        for head in (sliced, whole):
            options = {"threads": 2, "lm_head": head, "activations": "int16"}
            runners[head] = CpuBackend().load(program, model.weights, **options)
            plan = CpuBackend().plan_bytes(program, model.weights, geometry(runners[head], 8, 1), 1, lm_head=head)
            described = runners[head].describe()
            assert (plan.lm_head, plan.lm_head_bytes) == (described["lm_head"], described["lm_head_bytes"])
            assert runners[head].weight_nbytes <= plan.weights
    runner = runners[sliced]
    cache = runner.new_cache(geometry(runner, 16, 2), 2)
    all_bits = runners[whole].run(cache, Batch.of([(SlotState(0), [3, 5, 7], "last")]))[0]
    exact = runner.run(cache, Batch.of([(SlotState(0), [3, 5, 7], "last")]))[0]
    # the same codes of 4 bits; of 8 bits, to 119 or to 127, they differ by the errors of both, 0.7 % each
    assert np.linalg.norm(exact - all_bits) < (0.02 if bits == 8 else 1e-5) * np.linalg.norm(all_bits)
    several = [(SlotState(0), [3, 5, 7], "last"), (SlotState(1), [3, 5, 7], "last")]
    both = runner.run(cache, Batch.of(several, logits_use=LogitsUse.LARGEST))
    np.testing.assert_array_equal(both, [exact, exact])
    best = np.argsort(-exact)[:5]
    for use, most in ((LogitsUse.LARGEST, 0.5), (LogitsUse.DRAWN, 0.2 if bits == 8 else 0.5)):
        found = runner.run(cache, Batch.of(several[:1], logits_use=use))[0]
        assert found.argmax() == exact.argmax()
        np.testing.assert_array_equal(found[best], exact[best])
        assert 0 < (found == exact).mean() < 1 + WITHOUT_JIT
        assert np.linalg.norm(found - exact) < most * np.linalg.norm(exact)
    work = {head: runner.describe()["work"]["weight_bytes"] for head, runner in runners.items()}
    assert WITHOUT_JIT or work[sliced] < (0.65 if bits == 8 else 0.95) * work[whole]
    for made in runners.values():
        made.close()


def test_refined_bytes_are_those_of_the_blocks() -> None:
    for _, layout in plan_linear(SLICED_FROM, 64, 8, sliced=True).slices[1:]:
        assert refined_bytes(layout) == layout.head_bytes + refined_blocks(layout.kind) * layout.block_bytes
        few = replace(layout, rows=3)
        assert refined_bytes(few) == few.nbytes
