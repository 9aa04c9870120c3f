"""The kernels compiled from their sources here and now, in place of what the package carries: for who edits them.

What was compiled is kept in the user's cache folder under a digest of the sources, so that only what was edited is
compiled again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from edgellm.backends.cuda.entry import Entry
from edgellm.backends.cuda.kernels.declare import Kernel, all_kernels
from edgellm.backends.cuda.kernels.sources import digest
from edgellm.backends.cuda.ptx.compile import TARGETS, compiled_body
from edgellm.backends.cuda.shipped import header
from edgellm.errors import BackendUnavailable, UsageError
from edgellm.folders import folder


class Fresh:
    """What `Shipped` is, from the sources.

    Attributes:
        entries: the kernels by name.
    """

    def __init__(self, kept: Path | None = None) -> None:
        """`kept`: the folder of what was compiled before; by default in the user's cache."""
        self.entries: dict[str, Entry] = dict(all_kernels())
        cache = folder("cache")
        self._kept = kept or (cache / "cuda" if cache else None)

    def module(self, names: Iterable[str], capability: int) -> str:
        """PTX of the kernels `names` for a device of that compute capability (87 means 8.7).

        Raises:
            UsageError: there is no kernel of a name.
            BackendUnavailable: a kernel does not run on such a device.
            numba's errors: a kernel cannot be compiled.
        """
        target = max((known for known in TARGETS if known <= capability), default=0)
        texts = []
        for name in sorted(set(names)):
            kernel = self.entries.get(name)
            if not isinstance(kernel, Kernel):
                raise UsageError("no such kernel is declared", key=name, allowed="a kernel of backends/cuda/kernels")
            if not target or not kernel.runs_on(capability):
                found = f"compute capability {capability / 10}"
                raise BackendUnavailable("the device does not run a kernel", key=name, found=found)
            texts.append(self._text(kernel, target))
        return header(target) + "".join(texts)

    def _text(self, kernel: Kernel, target: int) -> str:
        if self._kept is None:
            return compiled_body(kernel, target)
        sources = digest(kernel.module)[:32]
        path = self._kept / f"{kernel.name}-sm_{target}-{sources}-{version('numba-cuda')}.ptx"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return path.read_text(encoding="ascii")
        text = compiled_body(kernel, target)
        with contextlib.suppress(OSError):  # a folder that cannot be written only means compiling again
            self._kept.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}")
            aside.write_text(text, encoding="ascii")
            aside.replace(path)
        return text
