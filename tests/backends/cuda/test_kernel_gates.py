"""What is shipped is what is declared, and its machine code keeps to each kernel's budget on every device.

`python -m tools.build_cuda_kernels` compiles what has changed, with `--table` it measures what has changed; here some
of both is done anew, and all of it under the marker `slow`.
"""

from __future__ import annotations

import json
import re
from types import FunctionType
from typing import Any

import pytest

from edgellm.backends.cuda.entry import Entry
from edgellm.backends.cuda.shipped import CODE, INDEX, shipped

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the kernels, is not installed")

from edgellm.backends.cuda.kernels.declare import Kernel, all_kernels
from edgellm.backends.cuda.kernels.sources import modules_of
from edgellm.backends.cuda.ptx import OPS
from edgellm.backends.cuda.ptx.compile import texts_of
from tools.cuda_code.build import compiler
from tools.cuda_code.measured import CAPABILITIES, MEASURED, assembler, broken, digest, measure, read
from tools.cuda_code.sass import disassembler

_SMALL = 8000  # bytes of text: what is compiled or assembled anew by default


def entry_of(kernel: Kernel) -> dict[str, Any]:
    return {name: getattr(kernel, name) for name in Entry.__dataclass_fields__}


def small() -> list[str]:
    """A small kernel of each module, so that every family is compiled anew somewhere."""
    found: dict[str, str] = {}
    for name, kernel in all_kernels().items():
        if name in shipped().texts and max(map(len, shipped().texts[name].values())) < _SMALL:
            found.setdefault(kernel.module, name)
    return sorted(found.values())


def same_compiler() -> bool:
    return json.loads((CODE / INDEX).read_text(encoding="ascii"))["compiler"] == compiler()


def test_what_is_shipped_is_what_is_declared() -> None:
    code = shipped()
    assert {name: entry_of(kernel) for name, kernel in all_kernels().items()} == {
        name: {field: getattr(entry, field) for field in Entry.__dataclass_fields__}
        for name, entry in code.entries.items()
    }


def test_a_kernel_s_digest_covers_every_function_that_it_was_made_from() -> None:
    for name, kernel in all_kernels().items():
        covered = modules_of(kernel.module)
        made_from = [kernel.function, *(cell.cell_contents for cell in kernel.function.__closure__ or ())]
        functions = [getattr(part, "py_func", part) for part in made_from]
        modules = {function.__module__ for function in functions if isinstance(function, FunctionType)}
        assert modules <= covered, name


def recompiled(names: list[str]) -> dict[str, dict[int, str]]:
    if not same_compiler():
        pytest.skip("the shipped code is of another version of the compiler or of Python")
    return {name: texts_of(all_kernels()[name]) for name in names}


def test_compiling_anew_gives_the_shipped_text() -> None:
    for name, texts in recompiled(small()).items():
        assert texts == shipped().texts[name], name


@pytest.mark.slow
def test_compiling_everything_anew_gives_the_shipped_text() -> None:
    for name, texts in recompiled(list(all_kernels())).items():
        assert texts == shipped().texts[name], name


def test_code_for_the_oldest_devices_has_no_newer_instruction() -> None:
    newer = {re.sub(r"[\s{]*([a-z0-9_.]+).*", r"\1", op.template, flags=re.S) for op in OPS.values() if op.lowest > 70}
    newer -= {op.template.split()[0] for op in OPS.values() if op.lowest <= 70}
    assert {"cp.async.commit_group", "griddepcontrol.wait"} & {name.rstrip(";") for name in newer}
    for name, texts in shipped().texts.items():
        words = set(re.findall(r"^(?:\{ )?([a-z][\w.:]*)", texts.get(70, ""), re.M))
        assert not words & newer, name


def measured_rows() -> dict[str, dict[str, Any]]:
    rows = read()
    assert MEASURED.exists(), "python -m tools.build_cuda_kernels --table"
    if not rows:
        pytest.skip(f"the table was measured with another assembler than {assembler()}")
    return rows


def test_every_kernel_is_measured_on_every_device() -> None:
    rows, code = measured_rows(), shipped()
    for name, kernel in all_kernels().items():
        wanted = {
            str(capability): digest(code, name, capability) for capability in CAPABILITIES if kernel.runs_on(capability)
        }
        assert {capability: row["text"] for capability, row in rows[name].items()} == wanted, f"{name}: --table"


def test_every_kernel_keeps_to_its_budget_on_every_device() -> None:
    beyond = [
        f"{name} on sm_{capability}: {what}"
        for name, devices in measured_rows().items()
        for capability, row in devices.items()
        for what in broken(row, all_kernels()[name].budget)
    ]
    assert not beyond, "\n".join(beyond)


def measured_anew(names: list[str], capability: int) -> None:
    if disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    rows = measured_rows()
    budgets = {name: kernel.budget for name, kernel in all_kernels().items()}
    for name, row in measure(shipped(), budgets, names, capability).items():
        assert row == rows[name][str(capability)], name


@pytest.mark.parametrize("capability", [75, 87, 120])
def test_measuring_anew_gives_the_table(capability: int) -> None:
    measured_anew(small(), capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_measuring_everything_anew_gives_the_table(capability: int) -> None:
    measured_anew(list(all_kernels()), capability)
