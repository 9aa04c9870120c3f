"""How memory is counted, and that the estimate meets the measured peak."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import edgellm
from edgellm.api import memory
from tests.api.models import write_model

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A writer of files under a made-up /proc and /sys/fs/cgroup."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    write(proc__meminfo="MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    return write


def test_available_is_the_least_of_machine_and_control_groups(machine):
    assert memory.available_bytes() == 3000 * 1024
    machine(
        proc__self__cgroup="0::/app/job\n",
        cgroup__app__memory_dot_max="2000000\n",
        cgroup__app__memory_dot_current="1500000\n",
        cgroup__app__memory_dot_stat="anon 5\ninactive_file 100000\n",
        cgroup__app__job__memory_dot_max="max\n",
        cgroup__app__job__memory_dot_current="1000\n",
    )
    assert memory.available_bytes() == 600_000
    machine(cgroup__app__memory_dot_current="9000000\n")
    assert memory.available_bytes() == 0


def test_available_in_a_version_1_control_group(machine):
    machine(
        proc__self__cgroup="5:cpu,memory:/x\n4:pids:/x\n",
        cgroup__memory__memory_dot_limit_in_bytes="9223372036854771712\n",
        cgroup__memory__memory_dot_usage_in_bytes="5\n",
        cgroup__memory__x__memory_dot_limit_in_bytes="1000000\n",
        cgroup__memory__x__memory_dot_usage_in_bytes="400000\n",
        cgroup__memory__x__memory_dot_stat="total_inactive_file 100\n",
    )
    assert memory.available_bytes() == 600_100


def test_damaged_files_of_the_system_change_nothing(machine):
    machine(proc__meminfo="MemAvailable: many kB\nMemTotal\n", proc__self__cgroup="rubbish\n0::/../..\n")
    assert memory.available_bytes() > 0


def test_this_process():
    assert 5 * MIB < memory.resident_bytes() <= memory.peak_bytes() + MIB
    assert memory.reserve_bytes(100 * MIB) == 32 * MIB
    assert memory.reserve_bytes(2000 * MIB) == 100 * MIB
    assert memory.reserve_bytes(10**12) == 512 * MIB


def test_a_limit_of_address_space_counts():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
        "from edgellm.api.memory import available_bytes; print(available_bytes())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(run.stdout) < 2 << 30


ESTIMATE = (
    "import edgellm, json, sys; print(json.dumps(edgellm.estimate(sys.argv[1], **json.loads(sys.argv[2])).as_dict()))"
)
MEASURE = """
import json, sys
import edgellm
from edgellm.api import memory
with edgellm.load(sys.argv[1], **json.loads(sys.argv[2])) as llm:
    options = {"max_tokens": 8, "ignore_eos": True}
    prompts = [[slot, *[i % 250 for i in range(llm.context - 9)]] for slot in range(llm.info["slots"])]
    for stream in [llm.stream(prompt, **options) for prompt in prompts]:
        stream.drain()
print(memory.peak_bytes())
"""


def in_fresh_process(code, folder, options):
    arguments = [sys.executable, "-c", code, str(folder), json.dumps(options)]
    return json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ({"hidden_size": 512, "num_hidden_layers": 6}, {"context": 1024}),
        (
            {"hidden_size": 256, "num_hidden_layers": 2, "vocab_rows": 60_000, "dtype": np.float16},
            {"context": 512, "slots": 4},
        ),
        ({"hidden_size": 64, "num_hidden_layers": 16}, {"context": 1024, "slots": 8, "cache_dtype": "float32"}),
        ({"hidden_size": 512, "num_hidden_layers": 6}, {"context": 1024, "backend": "reference"}),
    ],
    ids=["weights", "vocabulary", "cache", "reference"],
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(tmp_path, sizes, options):
    folder = write_model(tmp_path / "model", **sizes)
    estimate = in_fresh_process(ESTIMATE, folder, options)
    measured = in_fresh_process(MEASURE, folder, options)
    assert estimate["peak_bytes"] == pytest.approx(measured, rel=0.1)
    assert estimate["fits"]
    held = estimate["process_bytes"] + estimate["code_bytes"] + estimate["weights_bytes"]
    running = estimate["cache_bytes"] + estimate["scratch_bytes"]
    assert estimate["peak_bytes"] == held + max(estimate["loading_bytes"], running)


def test_an_estimate_reads_no_weights_and_grows_with_what_is_asked(tiny):
    small, large = edgellm.estimate(tiny, context=64), edgellm.estimate(tiny, context=1024, slots=2)
    assert small.weights_bytes == large.weights_bytes
    assert large.cache_bytes == 32 * small.cache_bytes
    assert edgellm.estimate(tiny, context=64, cache_dtype="float32").cache_bytes == 2 * small.cache_bytes
    assert json.loads(json.dumps(large.as_dict())) == large.as_dict()
    with pytest.raises(edgellm.UsageError, match="slots"):
        edgellm.estimate(tiny, slots=-1)
