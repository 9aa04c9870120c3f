"""What needs processes of its own: tests with the marker `cuda`, time from start to first token, the sanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

from tools.cuda_suite.models import synthetic
from tools.cuda_suite.settings import Facts, Say, Settings

#: Seconds from the process's start to the first token, reading the file left out.
START_SECONDS = 3.0
_TAIL = 2000
_TESTS_SECONDS = 240
_SANITIZER_SECONDS = 240
#: What the sanitizer watches: a prompt and some tokens of two golden models.
_WATCHED = ("llama-gqa-head-dim", "qwen3")


def tests(settings: Settings, say: Say) -> Facts:
    """`pytest -m cuda`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests/backends/cuda"]
    done = _run(command, _TESTS_SECONDS)
    say(done["tail"].splitlines()[-1] if done["tail"] else "no output")
    return {**done, "ok": done["code"] in (0, 5)}  # 5: there are none


def start(settings: Settings, say: Say) -> Facts:
    """Seconds of `edgellm run` for one token of the small model, twice: the first time the driver compiles."""
    folder, rows = synthetic(settings, settings.small, say), []
    command = [sys.executable, "-m", "edgellm", "run", str(folder), "--device", settings.device, "-n", "1", "Hello"]
    for name in ("first", "second"):
        begin = time.perf_counter()
        done = _run(command, _TESTS_SECONDS)
        rows.append(time.perf_counter() - begin)
        say(f"{name} start: {rows[-1]:.2f} s, exit code {done['code']}")
        if done["code"]:
            return {**done, "ok": False}
    begin = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        path.read_bytes()
    reading = time.perf_counter() - begin
    return {"ok": rows[1] - reading < START_SECONDS, "seconds": rows, "reading_seconds": reading}


def sanitizer(settings: Settings, say: Say) -> Facts:
    """compute-sanitizer over two golden models: memory errors, then races in shared memory."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        say("compute-sanitizer is not installed")
        return {"ok": True, "skipped": "compute-sanitizer is not installed"}
    facts: Facts = {"ok": True}
    for check in ("memcheck", "racecheck"):
        watched = [sys.executable, "-m", "tools.cuda_suite.watched", settings.device, *_WATCHED]
        done = _run([tool, "--tool", check, "--error-exitcode", "9", *watched], _SANITIZER_SECONDS)
        facts[check] = done
        facts["ok"] = facts["ok"] and done["code"] == 0
        say(f"{check}: {'clean' if done['code'] == 0 else done['tail'][-300:]}")
    return facts


def _run(command: list[str], seconds: int) -> Facts:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"code": -1, "tail": f"not done after {seconds} s"}
    return {"code": done.returncode, "tail": (done.stdout + done.stderr)[-_TAIL:]}
