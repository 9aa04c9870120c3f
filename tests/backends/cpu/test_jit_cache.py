"""The kernel cache, from outside: processes of a copied package share it, lose it, damage it."""

from __future__ import annotations

import compileall
import itertools
import os
import shutil
import stat
import subprocess
import sys

import pytest

from tests.backends.cpu.jit_tree import HOST_HELPER, Tree, result

ANSWER = 48.0  # three times the sum of 2 x + 1 over 0, 1, 2, 3


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A copy whose kernels are compiled, and what the first process found."""
    tree = Tree.make(tmp_path_factory.mktemp("warm"))
    return tree, tree.run("host")


@pytest.fixture
def tree(warm, tmp_path):
    """A warm copy to be spoilt."""
    shutil.copytree(warm[0].folder, tmp_path / "tree")
    return Tree(tmp_path / "tree")


def test_the_second_process_compiles_nothing(warm):
    tree, first = warm
    second = tree.run()
    assert first["answer"] == second["answer"] == ANSWER
    assert (first["compiled"], first["loaded"]) == (3, 0)
    assert (second["compiled"], second["loaded"]) == (0, 1)  # the others are within the one that is called
    assert second["heard"] == []
    assert first["warnings"] == second["warnings"] == []
    names = [name for name, seconds in first["heard"] if seconds is None]
    assert names == ["make.times", "total", "helper"]
    ended = {name: seconds for name, seconds in first["heard"] if seconds is not None}
    assert ended["make.times"] == pytest.approx(first["seconds"])
    assert ended["make.times"] > ended["helper"] > 0


def test_entries_are_private(warm):
    tree, first = warm
    folders = [tree.cache / "jit", tree.cache / "jit" / first["digest"]]
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tree.entries()} == {0o600}
    assert [file.parent for file in tree.entries()] == [folders[1]] * 3


def test_an_edited_helper_is_noticed(tree):
    before = tree.run("host")
    (tree.package / "simd" / "factor.py").write_text("FACTOR = 4.0\n")
    (tree.folder / "lib" / "host_helper.py").write_text(HOST_HELPER.format(100))
    after = tree.run("host")
    assert after["digest"] != before["digest"]
    assert (after["answer"], after["compiled"]) == (84.0, 3)
    # the control: numba's own cache, which the host application keeps using, answers with the old helper
    assert before["host_answer"] == after["host_answer"] == 2
    assert list((tree.folder / "numba").rglob("host.*.nbi"))
    assert not list(tree.cache.rglob("host*"))


def test_damaged_entries_are_compiled_again_and_repaired(tree):
    helper, times, total = tree.entries()
    helper.write_bytes(b"")
    times.write_bytes(times.read_bytes()[:-100])
    total.write_bytes(b"cbuiltins\nexit\n(i3\ntR.")  # a pickle that would end the process
    damaged = tree.run()
    assert (damaged["answer"], damaged["compiled"], damaged["warnings"]) == (ANSWER, 3, [])
    assert tree.run()["compiled"] == 0


def test_two_processes_compile_at_once(tree):
    shutil.rmtree(tree.cache)
    both = [tree.start(), tree.start()]
    assert [result(process)["answer"] for process in both] == [ANSWER, ANSWER]
    assert tree.run()["compiled"] == 0
    assert len(list((tree.cache / "jit").rglob("*.*"))) == 3


def test_without_a_home_the_temporary_folder_serves(tree):
    environ = {"EDGELLM_CACHE_DIR": None, "XDG_CACHE_HOME": "not/absolute", "HOME": str(tree.folder / "run.py" / "no")}
    first, second = tree.run(**environ), tree.run(**environ)
    assert (first["answer"], first["compiled"], second["compiled"]) == (ANSWER, 3, 0)
    assert len(first["warnings"]) == 1
    assert "instead" in first["warnings"][0]
    assert second["warnings"] == []
    assert not (tree.folder / "not").exists()


def test_with_no_place_at_all_it_runs_uncached(tree):
    nowhere = str(tree.folder / "run.py" / "below")
    found = tree.run(EDGELLM_CACHE_DIR=nowhere, TMPDIR=nowhere)
    assert (found["answer"], found["compiled"]) == (ANSWER, 3)
    assert len(found["warnings"]) == 1
    assert "compiled anew" in found["warnings"][0]


def test_a_folder_that_others_can_write_is_not_used(tree):
    (tree.cache / "jit").chmod(0o777)
    found = tree.run()
    assert (found["answer"], found["compiled"]) == (ANSWER, 3)
    assert len(found["warnings"]) == 1
    assert "others may write" in found["warnings"][0]


def test_from_a_zip(tree):
    path = shutil.make_archive(str(tree.folder / "zipped"), "zip", tree.folder / "lib")
    first, second = tree.run(path=path), tree.run(path=path)
    assert (first["answer"], first["compiled"], second["compiled"]) == (ANSWER, 3, 0)
    (tree.package / "simd" / "factor.py").write_text("FACTOR = 4.0\n")
    path = shutil.make_archive(str(tree.folder / "edited"), "zip", tree.folder / "lib")
    edited = tree.run(path=path)
    assert (edited["answer"], edited["digest"] == first["digest"]) == (84.0, False)


def test_without_source_files(tree):
    """As in a frozen application: byte code alone."""
    first = tree.run()
    compileall.compile_dir(tree.package, quiet=1, legacy=True)
    for file in tree.package.rglob("*.py"):
        file.unlink()
    frozen, second = tree.run(), tree.run()
    assert frozen["digest"] == second["digest"] != first["digest"]
    assert (frozen["answer"], frozen["compiled"], second["compiled"]) == (ANSWER, 3, 0)


def test_without_the_jit_kernels_are_plain_functions(tree):
    found = tree.run(NUMBA_DISABLE_JIT="1")
    assert (found["answer"], found["compiled"], found["loaded"]) == (ANSWER, 0, 0)


NUMBERS = """
import os
import edgellm.backends.cpu.jit_cache as cache
assert cache._number_apart()
from numba.core.bytecode import FunctionIdentity
here = next(FunctionIdentity._unique_ids)
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, str(next(FunctionIdentity._unique_ids)).encode())
    os._exit(0)
os.waitpid(child, 0)
print(here, os.read(read, 100).decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_functions_of_two_processes_never_have_the_same_number() -> None:
    """Closures of one factory differ in it alone, and entries of several processes are linked with each other."""
    shown = [subprocess.run([sys.executable, "-c", NUMBERS], capture_output=True, text=True, check=True) for _ in "ab"]
    numbers = sorted(int(number) for run in shown for number in run.stdout.split())
    assert len(numbers) == 4
    assert min(later - number for number, later in itertools.pairwise(numbers)) >= 1 << 20
