"""The team: many steps, threads that fail, steps that are stopped, several teams, fork, exit."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from edgellm.backends.cpu import team as team_module
from edgellm.backends.cpu.barrier import barrier
from edgellm.backends.cpu.cores import Cores
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.sync import STOP
from edgellm.backends.cpu.team import Team
from edgellm.errors import EngineClosed, UsageError
from tests.backends.cpu.kernels import WITHOUT_JIT

STEPS = 200 if WITHOUT_JIT else 10_000
ENDLESS = 1 << 40


@kernel
def rotate(cells, phases, sync, ith, nth):
    """In each phase every thread adds what its neighbour had before; without barriers sums go astray."""
    for phase in range(phases):
        value = cells[phase % 2, (ith + 1) % nth]
        cells[(phase + 1) % 2, ith] = cells[phase % 2, ith] + value
        if barrier(sync, nth, phase) != 0:
            return


@kernel
def idle(phases, sync, ith, nth):
    for phase in range(phases):
        if barrier(sync, nth, phase) != 0:
            return


@pytest.fixture(params=[1, 2, 3, 7])
def team(request):
    made = Team(request.param)
    yield made
    made.close()


def test_barriers_keep_the_phases_apart(team):
    cells = np.ones((2, team.threads), np.int64)
    for phases in (1, 2, 20):
        cells[:] = 1
        assert team.run(rotate, cells, phases, team.sync)
        assert (cells[phases % 2] == 2**phases).all()


def test_ten_thousand_steps():
    team = Team(2)
    cells = np.zeros((2, 2), np.int64)
    for step in range(STEPS):
        cells[0] = step
        assert team.run(rotate, cells, 1, team.sync, interruptible=step % 100 == 0)
        assert (cells[1] == 2 * step).all()
    team.close()


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("interruptible", [False, True])
def test_a_thread_that_fails_hangs_nobody(failing, interruptible):
    team = Team(3)

    def step(ith, nth):
        if ith == failing:
            raise ZeroDivisionError(f"in {ith}")
        idle(ENDLESS, team.sync, ith, nth)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match=f"in {failing}"):
            team.run(step, interruptible=interruptible)
    assert team.run(idle, 5, team.sync)  # and the team goes on
    team.close()


@pytest.mark.parametrize("interruptible", [False, True])
def test_stop_ends_a_step_within_a_quarter_of_a_second(team, interruptible):
    team.run(idle, 1, team.sync)
    asked = []

    def stop():
        time.sleep(0.05)
        asked.append(time.perf_counter())
        team.stop()

    other = threading.Thread(target=stop)
    other.start()
    assert team.run(idle, ENDLESS, team.sync, interruptible=interruptible) is False
    assert time.perf_counter() - asked[0] < 0.25
    other.join()
    assert team.run(idle, 3, team.sync) is True


def test_a_step_that_nobody_wants_any_more_ends_within_a_quarter_of_a_second(team):
    team.run(idle, 1, team.sync)
    asked = []

    def stopped():
        asked.append(time.perf_counter())
        return len(asked) > 2

    assert team.run(idle, ENDLESS, team.sync, interruptible=True, stopped=stopped) is False
    assert time.perf_counter() - asked[2] < 0.25
    assert team.run(idle, 3, team.sync, interruptible=True, stopped=lambda: False) is True


def test_two_teams_at_once():
    teams = [Team(2), Team(3)]
    results = []

    def work(team):
        done = []
        for _ in range(20 if WITHOUT_JIT else 200):
            cells = np.ones((2, team.threads), np.int64)
            done.append(team.run(rotate, cells, 6, team.sync) and (cells[0] == 64).all())
        results.append(all(done))

    others = [threading.Thread(target=work, args=(team,)) for team in teams for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(30)
    assert results == [True] * 4
    for team in teams:
        team.close()


def test_close_ends_step_and_threads_and_is_final():
    team = Team(3)
    before = {thread for thread in threading.enumerate() if thread.name.startswith("edgellm-")}
    outcome = []

    def work():
        outcome.append(team.run(idle, ENDLESS, team.sync))

    other = threading.Thread(target=work)
    other.start()
    time.sleep(0.05)
    team.close()
    other.join(5)
    assert outcome == [False]
    assert not any(thread.is_alive() for thread in before)
    team.close()
    with pytest.raises(EngineClosed):
        team.run(idle, 1, team.sync)


def test_a_team_that_nobody_has_ends_its_threads():
    before = set(threading.enumerate())
    team = Team(3)
    team.run(idle, 1, team.sync)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del team
    gc.collect()
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


def test_more_threads_than_cores_leave_a_note():
    team = Team(3, cores=Cores((0, 1), 2, None))
    assert (team.threads, team.pinned) == (3, False)
    assert "3 threads share 2 cores" in team.note
    team.close()
    with pytest.raises(UsageError):
        Team(0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no threads")
@pytest.mark.parametrize("stands_on", [0, 1, None], ids=["own", "the other's", "unknown"])
def test_threads_are_bound_for_a_step_alone(monkeypatch, stands_on: int | None) -> None:
    processors = tuple(sorted(os.sched_getaffinity(0)))
    if len(processors) < 2:
        pytest.skip("needs two processors")
    monkeypatch.setattr(team_module, "_current_processor", lambda: None if stands_on is None else processors[stands_on])
    team = Team(2, pin=True, cores=Cores(processors[:2], 2, None))
    seen = {}

    def look(ith: int, nth: int) -> None:
        seen[ith] = os.sched_getaffinity(0)

    team.run(look)
    team.close()
    assert team.pinned
    moved = {processors[0]} if stands_on != 0 else set(processors)  # who stands on no bound thread's is left alone
    assert seen == {0: moved, 1: {processors[1]}}
    assert os.sched_getaffinity(0) == set(processors)
    team.close()


def _python(code: str) -> subprocess.Popen:
    prelude = """
        import os, signal, sys, threading, time
        from edgellm.backends.cpu.team import Team
        from tests.backends.cpu.test_team import ENDLESS, idle
        team = Team(2)
        team.run(idle, 1, team.sync)
        print("ready", flush=True)
    """
    text = textwrap.dedent(prelude) + textwrap.dedent(code)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_team_says_so_and_the_parents_goes_on():
    child = _python("""
        pid = os.fork()
        if pid == 0:
            try:
                team.run(idle, 1, team.sync)
            except Exception as error:
                print("child", type(error).__name__, flush=True)
            team.close()
            Team(2).run(idle, 1, team.sync)
            print("child's own", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print("parent", team.run(idle, 3, team.sync), flush=True)
    """)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert out.split("\n")[:4] == ["ready", "child EngineClosed", "child's own", "parent True"]


@pytest.mark.parametrize("where", ["main", "other"])
def test_the_interpreter_exits_at_once(where):
    ends = {
        "main": "sys.exit(0)",
        "other": """
            thread = threading.Thread(target=lambda: team.run(idle, ENDLESS, team.sync), daemon=True)
            thread.start()
            time.sleep(0.1)
        """,
    }
    child = _python(textwrap.dedent(ends[where]))
    assert child.stdout.readline() == "ready\n"
    started = time.perf_counter()
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    assert time.perf_counter() - started < 5


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to one process")
def test_ctrl_c_ends_an_interruptible_step():
    child = _python("""
        try:
            team.run(idle, ENDLESS, team.sync, interruptible=True)
        except KeyboardInterrupt:
            print("interrupted", team.run(idle, 3, team.sync), flush=True)
    """)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    started = time.perf_counter()
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "interrupted True\n"
    assert time.perf_counter() - started < 0.25
    assert child.wait(30) == 0
    child.communicate()


def test_the_stop_flag_is_down_again_for_the_next_step():
    team = Team(2)
    team.stop()
    assert team.run(idle, 2, team.sync) is True
    assert team.sync[STOP] == 0
    team.close()
