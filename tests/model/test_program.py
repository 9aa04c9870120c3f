"""The program: what ops a config becomes, how fusion joins them, and how both are printed."""

from __future__ import annotations

from collections import Counter

from edgellm.model import build_program, fuse, open_model
from edgellm.model.program import Op
from tests.golden_models import cases
from tests.model.configs import read


def kinds(ops: tuple[Op, ...], layer: int | None) -> list[str]:
    return [op.kind for op in ops if op.layer == layer]


ATTENTION = ["rms_norm", "linear", "linear", "linear", "store_kv", "rope", "attention", "linear", "add"]
MLP = ["rms_norm", "linear", "linear", "act_mul", "linear", "add"]
FUSED_ATTENTION = ["rms_norm", "linear", "store_kv", "rope", "attention", "linear"]
FUSED_MLP = ["rms_norm", "linear", "act_mul", "linear"]


def test_a_llama_layer() -> None:
    program = build_program(read())
    assert kinds(program.ops, 0) == kinds(program.ops, 1) == ATTENTION + MLP
    assert kinds(program.ops, None) == ["embed", "rms_norm", "logits"]


def test_fusion_joins_projections_and_residuals() -> None:
    fused = fuse(build_program(read()))
    assert kinds(fused.ops, 0) == FUSED_ATTENTION + FUSED_MLP
    qkv, o_proj, gate_up, down = [op for op in fused.ops if op.kind == "linear" and op.layer == 0]
    assert qkv.outputs == ("q", "k", "v")
    assert gate_up.outputs == ("gate", "up")
    assert (o_proj.inputs, o_proj.outputs) == (("a", "x"), ("x",))
    assert down.inputs == ("m", "x")
    assert "y" not in fused.buffers


def test_norms_on_branch_outputs_keep_the_add_apart() -> None:
    fused = fuse(build_program(read(model_type="olmo2")))
    assert Counter(kinds(fused.ops, 0))["add"] == 2
    assert "y" in fused.buffers


def test_every_buffer_is_written_before_it_is_read_and_every_weight_is_used() -> None:
    for case in cases():
        with open_model(case.folder) as model:
            for program in (model.weights.program, fuse(model.weights.program)):
                written = {"token_ids"}
                for op in program.ops:
                    assert set(op.inputs) <= written, (case.name, op)
                    written |= set(op.outputs)
                assert {name for op in program.ops for name in op.weights} == set(program.weights)


def test_parameters_count_a_tied_head_once() -> None:
    d, f, v, kv = 64, 96, 100, 32
    layer = d * d * 2 + 2 * d * kv + 3 * d * f + 2 * d
    assert build_program(read()).parameters == 2 * layer + 2 * v * d + d
    assert build_program(read(tie_word_embeddings=True)).parameters == 2 * layer + v * d + d


def test_the_printed_program_folds_equal_layers() -> None:
    text = fuse(build_program(read(num_hidden_layers=12))).table()
    assert "layers 0-11:" in text
    assert text.count("store_kv") == 1
    mixed = read(
        model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1, num_hidden_layers=4
    )
    text = build_program(mixed).table()
    assert "layers 0:" in text
    assert "layers 1-3:" in text
    assert "window=8" in text


def test_a_narrower_layer_has_buffers_of_its_own_width() -> None:
    plain = build_program(read(intermediate_size=[64, 96]))
    program = fuse(plain)
    gate_up = [op.outputs for op in program.ops if op.kind == "linear" and len(op.outputs) == 2]
    assert gate_up == [("gate.64", "up.64"), ("gate", "up")]
    assert (program.buffers["m"], program.buffers["m.64"]) == (96, 64)
    assert program.weights["layers.0.mlp.down_proj"].shape == (64, 64)
    assert plain.parameters == build_program(read()).parameters - 3 * 64 * 32
