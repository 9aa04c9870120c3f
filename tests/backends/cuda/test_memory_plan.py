"""Which linears become one matrix, where buffers lie, and that plans hold what is then held."""

from __future__ import annotations

import pytest

from edgellm.backends.cuda.attention import check_heads
from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.cuda.matrices import plan_matrices
from edgellm.backends.cuda.space import plan_buffers
from edgellm.backends.slots import CacheGeometry
from edgellm.errors import BackendUnavailable, UsageError
from edgellm.model import fuse, open_model
from edgellm.model.cut import cut_ops
from tests.golden_models import GOLDEN_FOLDER


def matrices(name: str, head: str = "int8", first: int = 0):
    with open_model(GOLDEN_FOLDER / name) as model:
        program = fuse(model.weights.program)
        if first:
            program = cut_ops(program, first, len(program.ops))
        return program, plan_matrices(program, model.weights, head)


def names(plans) -> list[tuple[str, ...]]:
    return [tuple(name.rpartition(".")[2] for name in plan.names) for plan in plans]


def test_a_layer_has_four_matrices():
    _, plans = matrices("llama-mha")
    assert names(plans)[:5] == [
        ("embed_tokens",),
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    ]
    assert [plan.paired for plan in plans][:5] == [False, False, False, True, False]
    assert plans[3].outputs == ("m",)
    assert [plan.layout.bits for plan in plans] == [8] + [16] * (len(plans) - 2) + [8]


def test_norms_over_whole_rows_want_buffers_of_their_own():
    _, plans = matrices("olmo2")
    assert names(plans)[1:4] == [("q_proj",), ("k_proj",), ("v_proj",)]


@pytest.mark.parametrize(("head", "bits"), [("int8", 8), ("int4", 4), ("keep", 16)])
def test_a_tied_head_is_the_embedding_unless_the_program_begins_behind_it(head, bits):
    _, plans = matrices("llama-tied", head)
    assert sum("lm_head" in plan.names or "embed_tokens" in plan.names for plan in plans) == 1
    assert plans[0].layout.bits == bits
    _, plans = matrices("llama-tied", head, first=1)
    assert (plans[-1].names, plans[-1].layout.bits) == (("lm_head",), bits)


def test_no_such_head():
    with pytest.raises(UsageError, match="lm_head: no such choice; found int5"):
        matrices("llama-mha", "int5")


def test_buffers_of_one_matrix_lie_side_by_side():
    program, plans = matrices("llama-gqa-head-dim")
    places = plan_buffers(program, plans).places
    widths = [program.buffers[name] for name in "qkv"]
    assert [places[name][1:] for name in "qkv"] == [
        (0, sum(widths), widths[0]),
        (widths[0], sum(widths), widths[1]),
        (widths[0] + widths[1], sum(widths), widths[2]),
    ]
    assert len({places[name][0] for name in program.buffers}) == len(program.buffers) - 2


def test_heads_that_are_too_wide(monkeypatch):
    program, _ = matrices("llama-mha")
    object.__setattr__(program.config, "head_dim", 257)
    with pytest.raises(BackendUnavailable, match=r"head_dim: .* no attention for such heads; found 257"):
        check_heads(program)


@pytest.mark.parametrize("capability", [87, 90])
def test_a_plan_holds_what_is_held(capability, shipped_gpu):
    shipped_gpu(capability)
    with open_model(GOLDEN_FOLDER / "llama-tied") as model:
        program, config = fuse(model.weights.program), model.config
        sizes = (config.num_key_value_heads, config.head_dim)
        geometry = CacheGeometry(64, config.layer_windows, *sizes, 16, "float16")
        plan = CudaBackend().plan_bytes(program, model.weights, geometry, 2, device="cuda:0")
        runner = CudaBackend().load(program, model.weights, device="cuda:0")
    cache = runner.new_cache(geometry, 2)
    shared = capability == 87  # a Jetson: its memory is this machine's
    assert (plan.on_device is None) == shared
    held = plan if shared else plan.on_device
    block = 2 << 20  # the rest of a block that small allocations share
    assert runner.weight_nbytes <= held.weights + block
    assert held.weights <= runner.weight_nbytes + block
    assert held.cache <= cache.nbytes <= held.cache + block
    assert plan.lm_head == "int8"
    assert plan.peak > 0
