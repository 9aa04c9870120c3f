"""Compiled kernels kept on the disk, so that only the first run on a machine compiles.

numba's dispatcher asks its cache before it compiles and tells it afterwards; this cache takes the place of numba's own,
on kernels alone: functions of the host application keep theirs. It differs in what it must never do:

- answer with stale code: the folder is named after all sources (`jit_digest`), the entry after the kernel's code and
  the values it froze (`jit_key`);
- fail: a missing, unreadable, cut or damaged entry, a full disk, a place that cannot be written mean compiling again;
- load what others wrote: entries are code, so owner and permissions of folder and file are checked, and a checksum is,
  before anything is made of them.

Two kinds of entries lie here. What Python calls in a model is machine code alone (`native.py`): to read it runs
nothing, and takes no numba. Kernels that are compiled on the way to it, and those that tests, yardsticks and tools call
through numba's dispatcher, are numba's own pickles.

There is no index file that two processes could overwrite: an entry is a file, named after its key, renamed into place
when whole.

    bytes 0-15   "edgellm-kernel 1"
    bytes 16-47  SHA-256 of the rest
    then         length of the key (4 bytes, little-endian), the key in UTF-8, the payload

Kernels of several processes meet here, where a first start was interrupted or had a helper. numba tells the closures of
one factory apart by a number alone, in the order in which a process compiles them, so the same symbol could stand for
one kernel in one entry and for another in the next, and LLVM would take either for both. So each process numbers from a
start of its own.

Four names that numba keeps private are used: a dispatcher's `_cache`, `CompileResult._reduce` and `_rebuild`, and
`FunctionIdentity._unique_ids` (tried with numba 0.68). Where one is missing, kernels run uncached.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import pickle
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from edgellm.backends.cpu import jit_digest, jit_key, jit_progress, jit_shared
from edgellm.backends.cpu.jit_folder import WRITING, CacheFolders
from edgellm.folders import require_trusted

_MAGIC = b"edgellm-kernel 1"
#: How the names of entries end.
ENTRY = ".nbc"
_CHECKSUM_BYTES = 32
_LENGTH_BYTES = 4
_ADDRESS = " at 0x"  # in the name of a type that another process would name otherwise

_Made = TypeVar("_Made")
_log = logging.getLogger("edgellm")


def attach(dispatcher: Any, *, shared: bool = False) -> None:
    """Let a dispatcher of numba keep its code in this cache; `shared`: and its callers share that."""
    if not hasattr(dispatcher, "_cache") or not _number_apart():
        _log.debug("this numba has no place for a cache: %s stays uncached", dispatcher)
        return
    jit_digest.digest()  # now, while the sources are those that were imported
    dispatcher._cache = KernelCache(dispatcher, shared=shared)


def is_kernel(value: Any) -> bool:
    """Whether it is a dispatcher that `attach` was called with."""
    return isinstance(getattr(value, "_cache", None), KernelCache)


@lru_cache(maxsize=1)
def _number_apart() -> bool:
    """Let this process give functions other numbers than any other one; whether numba lets that be done."""
    from numba.core.bytecode import FunctionIdentity

    def start() -> None:
        FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(5), "little") << 20)

    if not hasattr(FunctionIdentity, "_unique_ids"):
        return False
    start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=start)
    return True


@lru_cache(maxsize=1)
def folders() -> CacheFolders:
    """The folders of this process."""
    return CacheFolders()


class KernelCache:
    """One kernel's entries: the methods that numba's dispatcher calls, none of which raises.

    Only functions of this package are kept; others, such as a notebook's, are compiled in each process.
    """

    def __init__(self, dispatcher: Any, *, shared: bool = False) -> None:
        self._shared = shared
        self._function = dispatcher.py_func
        self._options = jit_key.describe_options(dispatcher.targetoptions)
        self._enabled = (self._function.__module__ or "").startswith("edgellm.")
        self._keys: dict[Any, str | None] = {}

    @property
    def cache_path(self) -> str | None:
        """The first folder that entries are looked for in."""
        found = folders().readable()
        return str(found[0]) if found else None

    def enable(self) -> None:
        """Look for entries, and write them."""
        self._enabled = True

    def disable(self) -> None:
        """Do neither."""
        self._enabled = False

    def flush(self) -> None:
        """Forget nothing on the disk: `Dispatcher.recompile` asks for new code, and the same sources give the same."""

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compile result for argument types, or None."""
        if not self._enabled:
            return None
        try:
            key = self._keys[signature] = self._key(signature, target_context.codegen())
            if key is None:
                return None
            return load(self._function.__qualname__, key, partial(_rebuilt, target_context, self._shared))
        except Exception as error:
            # whatever it is, compiling again answers it
            _log.debug("cached %s not used: %r", self._function.__qualname__, error)
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compile result."""
        if self._shared:
            jit_shared.share(result)
        self._save(self._keys.pop(signature, None), result)

    def _save(self, key: str | None, result: Any) -> None:
        if not self._enabled or key is None:
            return
        try:
            if result.library.has_dynamic_globals or result.lifted:
                _log.debug("%s holds addresses of this process and is not kept", self._function.__qualname__)
                return
            from numba.core.serialize import dumps

            reduced = result._reduce()
            payload = dumps((reduced, jit_shared.needed(_object_code(reduced))))
        except Exception as error:
            _log.debug("%s cannot be kept: %r", self._function.__qualname__, error)
            return
        save(self._function.__qualname__, key, payload)

    def _key(self, signature: Any, codegen: Any) -> str | None:
        types = str(signature)
        if _ADDRESS in types:
            return None
        function = jit_key.describe_function(self._function)
        described = "\n".join([jit_digest.digest(), str(codegen.magic_tuple()), self._options, function])
        return f"{types} {hashlib.sha256(described.encode()).hexdigest()}"


def _rebuilt(target_context: Any, shared: bool, payload: bytes) -> Any:
    """numba's compile result of a pickle."""
    from numba.core.compiler import CompileResult
    from numba.core.runtime import rtsys

    # Of `target_context.refresh()`, which numba calls here, code that is compiled needs this alone: the functions that
    # count references. The rest (0.2 s) is for compiling, and called again there.
    rtsys.initialize(target_context)
    reduced, objects = pickle.loads(payload)
    jit_shared.load(target_context.codegen()._engine, objects)
    result = CompileResult._rebuild(target_context, *reduced)
    if shared:
        jit_shared.share(result, _object_code(reduced))
    return result


def _object_code(reduced: tuple[Any, ...]) -> bytes:
    """That of what `CompileResult._reduce` gave."""
    _, _, (object_code, _) = reduced[0]
    return object_code


def load(name: str, key: str, use: Callable[[bytes], _Made]) -> _Made | None:
    """What `use` makes of the payload that `save` kept, None where there is none. An entry that it cannot use, whatever
    it raises, is removed."""
    for folder in folders().readable():
        path = folder / _file_name(name, key)
        try:
            payload = _payload(path, key)
            if payload is None:
                continue
            made = use(payload)
        except Exception as error:
            _log.debug("%s is damaged: %r", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        jit_progress.count_loaded()
        return made
    return None


def save(name: str, key: str, payload: bytes) -> None:
    """Keep a payload; where nothing can be kept, that is said once."""
    entry = _entry(key, payload)
    while (folder := folders().writable()) is not None:
        try:
            _write(folder / _file_name(name, key), entry)
        except OSError as error:
            if not folder.is_dir():  # another process pruned it: it is made again
                continue
            folders().give_up(folder, error)
            continue
        folders().written(folder)
        return


def _file_name(name: str, key: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_]+", ".", name.replace("<locals>", ""))[-60:].strip(".")
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:20]}{ENTRY}"


def _entry(key: str, payload: bytes) -> bytes:
    name = key.encode()
    body = len(name).to_bytes(_LENGTH_BYTES, "little") + name + payload
    return _MAGIC + hashlib.sha256(body).digest() + body


def _payload(path: Path, key: str) -> bytes | None:
    """The pickle of an entry, None where there is no entry. Raises `ValueError` or `OSError` for one not to be used."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        require_trusted(os.fstat(descriptor), path)
        data = file.read()
    start = len(_MAGIC) + _CHECKSUM_BYTES
    body = memoryview(data)[start:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : start] != hashlib.sha256(body).digest():
        raise ValueError("checksum")
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    if bytes(body[_LENGTH_BYTES : _LENGTH_BYTES + length]) != key.encode():
        raise ValueError("key")
    return bytes(body[_LENGTH_BYTES + length :])


def _write(path: Path, entry: bytes) -> None:
    """Write aside, then rename: a reader finds all of it or nothing."""
    aside = path.with_name(f"{path.name}{WRITING}{os.urandom(6).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(aside, flags, 0o600), "wb") as file:
            file.write(entry)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
