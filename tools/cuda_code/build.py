"""The folder `code/` from the declared kernels: the same bytes wherever it is built by the same compiler."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from edgellm.backends.cuda.kernels.declare import Kernel
from edgellm.backends.cuda.kernels.sources import digest
from edgellm.backends.cuda.shipped import FORMAT, INDEX, Shipped


@dataclass(frozen=True)
class Built:
    """A kernel's texts by target, and the digest of the sources they are from."""

    kernel: Kernel
    texts: dict[int, str]
    sources: str


def build(kernel: Kernel, old: Shipped | None) -> tuple[Built, bool]:
    """The kernel compiled for its targets, and whether it was: not where `old` has it from the very same sources.

    Raises:
        EdgeLLMError: its code cannot be shipped.
        numba's errors: it cannot be compiled.
    """
    sources = digest(kernel.module)
    if old is not None and old.sources.get(kernel.name) == sources and _same_entry(kernel, old):
        return Built(kernel, old.texts[kernel.name], sources), False
    from edgellm.backends.cuda.ptx.compile import texts_of

    return Built(kernel, texts_of(kernel), sources), True


def kept(old: Shipped, kernels: dict[str, Kernel], without: set[str]) -> list[Built]:
    """What `old` has of kernels that are still declared, `without` some."""
    names = [name for name in old.entries if name in kernels and name not in without]
    return [Built(kernels[name], old.texts[name], old.sources[name]) for name in names]


def compiler() -> str:
    """What decides the text: with other versions the same kernel may come out a little differently.

    Python's own counts, for numba compiles its bytecode.
    """
    versions = [f"{name} {version(name)}" for name in ("numba-cuda", "numba", "nvidia-nvvm")]
    return ", ".join([*versions, f"Python {sys.version_info.major}.{sys.version_info.minor}"])


def files(built: Iterable[Built]) -> dict[str, bytes]:
    """Names and contents of the files of `code/`."""
    rows: dict[str, Any] = {}
    parts: dict[int, list[str]] = {}
    places: dict[int, int] = {}
    for made in sorted(built, key=lambda made: made.kernel.name):
        code = {}
        for target, text in sorted(made.texts.items()):
            code[str(target)] = [places.get(target, 0), len(text)]
            places[target] = places.get(target, 0) + len(text)
            parts.setdefault(target, []).append(text)
        origin = {"module": made.kernel.module, "sources": made.sources}
        rows[made.kernel.name] = {**_declared(made.kernel), "code": code, **origin}
    texts = {target: "".join(listed).encode("ascii") for target, listed in sorted(parts.items())}
    targets = {str(target): hashlib.sha256(text).hexdigest() for target, text in texts.items()}
    index = json.dumps({"format": FORMAT, "compiler": compiler(), "targets": targets, "kernels": rows}, indent=1)
    index = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", index)
    made_files = {f"sm_{target}.ptx": text for target, text in texts.items()}
    return {**made_files, INDEX: (index + "\n").encode("ascii")}


def _declared(kernel: Kernel) -> dict[str, Any]:
    return {
        "parameters": [[parameter.name, parameter.type] for parameter in kernel.parameters],
        "threads": kernel.threads,
        "min_blocks": kernel.min_blocks,
        "lowest": kernel.lowest,
        "highest": kernel.highest,
        "dynamic_shared": kernel.dynamic_shared,
    }


def _same_entry(kernel: Kernel, old: Shipped) -> bool:
    entry = old.entries[kernel.name]
    return all(getattr(entry, name) == getattr(kernel, name) for name in entry.__dataclass_fields__)
