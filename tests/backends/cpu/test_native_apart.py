"""Kernels that a helper compiles are those that the walker calls, and a start does without a helper where it must."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from numba.core import types

from edgellm.backends.cpu import jit_progress, native_apart, native_build, runner, walker
from tests.backends.cpu.kernels import WITHOUT_JIT
from tests.backends.cpu.test_model import load_cpu
from tests.golden_models import GOLDEN_FOLDER

compiled_only = pytest.mark.skipif(WITHOUT_JIT, reason="nothing is compiled")


@compiled_only
def test_parts_are_compiled_for_the_types_that_the_walker_calls_them_with(monkeypatch: pytest.MonkeyPatch) -> None:
    given, prepare = [], runner.walk.prepare
    monkeypatch.setattr(runner.walk, "prepare", lambda *arguments: given.append(arguments) or prepare(*arguments))
    load_cpu(GOLDEN_FOLDER / "tinyllama").close()
    kinds = tuple(map(native_build._type_of, given[0]))
    known = native_apart._known(walker.walk, kinds, walker.MEMBERS)
    before = jit_progress.statistics().compiled
    for name in (*walker.APART, *walker.MEANWHILE):
        kernel = getattr(walker, name)
        kernel.compile(native_apart._kinds_of(kernel, known))
        assert jit_progress.statistics().compiled == before, f"{name} was compiled anew"


class Part:
    """Stands in for a kernel; `asked` has the types that it was compiled for."""

    def __init__(self, function) -> None:
        self.py_func, self.asked = function, []

    def compile(self, kinds) -> None:
        self.asked.append(kinds)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A walker of two parts, in a module of its own."""
    module = SimpleNamespace(__name__="parts_of_a_test", APART=("first",), MEANWHILE=("second",))
    module.MEMBERS = {"model": ("table",), "space": ("act",)}
    module.first = Part(lambda act, op, out: None)
    module.second = Part(lambda out, count: None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(native_apart, "_worth_it", lambda: True)

    def whole(model, space, planes):
        return None

    whole.__module__ = module.__name__
    return SimpleNamespace(py_func=whole, module=module, targetoptions={})


FLOATS = types.Array(types.float32, 1, "C")
KINDS = (types.UniTuple(types.Array(types.int64, 1, "C"), 1), types.UniTuple(FLOATS, 1), types.int64)


def test_the_helper_is_told_its_part_and_the_rest_is_compiled_here(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    helper = SimpleNamespace(wait=lambda seconds: 0, poll=lambda: 0)
    monkeypatch.setattr(native_apart, "_begin", lambda *told: begun.append(told) or helper)
    with native_apart.parts_compiled(kernel, KINDS):
        assert begun == [("parts_of_a_test", [("first", (FLOATS, types.int64, FLOATS))])]
        assert kernel.module.second.asked == [(FLOATS, types.int64)]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pickle.dumps(begun[0]))))
    native_apart.compile_parts()
    assert kernel.module.first.asked == [(FLOATS, types.int64, FLOATS)]


def test_a_helper_that_does_not_start_or_end_keeps_nobody(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(subprocess, "Popen", refused)
    with native_apart.parts_compiled(kernel, KINDS):
        assert kernel.module.second.asked == []
    ended = []

    def wait(seconds: float = 0) -> None:
        if seconds:
            raise subprocess.TimeoutExpired("helper", seconds)

    helper = SimpleNamespace(wait=wait, poll=lambda: None, kill=lambda: ended.append("killed"))
    monkeypatch.setattr(native_apart, "_begin", lambda *_: helper)
    with native_apart.parts_compiled(kernel, KINDS):
        assert kernel.module.second.asked != []
    assert ended == ["killed"]
