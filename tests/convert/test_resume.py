"""A run that was killed goes on, and the bytes are those of a run that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.convert.output import staging_folder
from edgellm.convert.state import FILE, read_state
from edgellm.errors import EdgeLLMError, OutputError
from edgellm.model import open_model
from tests.api.models import write_model
from tests.convert.converting import contents, convert, golden

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
SETTINGS = {"group_size": 16, "desc_act": True, "lm_head_bits": 8}


@needs_fork
@pytest.mark.parametrize("settings", [SETTINGS, {"method": "awq", "group_size": 16}, {"method": "rtn"}], ids=str)
def test_killed_at_random_moments(settings: dict, tmp_path: Path) -> None:
    source, out = golden("smollm3"), tmp_path / "out"
    convert(source, tmp_path / "whole", **settings)
    start = time.monotonic()  # what is compiled is compiled by now
    convert(source, tmp_path / "again", **settings)
    took = time.monotonic() - start
    expected = contents(tmp_path / "whole")
    assert contents(tmp_path / "again") == expected
    rng = random.Random(3)
    for _ in range(6):
        killed(lambda: convert(source, out, resume=True, **settings), rng.uniform(0.05, 0.9) * took)
        if not out.exists():
            with pytest.raises(EdgeLLMError):
                open_model(staging_folder(out))
            continue
        assert contents(out) == expected
        shutil.rmtree(out)
    convert(source, out, resume=True, overwrite=True, **settings)
    assert contents(out) == expected


def killed(work, after_s: float) -> None:
    """Do `work` in a child that is killed after a while."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@needs_fork
def test_what_an_earlier_run_did_is_not_done_again_unless_it_is_damaged(tmp_path: Path) -> None:
    source, out = golden("smollm3"), tmp_path / "out"
    convert(source, tmp_path / "whole", **SETTINGS)
    killed_before_the_end(source, out)
    pieces = len(read_state(staging_folder(out)).pieces)
    result = convert(source, out, resume=True, **SETTINGS)
    assert (result.resumed_pieces, result.linears) == (pieces, ())
    assert contents(out) == contents(tmp_path / "whole")
    killed_before_the_end(source, tmp_path / "damaged")
    weights = staging_folder(tmp_path / "damaged") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    result = convert(source, tmp_path / "damaged", resume=True, **SETTINGS)
    assert result.linears != ()
    assert contents(tmp_path / "damaged") == contents(tmp_path / "whole")


def killed_before_the_end(source: Path, out: Path) -> None:
    """All pieces are done, the folder has not got its name."""
    from edgellm.convert.output import StagedOutput

    finish = StagedOutput.finish
    StagedOutput.finish = lambda *_, **__: os._exit(0)
    try:
        child = os.fork()
        if not child:
            try:
                convert(source, out, **SETTINGS)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
    finally:
        StagedOutput.finish = finish


@needs_fork
def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    source, out = golden("smollm3"), tmp_path / "out"
    killed_before_the_end(source, out)
    with pytest.raises(OutputError, match="another source or recipe"):
        convert(source, out, resume=True, **{**SETTINGS, "damp_percent": 0.02})
    result = convert(source, out, resume=True, overwrite=True, **{**SETTINGS, "damp_percent": 0.02})
    assert result.resumed_pieces == 0


def test_a_damaged_state_is_no_state(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("[1, 2")
    assert read_state(tmp_path) is None
    (tmp_path / FILE).write_text('{"version": "0", "identity": "", "pieces": {}}')
    assert read_state(tmp_path) is None


@pytest.mark.slow
def test_the_command_killed_twenty_times(tmp_path: Path) -> None:
    source, rng = write_model(tmp_path / "source", num_hidden_layers=4), random.Random(11)
    command = [sys.executable, "-m", "edgellm", "convert", str(source), "--sequences", "8", "--sequence-length", "32"]
    calibration = tmp_path / "text.txt"
    calibration.write_text("a b c d e f g h " * 400)
    command += ["--calibration", str(calibration), "--group-size", "16"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    took = time.monotonic() - start
    for _ in range(20):
        child = subprocess.Popen([*command, str(tmp_path / "out"), "--resume", "--overwrite"])
        time.sleep(rng.uniform(0.1, 1.0) * took)
        child.kill()
        child.wait()
    subprocess.run([*command, str(tmp_path / "out"), "--resume", "--overwrite"], check=True, capture_output=True)
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert found.pop("report.json") != expected.pop("report.json")  # it tells how long the run took
    assert found == expected
