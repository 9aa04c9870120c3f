"""The kernel decorator, the digest, and the key of an entry."""

from __future__ import annotations

import errno
import logging
import types

import numba
import numpy as np
import pytest
from numba.core import config
from numba.core.dispatcher import Dispatcher

from edgellm.backends.cpu import jit, jit_cache, jit_digest, jit_folder, jit_key, jit_progress
from edgellm.backends.cpu.jit import kernel
from edgellm.errors import UsageError


def add_one(x):
    return x + 1


def add_two(x):
    return x + 2


def ours(source: str, name: str = "f", **values):
    """The function `name` of a module of this package that holds `source`."""
    module = types.ModuleType("edgellm.made_up")
    module.__dict__.update(values)
    exec(source, module.__dict__)
    return module.__dict__[name]


def key(source: str, **values) -> str:
    return jit_key.describe_function(ours(source, **values))


@pytest.fixture(autouse=True)
def jit_on(monkeypatch):
    """These tests are about the compiler, so they use it in a run with NUMBA_DISABLE_JIT=1 too."""
    monkeypatch.setattr(config, "DISABLE_JIT", 0)


@pytest.fixture
def fresh_digest(monkeypatch):
    """The digest as another process would take it."""
    monkeypatch.delenv("EDGELLM_ISA", raising=False)
    return jit_digest.digest.__wrapped__


def test_options():
    made = kernel(add_one)
    assert isinstance(made, Dispatcher)
    assert made.targetoptions["nogil"]
    assert made.targetoptions["error_model"] == "numpy"
    assert made.targetoptions["fastmath"] == jit.FASTMATH == {"contract"}
    inlined = kernel(inline="always", fastmath={"contract", "reassoc"})(add_one)
    assert inlined.targetoptions["inline"] == "always"
    assert inlined.targetoptions["fastmath"] == {"contract", "reassoc"}
    for options in ({"fastmath": True}, {"fastmath": {"nnan"}}, {"fastmath": {"ninf", "contract"}}, {"cache": True}):
        with pytest.raises(UsageError):
            kernel(**options)(add_one)


def test_nan_and_infinity_travel():
    @kernel
    def judge(values, divisor):
        total = 0.0
        for i in range(values.shape[0]):
            total += values[i] * 2.0
        return total, total != total, values[0] / divisor

    heard = []
    with jit_progress.compiling(lambda name, seconds: heard.append((name, seconds))):
        total, found, quotient = judge(np.array([1.0, np.nan]), 0.0)
    assert np.isnan(total)
    assert found
    assert quotient == np.inf
    assert [name.endswith("judge") for name, _ in heard] == [True, True]
    assert heard[0][1] is None
    assert heard[1][1] > 0


def test_a_kernel_that_does_not_compile_is_not_counted():
    @kernel
    def wrong(x):
        return x.nothing

    before = jit_progress.statistics()
    heard = []
    with jit_progress.compiling(lambda name, seconds: heard.append(seconds)), pytest.raises(numba.TypingError):
        wrong(1)
    assert jit_progress.statistics().compiled == before.compiled
    assert heard == [None]


def test_functions_of_others_are_left_alone():
    assert type(numba.njit(add_one)._cache).__name__ == "NullCache"
    outside = kernel(add_one)
    assert outside._cache.load_overload((numba.int64,), None) is None  # this module is not the package's


def test_without_the_jit_the_function_itself(monkeypatch):
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert kernel(add_one) is add_one
    assert kernel(inline="always")(add_two) is add_two


def test_a_numba_without_a_place_for_a_cache_runs_uncached():
    class Bare:
        py_func = add_one

    jit_cache.attach(Bare())
    assert not hasattr(Bare, "_cache")


@pytest.mark.parametrize(
    ("name", "value"),
    [("BOUNDSCHECK", 1), ("CPU_NAME", "znver9"), ("CPU_FEATURES", "+nothing"), ("OPT", 1)],
)
def test_settings_are_in_the_digest(name, value, fresh_digest, monkeypatch):
    before = fresh_digest()
    assert before == fresh_digest()
    assert len(before) == jit_digest.DIGEST_LENGTH
    monkeypatch.setattr(config, name, value)
    assert fresh_digest() != before


def test_the_isa_and_versions_are_in_the_digest(fresh_digest, monkeypatch):
    digests = {fresh_digest()}
    monkeypatch.setenv("EDGELLM_ISA", "generic")
    digests.add(fresh_digest())
    monkeypatch.setattr(numba, "__version__", "0.99")
    digests.add(fresh_digest())
    assert len(digests) == 3


def test_sources_that_are_not_files(fresh_digest, monkeypatch):
    """A frozen program has code but no files, or not even that."""
    monkeypatch.setattr(jit_digest.Path, "rglob", lambda path, pattern: iter(()))
    frozen = fresh_digest()
    assert frozen == fresh_digest()
    monkeypatch.setattr(jit_digest, "_code", lambda name: None)
    monkeypatch.setattr(jit_digest, "__version__", "1")
    bare = fresh_digest()
    monkeypatch.setattr(jit_digest, "__version__", "2")
    assert len({frozen, bare, fresh_digest()}) == 3


def test_keys_tell_constants_apart():
    assert add_one.__code__.co_code == add_two.__code__.co_code  # all that numba's own key looks at
    assert key("def f(x): return x + 1") != key("def f(x): return x + 2")
    assert key("def f(x): return x + 1") == key("\n\ndef f(x):\n    return x + 1")
    assert key("def f(x): return x in {'a', 'b', 'c'}") == key("def f(x): return x in {'c', 'b', 'a'}")


def test_keys_hold_the_globals_that_are_frozen():
    source = "def f(x): return x * SIZE"
    values = [2, 3, 2.0, np.float32(2), (2, 3), [2], np.arange(3), np.arange(4), {"a": 1}, np.dtype("i4"), numba.int32]
    keys = {key(source, SIZE=value) for value in values}
    assert len(keys) == len(values)
    assert key(source, SIZE=2, OTHER=1) == key(source, SIZE=2, OTHER=2)


def test_keys_follow_helpers_modules_and_closures():
    source = "def g(x): return x + {}\ndef f(x): return g(x)"
    assert key(source.format(1)) != key(source.format(2))
    modules = [types.ModuleType("edgellm.one") for _ in range(2)]
    for module, number in zip(modules, (1, 2), strict=True):
        module.used, module.unused = number, number
    assert key("def f(x): return x + m.used", m=modules[0]) != key("def f(x): return x + m.used", m=modules[1])
    assert key("def f(x): return x + m.other", m=modules[0]) == key("def f(x): return x + m.other", m=modules[1])
    factory = "def f(n):\n    def inner(x): return x + n\n    return inner"
    make = ours(factory)
    described = [jit_key.describe_function(make(number)) for number in (1, 1, 2)]
    assert described[0] == described[1] != described[2]


def test_keys_hold_the_options_of_helpers():
    helper = ours("def g(x): return x", "g")
    plain, inlined = kernel(helper), kernel(inline="always")(helper)
    keys = {key("def f(x): return h(x)", h=made) for made in (plain, inlined, kernel(fastmath={"reassoc"})(helper))}
    assert len(keys) == 3
    assert key("def f(x): return h(x)", h=plain) == key("def f(x): return h(x)", h=kernel(helper))


def test_keys_look_into_tuples_and_sets():
    source = "def f(x): return OPS[0](x)"
    helpers = [kernel(ours(f"def g(x): return x + {number}", "g")) for number in (1, 1, 2)]
    keys = [key(source, OPS=(helper, helper)) for helper in helpers]
    assert keys[0] == keys[1] != keys[2]
    assert key("def f(x): return x in S", S={"a", "b", "c"}) == key("def f(x): return x in S", S={"c", "b", "a"})


def test_recursion_in_keys_ends():
    assert "edgellm.made_up.f" in key("def f(x): return f(x - 1) if x else 0")


def test_entries_prove_themselves(tmp_path):
    file = tmp_path / "entry.nbc"
    assert jit_cache._payload(file, "key") is None
    jit_cache._write(file, jit_cache._entry("key", b"payload"))
    assert jit_cache._payload(file, "key") == b"payload"
    with pytest.raises(ValueError, match="key"):
        jit_cache._payload(file, "yek")
    data = file.read_bytes()
    for spoilt in (b"", data[:40], data[:-1], data + b"x", b"x" + data[1:]):
        file.write_bytes(spoilt)
        with pytest.raises(ValueError, match="checksum"):
            jit_cache._payload(file, "key")
    assert [path.name for path in tmp_path.iterdir()] == ["entry.nbc"]


def test_a_crash_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def refuse(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(jit_cache.os, "replace", refuse)
    with pytest.raises(KeyboardInterrupt):
        jit_cache._write(tmp_path / "entry.nbc", b"entry")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("second_works", [False, True])
def test_a_full_or_readonly_disk_is_said_once(number, second_works, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "edgellm")
    folders = jit_folder.CacheFolders([tmp_path / "one", tmp_path / "two"])
    monkeypatch.setattr(jit_cache, "folders", lambda: folders)
    tried = []

    def write(path, entry):
        tried.append(path.parent.parent.name)
        if tried[-1] == "one" or not second_works:
            raise OSError(number, "no")

    monkeypatch.setattr(jit_cache, "_write", write)
    for name in ("key 1", "key 2"):
        jit_cache.save("f", name, b"payload")
    assert tried == ["one", "two"] + ["two"] * second_works
    assert [("instead" in record.message, "anew" in record.message) for record in caplog.records] == [
        (second_works, not second_works)
    ]


def test_only_kernels_that_python_calls_have_a_way_in_from_it():
    @kernel
    def inner(x):
        return x * 3

    @kernel
    def outer(x):
        return inner(x) + 1

    assert outer(2) == 7
    assert (len(inner.overloads), len(inner.from_python.overloads)) == (1, 0)
    assert (len(outer.overloads), len(outer.from_python.overloads)) == (0, 1)
    assert inner(2) == 6


def test_a_constant_is_of_no_type_of_its_own():
    @kernel
    def add(x, n):
        return x + n

    @kernel
    def total(count):
        n = 0
        while n < count:
            n += add(n, 1)
        return n

    before = jit_progress.statistics().compiled
    assert total(3) == 3
    assert jit_progress.statistics().compiled == before + 2
    assert list(add.overloads) == [(numba.int64, numba.int64)]
