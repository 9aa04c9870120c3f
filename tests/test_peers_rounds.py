"""Peers: rounds whose order turns, engines that fail, workers that say what they did, environments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.golden_models import GOLDEN_FOLDER
from tools.make_synthetic import model_config
from tools.peers import environments, quiet, rounds
from tools.peers.engines import chosen
from tools.peers.environments import SetupFailed, check_native, set_up, versions
from tools.peers.places import REPOSITORY, Work
from tools.peers.rounds import Workload, run_rounds
from tools.peers.turns import Patience, Turn, WorkerFailed, take
from tools.peers.workers import drive as driver

LOAD = Workload((512,), 64, (0, 2048), 2)
LLAMA_1B = model_config("llama-3.2-1b")
LIMITS = {"bandwidth": 35e9, "integer_peak": 9e11}


class Machine:
    """In place of turns: who was started for what, and what comes of it."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work, self.started, self.broken = Work(tmp_path), [], {}
        monkeypatch.setattr(rounds, "missing", lambda engine, *given: self.broken.get(("missing", engine.name)))
        monkeypatch.setattr(rounds, "take", self._take)

    def _take(self, python: Path, worker: str, job: dict[str, Any], patience: Patience) -> Turn:
        steps = [(step["prompt"], step["generate"]) for step in job.get("steps", [])]
        self.started.append((worker, steps))
        problem = self.broken.get((worker, len(steps)))
        if problem is not None:
            raise WorkerFailed(problem)
        if worker == "yardstick":
            return Turn(limits=dict(LIMITS))
        done = [{"prompt": p, "generate": g, "prefill_s": 1.0, "decode_s": 2.0} for p, g in steps]
        return Turn({"seconds": 0.5, "isa": "any"}, 0.9, done, 1000)

    def run(self, names: list[str], count: int = 2) -> rounds.Outcome:
        return run_rounds("s", LLAMA_1B, chosen(names), LOAD, count, self.work, Patience(), lambda text: None)


SHORT, DEEP = [(512, 0), (1, 64)], [(2048, 64)]


def test_a_round_is_limits_and_every_engine_in_an_order_that_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    outcome = machine.run(["ctranslate2", "openvino"])
    first = [("ctranslate2", SHORT), ("ctranslate2", DEEP), ("openvino", SHORT), ("openvino", DEEP)]
    untimed = [("ctranslate2", []), ("openvino", [])]
    limits = [("yardstick", [])]
    assert machine.started == [*untimed, *limits, *first, *limits, *first[2:], *first[:2]]
    assert (outcome.bandwidth, outcome.integer_peak) == ([35e9] * 2, [9e11] * 2)
    figures = outcome.engines["openvino"]
    assert figures.values["decode 2048"] == figures.values["decode 0"] == [32.0, 32.0]
    assert (figures.values["first token"], figures.facts["isa"]) == ([0.9, 0.9], "any")


def test_an_engine_that_fails_is_left_out_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    machine.broken = {
        ("missing", "edgellm"): "no model",
        ("openvino", 0): "does not start",
        ("ctranslate2", len(DEEP)): "no memory",
        ("yardstick", 0): "no clock",
    }
    outcome = machine.run(["edgellm", "openvino", "ctranslate2"], 2)
    problems = {name: figures.problem for name, figures in outcome.engines.items()}
    assert problems == {"edgellm": "no model", "openvino": "does not start", "ctranslate2": "no memory"}
    assert machine.started.count(("openvino", [])) == 1
    assert ("openvino", SHORT) not in machine.started
    assert machine.started.count(("ctranslate2", DEEP)) == 1
    assert "decode 2048" not in outcome.engines["ctranslate2"].values
    assert outcome.engines["ctranslate2"].values["prefill 512"] == [512.0]
    assert outcome.bandwidth == []


class Echo:
    """An engine that takes a second for each token."""

    prompts: ClassVar[list[list[int]]] = []

    def __init__(self, job: dict[str, Any]) -> None:
        assert job["options"] == {"repack": True}

    def run(self, prompt: list[int], generate: int) -> tuple[float, float]:
        self.prompts.append(prompt)
        return float(len(prompt)), float(generate)

    def facts(self) -> dict[str, Any]:
        return {"head": "Q8_0"}


def test_a_worker_draws_new_prompts_and_says_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [{"prompt": 5, "generate": 0, "repeat": 2}, {"prompt": 1, "generate": 3}]
    job = {"vocab_size": 50, "seed": 7, "options": {"repack": True}, "steps": steps}
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(job)])
    monkeypatch.setattr(Echo, "prompts", [])
    driver.drive(Echo)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line]
    assert [line["event"] for line in said] == ["loaded", "first", "step", "step", "step", "memory", "done"]
    assert said[0]["head"] == "Q8_0"
    assert said[2] == {"event": "step", "prompt": 5, "generate": 0, "prefill_s": 5.0, "decode_s": 0.0}
    assert (said[4]["prefill_s"], said[4]["decode_s"]) == (1.0, 3.0)
    assert said[5]["bytes"] > 1 << 20
    assert [len(prompt) for prompt in Echo.prompts] == [driver.FIRST_TOKEN_PROMPT, 5, 5, 1]
    assert Echo.prompts[1] != Echo.prompts[2]
    assert all(0 <= number < 50 for prompt in Echo.prompts for number in prompt)


def test_workers_import_their_engine_and_nothing_heavy() -> None:
    """What a worker imports counts as its engine's start."""
    code = "import sys; sys.modules['ctranslate2'] = sys; import tools.peers.workers.ctranslate2, "
    code += "tools.peers.workers.llama_cpp; print([n for n in ('numpy', 'edgellm', 'numba') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_edgellm_and_the_yardstick_are_workers_too() -> None:
    """The real ones, in processes of their own: what they ask of the package is there."""
    model = GOLDEN_FOLDER / "tinyllama"
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    steps = [{"prompt": 9, "generate": 0, "repeat": 2}, {"prompt": 3, "generate": 4}]
    job = {"model": str(model), "vocab_size": vocab_size, "threads": 1, "context": 64, "seed": 1, "steps": steps}
    patience = Patience(limit=1.0, retries=0, wait_s=0.0)
    turn = take(Path(sys.executable), "edgellm", {**job, "options": {"lm_head": "int4"}}, patience)
    assert [(step["prompt"], step["generate"]) for step in turn.steps] == [(9, 0), (9, 0), (3, 4)]
    assert all(step["prefill_s"] > 0 for step in turn.steps)
    assert turn.steps[2]["decode_s"] > 0
    assert turn.first_token_s > turn.loaded["seconds"] > 0
    assert (turn.loaded["head"], turn.loaded["cache_item_bytes"]) == ("int4", 2)
    assert turn.loaded["weight_bytes"] > 0
    assert turn.peak_bytes > 1 << 20
    limits = take(Path(sys.executable), "yardstick", {"model": "", "threads": 1}, patience).limits
    assert limits["integer_peak"] > limits["bandwidth"] > 1e8


def test_waiting_for_others_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_SAMPLE_SECONDS", 0.0)
    shares = iter([0.9, 0.5, 0.01])
    monkeypatch.setattr(quiet, "others", lambda before, after: next(shares))
    assert quiet.wait(0.05, 60.0) is True
    monkeypatch.setattr(quiet, "others", lambda before, after: 0.9)
    assert quiet.wait(0.05, 0.0) is False


class Commands:
    """In place of processes: what was run, with which variables, and what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, printed: str = "") -> None:
        self.ran: list[tuple[list[str], dict[str, str]]] = []
        self.printed = printed
        monkeypatch.setattr(environments, "_run", self._run)

    def _run(self, command: list[str], log: Path | None, **variables: str) -> str:
        self.ran.append((command, variables))
        return self.printed


def test_llama_cpp_is_compiled_and_the_rest_are_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, said = Commands(monkeypatch, "CPU : NEON = 1"), []
    monkeypatch.setattr(environments, "left_out", lambda info, cpuinfo: [])
    work = Work(tmp_path / "work")
    set_up("llama.cpp", work, 3, said.append)
    made, install, asked = commands.ran
    assert made[0][1:3] == ["-m", "venv"]
    assert install[0][-2:] == ["--no-binary", "llama-cpp-python"]
    assert install[1]["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"
    assert "GGML_NATIVE=ON" in install[1]["CMAKE_ARGS"]
    assert "llama_print_system_info" in asked[0][-1]
    assert said[-1] == "llama.cpp: CPU : NEON = 1"
    commands.ran.clear()
    set_up("make", work, 3, said.append)
    assert commands.ran[-1][0][-3:] == ["uninstall", "--yes", "torchvision"]
    assert not any("--no-binary" in command for command, _ in commands.ran)


def test_a_build_that_leaves_out_what_the_processor_can_is_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    Commands(monkeypatch, "CPU : AVX2 = 1")
    monkeypatch.setattr(environments, "left_out", lambda info, cpuinfo: ["AVX512_VNNI"])
    with pytest.raises(SetupFailed, match="without AVX512_VNNI"):
        check_native(Path("python"))


def test_versions_of_what_is_installed_and_commands_that_fail(tmp_path: Path) -> None:
    python = Work(tmp_path).python("ctranslate2")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    found = versions("ctranslate2", Work(tmp_path))
    assert list(found) == ["ctranslate2", "numpy"]
    with pytest.raises(SetupFailed, match="out of paint"):
        environments._run([sys.executable, "-c", "raise SystemExit('out of paint')"], None)
    log = tmp_path / "log"
    with pytest.raises(SetupFailed, match=r"see .*log"):
        environments._run([sys.executable, "-c", "print('much'); raise SystemExit(1)"], log)
    assert log.read_text() == "much\n"
