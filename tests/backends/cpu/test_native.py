"""Kernels that Python calls: what a call may hold, what it gives, and whose code may be loaded."""

from __future__ import annotations

import sys

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba.core import config

from edgellm.backends.cpu import jit_cache, native_build, native_object
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.jit_folder import CacheFolders
from edgellm.backends.cpu.native import Native
from edgellm.errors import EdgeLLMError, UsageError

HERE = __name__


def weigh(groups, table, by, start, ith, nth):
    """Every kind of argument; a row of `table` a thread."""
    values, (sums, counts) = groups
    for row in range(ith, table.shape[0], nth):
        for column in range(table.shape[1]):
            sums[row] += values[column] * table[row, column] * by
        counts[row] = start + table.shape[0]
    return sums[ith]


def first(values):
    return values[0]


def nothing(values):
    values[0] = 7


def upward(values, step):
    total = 0
    for i in range(0, values.shape[0], step):
        total += values[i]
    return total


@pytest.fixture(params=["compiled", "python"])
def mode(request, monkeypatch) -> str:
    """The functions above as kernels, whichever way this run has them."""
    monkeypatch.setattr(config, "DISABLE_JIT", int(request.param == "python"))
    for function in (weigh, first, nothing, upward):
        monkeypatch.setattr(sys.modules[HERE], function.__name__, kernel(function))
    return request.param


def prepared(by=0.5, start=3, module=HERE):
    values, sums, counts = np.arange(3, dtype=np.float32), np.zeros(2, np.float32), np.zeros(2, np.int64)
    arguments = ((values, (sums, counts)), np.arange(6, dtype=np.int64).reshape(2, 3), by, start)
    return arguments, Native(module, "weigh", threaded=True).prepare(*arguments)


def test_a_call_passes_arrays_tuples_and_numbers(mode: str) -> None:
    ((_, (sums, counts)), _, _, _), call = prepared()
    for ith in range(2):
        call.function(call.address, ith, 2)
        assert call.result == sums[ith]
    np.testing.assert_array_equal(sums, [0.5 * (1 + 4), 0.5 * (4 + 10)])
    np.testing.assert_array_equal(counts, 5)


def test_what_changes_is_taken_over(mode: str) -> None:
    ((values, (sums, counts)), _, _, _), call = prepared()
    call.function(call.address, 0, 2)
    other = np.zeros(2, np.float32)
    call.update((values, (other, counts)), np.ones((2, 2), np.int64), -1.5, 10**12)
    call.function(call.address, 1, 2)
    np.testing.assert_array_equal(sums, [2.5, 0])
    np.testing.assert_array_equal(other, [0, -1.5])
    assert counts.tolist() == [5, 10**12 + 2]


def test_another_kind_is_refused(mode: str) -> None:
    ((values, (sums, counts)), table, by, start), call = prepared()
    with pytest.raises(UsageError, match="another kind"):
        call.update((values.astype(np.float64), (sums, counts)), table, by, start)
    with pytest.raises(UsageError, match="contiguous"):
        call.update((values, (sums, counts)), table.T, by, start)
    with pytest.raises(UsageError, match="no such argument"):
        Native(HERE, "first")("text")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_one_native_serves_every_kind(dtype, mode: str) -> None:
    native = Native(HERE, "first")
    assert native(np.array([3, 4], dtype)) == 3.0
    assert native(np.array([-2.5, 1])) == -2.5


def test_a_kernel_that_returns_nothing(mode: str) -> None:
    values = np.zeros(1)
    assert Native(HERE, "nothing")(values) == 0.0
    assert values[0] == 7


def test_an_error_in_a_kernel_is_told(mode: str) -> None:
    native = Native(HERE, "upward")
    assert native(np.arange(5), 2) == 6
    with pytest.raises(EdgeLLMError if mode == "compiled" else ValueError):
        native(np.arange(5), 0)


def test_a_numba_that_keeps_its_code_to_itself_is_called_through(mode: str, tmp_path, monkeypatch) -> None:
    folders = CacheFolders([tmp_path / "jit"])
    monkeypatch.setattr(jit_cache, "folders", lambda: folders)
    monkeypatch.setitem(sys.modules, "edgellm.made_up", sys.modules[HERE])  # only the package's own code is kept
    monkeypatch.setattr(native_object, "payload_of", lambda *_: (_ for _ in ()).throw(native_object.Unresolved("x")))
    ((_, (sums, _)), _, _, _), call = prepared(by=np.float32(0.25), module="edgellm.made_up")
    assert not call.native
    built = []
    monkeypatch.setattr(native_build, "build", lambda *_, **__: built.append(1))
    assert not prepared(by=np.float32(0.25), module="edgellm.made_up")[1].native  # it is known now, and not tried again
    assert built == []
    assert call.function(call.address, 0, 2) == 0
    assert call.result == sums[0] == 1.25


IR = """
@own = global i64 1
declare void @{missing}()
declare i32 @sched_yield()
define i64 @answer() {{
  call void @{missing}()
  %r = call i32 @sched_yield()
  ret i64 42
}}
"""


def compiled(triple: str, missing: str = "nowhere_to_be_found") -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(IR.format(missing=missing))
    module.triple = triple
    return llvm.Target.from_triple(triple).create_target_machine().emit_object(module)


@pytest.mark.parametrize("system", ["unknown-linux-gnu", "apple-darwin", "pc-windows-msvc"])
def test_symbols_of_every_format(system: str) -> None:
    architecture = llvm.get_process_triple().split("-")[0]
    symbols = dict(native_object.symbols(compiled(f"{architecture}-{system}")))
    wanted = {"answer": True, "own": True, "nowhere_to_be_found": False, "sched_yield": False}
    assert {name: symbols.get(name) for name in wanted} == wanted


def test_code_that_needs_what_is_not_there_is_refused() -> None:
    payload = native_object.payload_of("answer", [compiled(llvm.get_process_triple())])
    with pytest.raises(native_object.Unresolved, match="nowhere_to_be_found"):
        native_object.load(payload)
    with pytest.raises(native_object.Unresolved, match="format"):
        native_object.payload_of("answer", [b"no object"])


def test_an_object_defines_what_another_calls() -> None:
    inner = "define void @inner() { ret void }"
    module = llvm.parse_assembly(inner)
    module.triple = llvm.get_process_triple()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(jit=True)
    objects = [compiled(module.triple, "inner"), machine.emit_object(module)]
    assert native_object.load(native_object.payload_of("answer", objects)) > 0
