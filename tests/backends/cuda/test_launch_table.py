"""The table of what a decode step launches: the committed file, and its bytes against what the emulator counts."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.cuda.shipped import shipped
from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState
from edgellm.model import fuse, open_model
from tests.backends.running import geometry
from tests.golden_models import GOLDEN_FOLDER
from tools.cuda_code.launches import Setting, config_of, launches
from tools.cuda_code.measured import committed, digest
from tools.cuda_code.moved import Held, moved
from tools.cuda_launches import SHOWN_CAPABILITIES, TABLE, main, shown
from tools.make_synthetic import model_config

_SECTOR = 32


def test_the_committed_table_is_what_shapes_and_measured_kernels_say() -> None:
    assert TABLE.read_text(encoding="ascii") == shown(), "python -m tools.cuda_launches --write"


def test_its_kernels_were_measured_as_they_are_shipped() -> None:
    code, rows = shipped(), committed()
    names = set(re.findall(r"\w+", TABLE.read_text(encoding="ascii"))) & set(code.entries)
    assert len(names) > 5
    for name in names:
        for capability in SHOWN_CAPABILITIES:
            if code.entries[name].runs_on(capability):
                assert rows[name][str(capability)]["text"] == digest(code, name, capability), name


@pytest.mark.parametrize("capability", [75, 87, 90])
def test_a_layer_of_the_7b_shape_takes_five_launches_and_reads_its_weights_once(capability: int) -> None:
    config = config_of(model_config("llama-2-7b"), "llama-2-7b")
    found = launches(config, Setting(capability))
    a_layer = Counter(launch.layer for launch in found if launch.layer is not None)
    assert set(a_layer.values()) == {5}
    assert len(found) == 5 * 32 + 2
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    products = [launch for launch in found if launch.layer is not None and launch.kernel.startswith("gemv")]
    assert sum(launch.moved.streamed for launch in products) == weights // 2 + weights // 128 * 2
    cache = [launch for launch in found if launch.work == "attention"]
    assert sum(launch.moved.streamed for launch in cache) == 32 * 2 * 1024 * 4096 * 2


@pytest.mark.parametrize(("capability", "lm_head"), [(80, "keep"), (75, "int8")])
def test_bytes_are_those_that_the_emulator_counts(capability: int, lm_head: str, shipped_gpu) -> None:
    fake = shipped_gpu(capability, measure=True)
    with open_model(GOLDEN_FOLDER / "llama-gqa-head-dim") as model:
        runner = CudaBackend().load(fuse(model.weights.program), model.weights, lm_head=lm_head)
    cache = runner.new_cache(geometry(runner, 128, 8, "float16"), 1)
    depth = 72  # more than a split of the context has
    state = SlotState(0, end=depth)
    cache.import_slot(state, {name: np.zeros_like(held) for name, held in cache.export_slot(state).items()})
    runner.run(cache, Batch.of([(state, [3], "last")]))
    held = Held({matrix.tiles: matrix for matrix in runner._model.weights.matrices.values()}, cache.geometry, depth)
    expected: dict[str, Counter[str]] = {}
    for call in cache.steps.calls(1, decode=True):
        sizes = moved(call, held)
        into = expected.setdefault(call.kernel, Counter())
        into.update(load=sizes.streamed + sizes.read, store=sizes.written, launches=1)
    for name, sizes in expected.items():
        touched = fake.statistics()[name].touched
        # arrays may begin and end in the middle of a sector
        assert sizes["load"] <= touched["load"] <= sizes["load"] + 16 * _SECTOR * sizes["launches"], name
        assert sizes["store"] <= touched["store"] <= sizes["store"] + 4 * _SECTOR * sizes["launches"], name


def test_another_model_and_what_is_refused(capsys) -> None:
    assert main(["qwen2.5-0.5b", "--capability", "120", "--batch", "8", "--lm-head", "int4"]) == 0
    shown_lines = capsys.readouterr().out.splitlines()
    assert "batch 8" in shown_lines[0]
    assert "5 launches a layer, 122 a step" in shown_lines[0]
    assert any(line.startswith("q_proj, k_proj, v_proj") and "gemv_w4g128_b8" in line for line in shown_lines)
    assert main(["no-such-model"]) == 2
    assert "no such model" in capsys.readouterr().err
