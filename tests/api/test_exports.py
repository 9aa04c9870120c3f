"""What `import edgellm` gives, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgellm

HEAVY = ("numpy", "safetensors", "tokenizers", "sentencepiece", "jinja2", "rich", "prompt_toolkit", "numba")


def test_every_name_in_all_is_there():
    for name in edgellm.__all__:
        assert getattr(edgellm, name) is not None
    assert set(edgellm._LAZY) <= set(edgellm.__all__) <= set(dir(edgellm))
    with pytest.raises(AttributeError, match="nothing"):
        _ = edgellm.nothing


def test_all_errors_are_exported():
    errors = {name for name, value in vars(edgellm.errors).items() if isinstance(value, type)} - {"Any"}
    assert errors <= set(edgellm.__all__)


def test_the_import_is_quick_and_imports_nothing_heavy():
    code = (
        "import time, sys; start = time.perf_counter(); import edgellm; took = time.perf_counter() - start;"
        f"print(took, *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    found = [run.stdout.split() for run in runs]
    assert all(words[1:] == [] for words in found)
    assert min(float(words[0]) for words in found) < 0.05


def test_the_import_changes_nothing_in_the_process(tmp_path):
    code = (
        "import os, signal, sys, threading;"
        "state = lambda: (dict(os.environ), [signal.getsignal(s) for s in signal.valid_signals()],"
        " threading.active_count(), os.getcwd(), os.listdir('.'), sys.getrecursionlimit(), sys.excepthook);"
        "before = state(); import edgellm; edgellm.load, edgellm.convert; assert state() == before"
    )
    root = str(Path(edgellm.__file__).parents[1])
    environ = {**os.environ, "PYTHONPATH": root, "HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environ)
    assert list(tmp_path.iterdir()) == []
