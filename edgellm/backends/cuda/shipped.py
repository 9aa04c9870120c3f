"""The kernels' code that the package carries: PTX text in `code/`, and `code/index.json`, which says what is in it.

The index has, by kernel, what `Entry` has, and by target where its text lies: `"code": {"80": [offset, bytes]}` is a
part of `code/sm_80.ptx`. A target's file has a kernel only where its text differs from the next lower target's. A
module for a device is a header and the texts asked for, each of the greatest target that is not above the device; so a
driver compiles what is launched and nothing else. A line `//90 ...` of a text is for devices from 9.0 on, and a comment
for others. `python -m tools.build_cuda_kernels` writes the folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgellm.backends.cuda.entry import Entry, Parameter
from edgellm.errors import BackendUnavailable, EdgeLLMError, UsageError
from edgellm.jsonfile import read_json

CODE = Path(__file__).parent / "code"
INDEX = "index.json"
FORMAT = 1
_WAITING = re.compile(r"^//(\d+) ", re.M)

#: Least version of PTX that a target's code is valid in: 7.4 came with CUDA 11.4 (JetPack 5), 7.8 with 11.8.
VERSIONS = {70: "7.4", 75: "7.4", 80: "7.4", 90: "7.8"}


def header(target: int) -> str:
    """What begins a module of texts for that compute capability, one of `VERSIONS`."""
    return f".version {VERSIONS[target]}\n.target sm_{target}\n.address_size 64\n"


def ready(text: str, capability: int) -> tuple[str, int]:
    """The text with the lines that wait for such a device, and the target these need, 0 where there are none."""
    waiting = {int(found) for found in _WAITING.findall(text)}
    reached = {target for target in waiting if target <= capability}
    for target in reached:
        text = text.replace(f"\n//{target} ", "\n")
    return text, max(reached, default=0)


@dataclass(frozen=True)
class Shipped:
    """The shipped code.

    Attributes:
        entries: the kernels by name.
        texts: by kernel and target the text of its body.
        sources: by kernel the digest of the sources it was built from (`kernels/sources.py`).
        modules: by kernel the module that declares it.
    """

    entries: dict[str, Entry]
    texts: dict[str, dict[int, str]]
    sources: dict[str, str]
    modules: dict[str, str] = field(default_factory=dict)

    def module(self, names: Iterable[str], capability: int) -> str:
        """PTX of the kernels `names` for a device of that compute capability (87 means 8.7).

        Raises:
            UsageError: there is no kernel of a name.
            BackendUnavailable: a kernel does not run on such a device.
        """
        chosen: list[str] = []
        used = min(VERSIONS)
        for name in sorted(set(names)):
            if name not in self.entries:
                raise UsageError(
                    "no such kernel is shipped", key=name, found=name, allowed="a kernel of code/index.json"
                )
            target = max((known for known in self.texts[name] if known <= capability), default=0)
            if not target or not self.entries[name].runs_on(capability):
                raise BackendUnavailable(
                    "the device is too old for a kernel",
                    key=name,
                    found=f"compute capability {capability / 10}",
                    allowed=f"{self.entries[name].lowest / 10} and up",
                )
            text, newest = ready(self.texts[name][target], capability)
            used = max(used, target, newest)
            chosen.append(text)
        return header(used) + "".join(chosen)


@cache
def shipped(folder: Path = CODE) -> Shipped:
    """Read the folder, once.

    Raises:
        InputError: it or a file of it is missing.
        EdgeLLMError: index and texts disagree.
    """
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT:
        raise _damaged(folder / INDEX, "format", index.get("format"), str(FORMAT))
    files = {}
    for target, digest in index["targets"].items():
        path = folder / f"sm_{target}.ptx"
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise _damaged(path, "targets." + target, "another digest", digest)
        files[int(target)] = data.decode("ascii")
    entries, texts, sources, modules = {}, {}, {}, {}
    for name, row in index["kernels"].items():
        entries[name] = _entry(name, row)
        texts[name] = {int(t): files[int(t)][start : start + size] for t, (start, size) in row["code"].items()}
        sources[name], modules[name] = row["sources"], row["module"]
    return Shipped(entries, texts, sources, modules)


def _entry(name: str, row: dict[str, Any]) -> Entry:
    parameters = tuple(Parameter(*parameter) for parameter in row["parameters"])
    return Entry(
        name, parameters, row["threads"], row["min_blocks"], row["lowest"], row["highest"], row["dynamic_shared"]
    )


def _damaged(file: Path, key: str, found: object, allowed: str) -> EdgeLLMError:
    return EdgeLLMError(
        "the CUDA code of this installation is damaged",
        file=file,
        key=key,
        found=found,
        allowed=allowed,
        hint="install edgellm anew",
    )
