"""Native code from outside: a process that finds it imports no numba, and one that must not trust it compiles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.cpu.jit_tree import Tree
from tests.backends.cpu.kernels import WITHOUT_JIT

ROOT = Path(__file__).parents[3]
ANSWER = [48.0, 48.0]
posix_only = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are those of POSIX")


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A copy whose native code is kept, and what the process found that compiled it."""
    tree = Tree.make(tmp_path_factory.mktemp("native"))
    return tree, tree.run(script="run_native.py")


@pytest.fixture
def tree(warm, tmp_path):
    """A warm copy to be spoilt."""
    shutil.copytree(warm[0].folder, tmp_path / "tree")
    return Tree(tmp_path / "tree")


def entry(tree: Tree) -> Path:
    (found,) = (path for path in tree.entries() if path.name.startswith("spread"))
    return found


def again(tree: Tree, **environ) -> dict:
    return tree.run(script="run_native.py", **environ)


def test_the_second_process_needs_no_numba(warm) -> None:
    tree, before = warm
    assert (before["answer"], before["compiled"], before["numba"], before["warnings"]) == (ANSWER, 2, True, [])
    after = again(tree)
    assert (after["answer"], after["compiled"], after["loaded"], after["numba"]) == (ANSWER, 0, 1, False)


@pytest.mark.parametrize("spoil", ["empty", "cut", "flipped", "not ours", "python"])
def test_damaged_code_is_compiled_again(tree, spoil: str) -> None:
    path = entry(tree)
    data = bytearray(path.read_bytes())
    data[-2000] ^= 4
    pickled, elf = b"cos\nabort\n(tR.", b"\x7fELF" * 99
    spoilt = {"empty": b"", "cut": data[:-1], "flipped": data, "not ours": elf, "python": pickled}
    path.write_bytes(bytes(spoilt[spoil]))
    after = again(tree)
    assert (after["answer"], after["compiled"], after["warnings"]) == (ANSWER, 1, [])
    assert again(tree)["compiled"] == 0


@posix_only
def test_code_that_others_can_write_is_not_loaded(tree) -> None:
    entry(tree).chmod(0o666)
    assert again(tree)["compiled"] == 1


@posix_only
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can give files away")
def test_code_of_another_user_is_not_loaded(tree) -> None:
    os.chown(entry(tree), 12345, -1)
    after = again(tree)
    assert (after["answer"], after["compiled"]) == (ANSWER, 1)


def test_an_edited_source_is_noticed(tree) -> None:
    (tree.package / "simd" / "factor.py").write_text("FACTOR = 4.0\n")
    after = again(tree)
    assert (after["answer"], after["compiled"], after["loaded"]) == ([84.0, 84.0], 2, 0)


@pytest.mark.parametrize("environ", [{"EDGELLM_ISA": "generic"}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_OPT": "1"}])
def test_other_settings_are_other_code(tree, environ: dict[str, str]) -> None:
    after = again(tree, **environ)
    assert (after["answer"], after["compiled"]) == (ANSWER, 2)
    assert again(tree)["compiled"] == 0


@posix_only
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes everywhere")
def test_a_readonly_cache_is_read(tree) -> None:
    folders = [tree.cache, *(path for path in tree.cache.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        after = again(tree)
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert (after["answer"], after["compiled"], after["warnings"]) == (ANSWER, 0, [])


def test_without_the_jit_python_runs_the_kernel(tree) -> None:
    after = again(tree, NUMBA_DISABLE_JIT="1")
    assert (after["answer"], after["compiled"], after["loaded"]) == (ANSWER, 0, 0)


@pytest.mark.skipif(WITHOUT_JIT, reason="there is no code to load")
def test_a_warm_start_of_a_model_imports_no_numba() -> None:
    code = (
        "import sys, edgellm\n"
        "with edgellm.load() as llm: tokens = llm.generate('Hello', max_tokens=3, temperature=0).tokens\n"
        "print(len(tokens), 'numba' in sys.modules)"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environ)
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "False"]
