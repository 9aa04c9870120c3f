"""Peers: settings tuned, figures counted right, a disturbed or failing turn told apart."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import UsageError
from tools import bench_peers
from tools.make_synthetic import model_config
from tools.peers import quiet
from tools.peers.engines import ENGINES, chosen, missing, settings
from tools.peers.environments import left_out
from tools.peers.places import Work
from tools.peers.rounds import Figures, Outcome, Workload, jobs, read_turn
from tools.peers.table import cache_bytes, markdown, ratios, summary
from tools.peers.tune import contenders, tune
from tools.peers.turns import Patience, Turn, WorkerFailed, take

LOAD = Workload((512,), 64, (0, 2048), 2)
LLAMA_1B, QWEN_05B, LLAMA_7B = map(model_config, ("llama-3.2-1b", "qwen2.5-0.5b", "llama-2-7b"))


def test_what_a_build_of_llama_cpp_leaves_out() -> None:
    cpuinfo = "processor: 0\nflags\t\t: fpu avx2 fma avx512f avx512_vnni\nprocessor: 1\n"
    assert left_out("CPU : AVX2 = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 1 |", cpuinfo) == []
    assert left_out("CPU : AVX2 = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 0 |", cpuinfo) == ["AVX512_VNNI"]


def test_engines_by_name_and_by_beginning() -> None:
    assert [engine.name for engine in chosen(["llama.cpp-q4_k_m", "openvino"])] == ["llama.cpp-q4_k_m", "openvino"]
    assert [engine.name for engine in chosen(["edgellm"])] == ["edgellm"]
    assert len(chosen(["llama.cpp"])) == 6
    assert chosen([]) == list(ENGINES)
    with pytest.raises(UsageError, match="no such engine"):
        chosen(["vllm"])


def test_why_an_engine_is_missing_and_what_tuning_chose(tmp_path: Path) -> None:
    work, engine = Work(tmp_path), chosen(["llama.cpp-q4_0"])[0]
    folder = work.shape("s")
    folder.mkdir(parents=True)
    assert missing(engine, "s", work) == "no environment: bench_peers.py setup llama.cpp"
    python = work.python("llama.cpp")
    python.parent.mkdir(parents=True)
    python.touch()
    assert missing(engine, "s", work) == "no model: bench_peers.py models"
    (folder / "q4_0.json").write_text('{"missing": "too large"}')
    assert missing(engine, "s", work) == "too large"
    assert settings(engine, "s", work)["flash_attn"] is True
    work.tuned("s").write_text(json.dumps({"choice": {engine.name: {"flash_attn": False}}}))
    tuned = settings(engine, "s", work)
    assert (tuned["flash_attn"], tuned["repack"]) == (False, True)
    assert tuned["state"].endswith("llama.cpp-state-flash_attn-false")


def test_jobs_keep_start_and_depth_apart(tmp_path: Path) -> None:
    engine = chosen(["llama.cpp-q4_0"])[0]
    shallow, deep = jobs("s", LLAMA_7B, engine, Workload((512, 4096), 64, (0, 2048, 8192), 2), Work(tmp_path), 3)
    assert [step["prompt"] for step in shallow["steps"]] == [512, 1]  # 4096 is all of this model's context
    assert [step["prompt"] for step in deep["steps"]] == [2048]
    assert "state" in deep["options"]
    assert "state" not in shallow["options"]
    assert shallow["seed"] != jobs("s", LLAMA_7B, engine, LOAD, Work(tmp_path), 4)[0]["seed"]
    assert len(jobs("s", LLAMA_7B, engine, Workload((512,), 64, (0,), 2), Work(tmp_path), 0)) == 1


def test_the_best_of_a_process_counts_and_start_only_once() -> None:
    figures = Figures()
    step = {"prompt": 512, "generate": 0, "decode_s": 0.0}
    steps = [{**step, "prefill_s": 2.0}, {**step, "prefill_s": 1.0}, {"prompt": 1, "generate": 64, "decode_s": 2.0}]
    read_turn(Turn({"seconds": 0.5, "head": "int8"}, 0.9, steps, 1000), figures, starts=True)
    steps = [{"prompt": 2048, "generate": 64, "prefill_s": 9.0, "decode_s": 4.0}]
    read_turn(Turn({"seconds": 0.7}, 1.1, steps, 5000, others=0.02), figures, starts=False)
    assert figures.values == {
        "prefill 512": [512.0],
        "decode 0": [32.0],
        "decode 2048": [16.0],
        "first token": [0.9],
        "load": [0.5],
        "memory": [1000],
    }
    assert (figures.facts, figures.others) == ({"head": "int8"}, 0.02)


FACTS = {"weight_bytes": 10**9, "head": "Q8_0", "cache_item_bytes": 2, "cache_head_bytes": 0}


def outcome() -> Outcome:
    own = {"prefill 512": [300.0, 330.0], "decode 0": [50.0, 50.0], "first token": [0.5, 0.5]}
    fast = {"prefill 512": [100.0, 110.0], "decode 0": [40.0, 50.0], "first token": [1.0, 1.0]}
    slow = {"prefill 512": [200.0, 100.0], "decode 0": [10.0, 10.0], "first token": [0.25, 0.25]}
    engines = {"edgellm": Figures(own, dict(FACTS)), "a": Figures(fast, dict(FACTS), others=0.3), "b": Figures(slow)}
    engines["c"] = Figures(problem="no environment")
    return Outcome(engines, [30e9, 40e9], [8e11], 3)


def test_ratios_are_paired_by_round_against_the_best_median() -> None:
    found = {(entry["engine"], entry["figure"]): entry for entry in ratios(outcome())}
    assert found["edgellm", "prefill 512"]["peer"] == "b"
    assert found["edgellm", "prefill 512"]["rounds"] == [1.5, 3.3]
    assert (found["edgellm", "decode 0"]["peer"], found["edgellm", "decode 0"]["median"]) == ("a", 1.125)
    assert (found["edgellm", "first token"]["peer"], found["edgellm", "first token"]["median"]) == ("b", 0.5)


def test_summary_and_table() -> None:
    facts = {**summary(outcome(), LLAMA_1B, LOAD), "quiet_limit": 0.05}
    # 2 * 16 layers * 8 heads * 64 numbers * 2 bytes a token, behind 1 token and half of 64
    assert cache_bytes(LLAMA_1B, FACTS, 33) == 2 * 16 * 8 * 64 * 2 * 34
    read = 10**9 + cache_bytes(LLAMA_1B, FACTS, 33)
    assert facts["engines"]["edgellm"]["read_bytes_per_token"] == {0: read}
    assert facts["engines"]["edgellm"]["bandwidth_share"][0] == pytest.approx(50 * read / 40e9)
    json.dumps(facts)
    text = markdown("llama-3.2-1b", facts, LOAD)
    assert "random weights" in text.splitlines()[0]
    assert "| edgellm | Q8_0 | 315 | 50.0 | - | 0.50 |" in text
    assert "| c | no environment |" in text
    assert "thrown away because others used the machine: 3" in text
    assert "NOT QUIET, others' share in turns that were kept: a 30%" in text
    assert "edgellm, prefill 512: 2.40x (1.50-3.30) of b" in text


def test_contenders_are_close_at_one_figure_at_least() -> None:
    def tried(prefill: float, decode: float) -> list[dict[str, Any]]:
        return [{"options": {}, "rates": {"prefill 512": prefill, "decode 0": decode}}]

    found = {
        "tried": {"a": tried(100, 50), "b": tried(200, 10), "c": tried(110, 39)},
        "choice": {name: {} for name in "abc"},
    }
    assert contenders(found) == ["a", "b"]


def test_tuning_keeps_the_fastest_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, engines = Work(tmp_path), chosen(["llama.cpp-q4_0", "edgellm"])
    work.shape("s").mkdir(parents=True)
    monkeypatch.setattr("tools.peers.tune.missing", lambda *given: None)

    def rounds(shape: str, config: Any, engines: list[Any], load: Workload, *given: Any) -> Outcome:
        options = settings(engines[0], shape, work)
        prefill = 100.0 if options["flash_attn"] else 120.0
        values = {"prefill 512": [prefill + (5.0 if options.get("n_ubatch") == 128 else 0.0)]}
        values |= {f"decode {depth}": [30.0 if options["flash_attn"] else 10.0] for depth in load.depths}
        return Outcome({engines[0].name: Figures(values)})

    monkeypatch.setattr("tools.peers.tune.run_rounds", rounds)
    found = tune("s", LLAMA_1B, engines, LOAD, work, Patience(), lambda text: None)
    assert found["choice"] == {"llama.cpp-q4_0": {"flash_attn": True, "n_ubatch": 128}}
    assert found["contenders"] == ["llama.cpp-q4_0"]
    assert json.loads(work.tuned("s").read_text()) == found
    assert settings(engines[0], "s", work)["n_ubatch"] == 128


class Tuning:
    """In place of rounds: what each engine does, a rate of everything, a problem, or an interruption."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work, self.rates, self.seen = Work(tmp_path), {}, []
        self.work.shape("s").mkdir(parents=True)
        monkeypatch.setattr("tools.peers.tune.missing", lambda *given: None)
        monkeypatch.setattr("tools.peers.tune.run_rounds", self._rounds)

    def _rounds(self, shape: str, config: Any, engines: list[Any], load: Workload, *given: Any) -> Outcome:
        (engine,) = engines
        self.seen.append((engine.name, settings(engine, shape, self.work).get("attention_backend")))
        rate = self.rates[engine.name]
        if rate is None:
            raise KeyboardInterrupt
        if rate == 0:
            return Outcome({engine.name: Figures(problem="out of paint")})
        return Outcome({engine.name: Figures({"prefill 512": [rate], "decode 0": [rate]}, others=0.25)})

    def tune(self, *names: str) -> dict[str, Any]:
        said: list[str] = []
        found = tune("s", LLAMA_1B, chosen(names), LOAD, self.work, Patience(), said.append)
        return {**found, "said": said}


def test_tuning_again_forgets_an_engine_that_runs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = Tuning(tmp_path, monkeypatch)
    tuning.rates = {"openvino": 9.0, "ctranslate2": 8.0}
    assert tuning.tune("openvino", "ctranslate2")["contenders"] == ["openvino", "ctranslate2"]
    assert [backend for name, backend in tuning.seen if name == "openvino"] == ["PA", "SDPA"]
    tuning.rates["openvino"] = 0
    found = tuning.tune("openvino")
    assert [text.rsplit(": ", 1)[1] for text in found["said"]] == ["out of paint"] * 2
    assert (list(found["tried"]), list(found["choice"])) == (["ctranslate2"], ["ctranslate2"])
    assert found["contenders"] == ["ctranslate2"]


def test_who_interrupts_tuning_keeps_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = Tuning(tmp_path, monkeypatch)
    tuning.rates = {"openvino": 9.0, "ctranslate2": None}
    tuning.tune("openvino")
    before = json.loads(tuning.work.tuned("s").read_text())
    assert before["choice"] == {"openvino": {"attention_backend": "PA"}}
    with pytest.raises(KeyboardInterrupt):
        tuning.tune("ctranslate2")
    assert json.loads(tuning.work.tuned("s").read_text()) == before


def test_the_command_says_what_was_tuned_and_whether_it_was_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = {name: [{"options": {}, "rates": {}, "others": others}] for name, others in (("a", 0.02), ("b", 0.3))}
    found = {"choice": {"a": {"x": 1}, "b": {}}, "tried": tried, "contenders": ["b"]}
    monkeypatch.setattr(bench_peers, "tune", lambda *given: found)
    assert bench_peers.main(["--work", str(tmp_path), "tune", "--shape", "qwen2.5-0.5b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "qwen2.5-0.5b: a: {'x': 1} (too slow to be the fastest at anything)",
        "qwen2.5-0.5b: b: {} (contender; NOT QUIET, others took 30%: tune again)",
    ]


def test_only_contenders_run_unless_engines_are_named(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.shape("s").mkdir(parents=True)

    def engines(*names: str) -> list[str]:
        return [engine.name for engine in bench_peers._engines(argparse.Namespace(engines=names), "s", work)]

    assert engines() == [engine.name for engine in ENGINES]
    work.tuned("s").write_text(json.dumps({"contenders": ["openvino"]}))
    assert engines() == ["edgellm", "edgellm-head4", "openvino"]
    assert engines("ctranslate2") == ["ctranslate2"]


def test_others_are_what_is_left_of_the_busy_time() -> None:
    stat = "cpu  100 20 30 800 40 5 5 0 7 0\ncpu0 1 2 3 4\n"
    assert quiet.parse(stat, 100) == (1.6, 10.0)
    assert quiet.others(quiet.Times(1.0, 10.0, 5.0), quiet.Times(4.0, 20.0, 7.5)) == pytest.approx(0.05)
    assert quiet.others(quiet.Times(1.0, 10.0, 5.0), quiet.Times(1.0, 10.0, 5.0)) == 0.0
    before = quiet.now()
    assert before.total >= before.busy > 0


class Shares:
    """In place of the watch: others' share of one turn after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
        self._left = list(shares)
        monkeypatch.setattr(quiet, "wait", lambda limit, seconds: True)
        monkeypatch.setattr(quiet, "others", lambda before, after: self._left.pop(0))


def worker(tmp_path: Path, *lines: str, status: int = 0) -> Path:
    """An interpreter that says these lines, whatever it is to run."""
    path = tmp_path / "python"
    said = "\n".join(f"echo '{line}'" for line in lines)
    path.write_text(f"#!/bin/sh\n{said}\necho a reason >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


LOADED, DONE = '{"event": "loaded", "seconds": 1.5}', '{"event": "done"}'


def test_a_disturbed_turn_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"x")
    job = {"model": str(model), "threads": 2}
    patience = Patience(retries=2)
    Shares(monkeypatch, 0.5, 0.02)
    step = '{"event": "step", "prompt": 512, "generate": 0, "prefill_s": 1.0, "decode_s": 0.0}'
    python = worker(tmp_path, "a library talks", LOADED, step, '{"event": "memory", "bytes": 7}', DONE)
    turn = take(python, "none", job, patience)
    assert (turn.others, turn.peak_bytes, len(turn.steps), patience.thrown_away) == (0.02, 7, 1, 1)
    Shares(monkeypatch, 0.5, 0.3, 0.4)
    assert take(python, "none", job, patience).others == 0.3
    assert patience.thrown_away == 3


@pytest.mark.parametrize(("lines", "status"), [([LOADED], 0), ([LOADED, DONE], 1)])
def test_a_worker_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], status: int
) -> None:
    Shares(monkeypatch, 0.0)
    (tmp_path / "model").touch()
    with pytest.raises(WorkerFailed, match="a reason"):
        take(
            worker(tmp_path, *lines, status=status),
            "none",
            {"model": str(tmp_path / "model"), "threads": 1},
            Patience(),
        )


def test_run_without_peers_prints_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.peers.rounds._measure_limits", lambda *given: None)
    out = tmp_path / "out.json"
    given = ["--work", str(tmp_path), "run", "--shape", "qwen2.5-0.5b", "--rounds", "1", "--json", str(out)]
    assert bench_peers.main(given) == 0
    shown = capsys.readouterr().out
    assert "| openvino | no environment: bench_peers.py setup openvino |" in shown
    report = json.loads(out.read_text())
    assert report["weights"] == "random"
    assert report["shapes"]["qwen2.5-0.5b"]["engines"]["ctranslate2"]["figures"] == {}


def test_wrong_arguments_end_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_peers.main(["--work", str(tmp_path), "run", "--engines", "vllm"]) == UsageError.exit_code
    assert bench_peers.main(["--work", str(tmp_path), "setup", "vllm"]) == UsageError.exit_code
    assert "no such environment" in capsys.readouterr().err
