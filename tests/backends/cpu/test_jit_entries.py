"""The methods that numba's dispatcher calls, on a compile result that is none: what is kept, what is not."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from numba.core import event
from numba.core.compiler import CompileResult

from edgellm.backends.cpu import jit_cache, jit_folder, jit_progress, native_object


def doubled(x):
    return x * 2


class Result:
    """Stands for a `CompileResult`; what it reduces to is `value`."""

    def __init__(self, value, dynamic=False):
        self.value, self.lifted = value, ()
        self.library = SimpleNamespace(has_dynamic_globals=dynamic)

    def _reduce(self):
        if self.value is None:
            raise NotImplementedError
        return (("library", "object", (b"object code", b"bitcode")), self.value)


CONTEXT = SimpleNamespace(
    codegen=lambda: SimpleNamespace(magic_tuple=lambda: ("a processor",), _engine=None), refresh=lambda: None
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A kernel's cache in a folder of its own."""
    folders = jit_folder.CacheFolders([tmp_path / "jit"])
    monkeypatch.setattr(jit_cache, "folders", lambda: folders)
    monkeypatch.setattr(CompileResult, "_rebuild", classmethod(lambda cls, context, library, value: value))
    monkeypatch.setattr(native_object, "symbols", lambda data: iter(()))
    monkeypatch.setattr(doubled, "__module__", "edgellm.made_up")
    dispatcher = SimpleNamespace(py_func=doubled, targetoptions={"nogil": True, "fastmath": {"contract"}}, _cache=None)
    jit_cache.attach(dispatcher)
    return dispatcher._cache


def entries(tmp_path):
    return sorted(tmp_path.rglob("*.nbc"))


def test_kept_by_signature(cache, tmp_path):
    assert cache.load_overload(("int64",), CONTEXT) is None
    cache.save_overload(("int64",), Result(1))
    assert cache.load_overload(("float32",), CONTEXT) is None
    cache.save_overload(("float32",), Result(2))
    before = jit_progress.statistics().loaded
    assert cache.load_overload(("int64",), CONTEXT) == 1
    assert cache.load_overload(("float32",), CONTEXT) == 2
    assert jit_progress.statistics().loaded == before + 2
    assert len(entries(tmp_path)) == 2
    assert cache.cache_path == str(entries(tmp_path)[0].parent)


def test_one_flipped_bit_is_damage(cache, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "edgellm")
    cache.load_overload(("int64",), CONTEXT)
    cache.save_overload(("int64",), Result(1))
    (file,) = entries(tmp_path)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert cache.load_overload(("int64",), CONTEXT) is None
    assert not file.exists()
    assert "checksum" in caplog.text
    cache.save_overload(("int64",), Result(1))
    assert cache.load_overload(("int64",), CONTEXT) == 1


def test_an_entry_that_others_can_write_is_not_read(cache, tmp_path):
    cache.load_overload(("int64",), CONTEXT)
    cache.save_overload(("int64",), Result(1))
    entries(tmp_path)[0].chmod(0o666)
    assert cache.load_overload(("int64",), CONTEXT) is None


def test_code_that_numba_cannot_rebuild_is_compiled_again(cache, tmp_path, monkeypatch):
    cache.load_overload(("int64",), CONTEXT)
    cache.save_overload(("int64",), Result(1))

    def refuse(cls, context, *parts):
        raise RuntimeError("another numba")

    monkeypatch.setattr(CompileResult, "_rebuild", classmethod(refuse))
    assert cache.load_overload(("int64",), CONTEXT) is None
    assert entries(tmp_path) == []


def test_what_is_not_kept(cache, tmp_path):
    for signature, result in (
        (("a function at 0x7f00",), Result(1)),  # named otherwise in the next process
        (("int64",), Result(1, dynamic=True)),  # holds addresses of this one
        (("int64",), Result(None)),  # cannot be reduced
    ):
        assert cache.load_overload(signature, CONTEXT) is None
        cache.save_overload(signature, result)
    cache.save_overload(("never looked for",), Result(1))
    cache.disable()
    assert cache.load_overload(("int64",), CONTEXT) is None
    cache.save_overload(("int64",), Result(1))
    assert entries(tmp_path) == []
    cache.enable()
    cache.load_overload(("int64",), CONTEXT)
    cache.save_overload(("int64",), Result(1))
    cache.flush()
    assert len(entries(tmp_path)) == 1


def test_a_context_that_fails_is_no_failure(cache, caplog):
    caplog.set_level(logging.DEBUG, "edgellm")
    assert cache.load_overload(("int64",), SimpleNamespace()) is None
    assert "not used" in caplog.text


def test_a_folder_that_is_removed_meanwhile_is_made_again(cache, tmp_path, monkeypatch):
    cache.load_overload(("int64",), CONTEXT)
    real, tried = jit_cache._write, []

    def write(path, entry):
        if not tried:
            path.parent.rmdir()
        tried.append(path)
        real(path, entry)

    monkeypatch.setattr(jit_cache, "_write", write)
    cache.save_overload(("int64",), Result(1))
    assert len(tried) == 2
    assert cache.load_overload(("int64",), CONTEXT) == 1


def test_progress_counts_kernels_alone(cache):
    jit_progress.listen()
    outer = SimpleNamespace(py_func=doubled, overloads={}, _cache=cache)
    host = SimpleNamespace(py_func=doubled, overloads={}, _cache=None)
    before = jit_progress.statistics()
    heard = []
    with jit_progress.compiling(lambda name, seconds: heard.append((name, seconds is None))):
        with event.trigger_event("numba:compile", data={"dispatcher": outer, "args": ("int64",)}):
            with event.trigger_event("numba:compile", data={"dispatcher": host, "args": ("int64",)}):
                pass
            outer.overloads[("int64",)] = Result(1)
        failing = event.trigger_event("numba:compile", data={"dispatcher": outer, "args": ("float32",)})
        with pytest.raises(ValueError, match="wrong"), failing:
            raise ValueError("wrong")
    assert heard == [("doubled", True), ("doubled", False), ("doubled", True)]
    after = jit_progress.statistics()
    assert after.compiled == before.compiled + 1
    assert after.seconds > before.seconds
