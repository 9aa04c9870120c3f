"""What a device gets, what a conversion will hold and take: arithmetic on real shapes without their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.convert.budget import plan
from edgellm.convert.devices import DEVICES, Device, find_device
from edgellm.convert.forecast import Rates, foresee
from edgellm.convert.job import make_job
from edgellm.convert.recipe import make_recipe
from edgellm.convert.stages import stages_of
from edgellm.convert.targets import choose
from edgellm.errors import OutOfMemoryError, UsageError
from edgellm.model import fuse, open_model
from tests.api.models import write_model
from tests.convert.converting import golden, tokens


def test_more_memory_never_means_fewer_bits_and_less_may_mean_none(tmp_path: Path) -> None:
    with open_model(write_model(tmp_path / "model", hidden_size=128)) as model:
        chosen = [choose(model, Device("x", memory, 50.0)) for memory in (0.43, 1, 8, 64)]
        assert [target.bits for target in chosen] == sorted(target.bits for target in chosen)
        assert all(target.weights_bytes + target.cache_bytes <= target.usable_bytes for target in chosen)
        assert chosen[-1].settings() == {"bits": 8, "group_size": 128}
        assert choose(model, Device("slow", 8, 0.0005)).bits == 4  # 8 bits would be slower than a reader
        with pytest.raises(UsageError, match="even at 2 bits"):
            choose(model, Device("tiny", 0.3, 50.0))


def test_devices_have_names_of_their_own() -> None:
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    assert find_device("Jetson-Orin-Nano-8GB").memory_gb == 8
    with pytest.raises(UsageError, match="laptop-8gb"):
        find_device("toaster")


def test_a_limit_of_memory_sends_activations_to_a_file_and_then_refuses() -> None:
    with open_model(golden("llama-mha")) as model:
        job = make_job(model, make_recipe({}))
        free = plan(job, 65536, None, process_bytes=0)
        widest = max(unit.in_features for unit in job.units if unit.layer is not None)
        assert free.activation_bytes == 4 * 65536 * widest
        tight = plan(job, 65536, free.fixed_bytes, process_bytes=0)
        assert (tight.activation_bytes, tight.step_tokens) == (0, free.step_tokens)
        assert tight.spilled_bytes > free.spilled_bytes
        small = plan(job, 65536, free.fixed_bytes - 1, process_bytes=0)
        assert small.step_tokens < free.step_tokens
        with pytest.raises(OutOfMemoryError, match="needs"):
            plan(job, 65536, 1000, process_bytes=0)


def test_a_forecast_is_of_the_files_that_will_be_written() -> None:
    with open_model(golden("llama-mha")) as model:
        job = make_job(model, make_recipe({"group_size": 16}))
        rates = Rates(product=1e11, rounding=1e8)
        forecast = foresee(job, tokens(), plan(job, tokens().tokens, None), rates)
        longer = foresee(job, tokens(64), plan(job, tokens(64).tokens, None), rates)
        on_a_card = foresee(job, tokens(), plan(job, tokens().tokens, None), replace(rates, reading=1e4))
    assert forecast.output_bytes == job.nbytes < forecast.source_bytes
    assert 0 < forecast.seconds < longer.seconds
    moved = forecast.source_bytes + forecast.output_bytes
    assert on_a_card.seconds - forecast.seconds == pytest.approx(moved / 1e4, rel=1e-3)
    assert forecast.as_dict()["calibration_tokens"] == 8 * 24


@pytest.mark.parametrize("name", ["llama-mha", "gemma3", "olmo2", "phi3"])
def test_stages_show_every_linear_once_and_keep_one_buffer(name: str) -> None:
    with open_model(golden(name)) as model:
        program = fuse(model.weights.program)
        stages = stages_of(program, 1)
    shown = [weight for stage in stages if stage.linear for weight in stage.linear.weights]
    linears = [w for op in program.ops if op.layer == 1 and op.kind == "linear" for w in op.weights]
    assert shown == linears
    assert [stage.keeps for stage in stages][1:] == ["a", "x", "m", "x"]
