"""A copy of the package with three small kernels, to be edited, damaged and run in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import edgellm

_PACKAGE = Path(edgellm.__file__).parent
_COPIED = ("__init__.py", "_version.py", "errors.py", "folders.py", "backends/__init__.py", "simd/settings.py")

FACTOR = "FACTOR = 2.0\n"
_HELPER = """
from edgellm.backends.cpu.jit import kernel
from edgellm.simd.factor import FACTOR

@kernel
def helper(x):
    return x * FACTOR + 1.0
"""
_KERNELS = """
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.helper import helper

@kernel
def total(values):
    sum = 0.0
    for i in range(values.shape[0]):
        sum += helper(values[i])
    return sum

def make(count):
    @kernel
    def times(values):
        return total(values) * count
    return times

times_three = make(3)
"""
#: A kernel that Python calls through `Native`.
_SPREAD = """
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.helper import helper

@kernel
def spread(pair, table, by, ith, nth):
    values, sums = pair
    for row in range(ith, table.shape[0], nth):
        for column in range(table.shape[1]):
            sums[row] += helper(values[column]) * table[row, column] * by
    return sums[0]
"""
#: The host application: its own numba functions, with numba's own cache.
_HOST = """
import numba
from host_helper import host_helper

@numba.njit(cache=True)
def host_answer(x):
    return host_helper(x)
"""
HOST_HELPER = """
import numba

@numba.njit
def host_helper(x):
    return x + {}
"""
_RUN = """
import json, logging, sys

class Kept(logging.Handler):
    messages = []
    def emit(self, record):
        self.messages.append(record.getMessage())

logging.getLogger("edgellm").addHandler(Kept(logging.WARNING))
import numpy as np
from edgellm.backends.cpu import jit_digest, jit_progress, kernels
heard = []
with jit_progress.compiling(lambda name, seconds: heard.append([name, seconds])):
    answer = kernels.times_three(np.arange(4.0))
found = {"answer": answer, "warnings": Kept.messages, "heard": heard, "digest": jit_digest.digest()}
found |= vars(jit_progress.statistics())
if "host" in sys.argv:
    import host
    found["host_answer"] = host.host_answer(1)
print(json.dumps(found))
"""
_RUN_NATIVE = """
import json, logging, sys

class Kept(logging.Handler):
    messages = []
    def emit(self, record):
        self.messages.append(record.getMessage())

logging.getLogger("edgellm").addHandler(Kept(logging.WARNING))
import numpy as np
from edgellm.backends.cpu import jit_progress
from edgellm.backends.cpu.native import Native
sums = np.zeros(2)
call = Native("edgellm.backends.cpu.spread", "spread", threaded=True).prepare(
    (np.arange(4.0), sums), np.ones((2, 4)), np.float32(3.0)
)
for ith in range(2):
    call.function(call.address, ith, 2)
found = {"answer": sums.tolist(), "numba": "numba" in sys.modules, "warnings": Kept.messages}
print(json.dumps(found | vars(jit_progress.statistics())))
"""


@dataclass
class Tree:
    """The copy in `folder`; `cache` is the EDGELLM_CACHE_DIR of its processes."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @classmethod
    def make(cls, folder: Path) -> Tree:
        for name in _COPIED:
            target = folder / "lib" / "edgellm" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_PACKAGE / name, target)
        tree = cls(folder)
        cpu = tree.package / "backends" / "cpu"
        cpu.mkdir()
        for pattern in ("__init__.py", "collector.py", "cores.py", "jit*.py", "native*.py"):
            for file in (_PACKAGE / "backends/cpu").glob(pattern):
                shutil.copyfile(file, cpu / file.name)
        (tree.package / "simd" / "__init__.py").touch()
        for file, text in (
            (tree.package / "simd/factor.py", FACTOR),
            (cpu / "helper.py", _HELPER),
            (cpu / "kernels.py", _KERNELS),
            (cpu / "spread.py", _SPREAD),
            (folder / "lib/host.py", _HOST),
            (folder / "lib/host_helper.py", HOST_HELPER.format(1)),
            (folder / "run.py", _RUN),
            (folder / "run_native.py", _RUN_NATIVE),
        ):
            file.write_text(text)
        return tree

    @property
    def package(self) -> Path:
        return self.folder / "lib" / "edgellm"

    def start(
        self, *arguments: str, path: Path | None = None, script: str = "run.py", **environ: str | None
    ) -> subprocess.Popen[str]:
        """A process of the copy; a variable that is None is unset."""
        wanted: dict[str, str | None] = {
            **os.environ,
            "EDGELLM_CACHE_DIR": str(self.cache),
            "NUMBA_CACHE_DIR": str(self.folder / "numba"),
            "NUMBA_DISABLE_JIT": None,
            "EDGELLM_ISA": None,
            "PYTHONPATH": str(path or self.folder / "lib"),
            "TMPDIR": str(self.folder),
            **environ,
        }
        return subprocess.Popen(
            [sys.executable, str(self.folder / script), *arguments],
            env={name: value for name, value in wanted.items() if value is not None},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, path: Path | None = None, script: str = "run.py", **environ: str | None) -> dict:
        """What a process of the copy found."""
        return result(self.start(*arguments, path=path, script=script, **environ))

    def entries(self) -> list[Path]:
        """The entries in the cache."""
        return sorted(self.cache.rglob("*.nbc"))


def result(process: subprocess.Popen[str]) -> dict:
    """What `process` found. Fails where it failed."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output)
