"""`edgellm doctor`: what edgellm finds on this machine, written to be pasted into a report."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from typing import Any

from edgellm import folders
from edgellm._version import __version__
from edgellm.api.embedded import NAME
from edgellm.cli import gpus, machine, options, places
from edgellm.cli.compiling import Compiling
from edgellm.cli.figures import rate
from edgellm.cli.find_model import find_model
from edgellm.cli.parser import Parser
from edgellm.cli.show import print_facts
from edgellm.cli.terminal import Terminal
from edgellm.errors import EdgeLLMError

_RUNTIME = ("numpy", "numba", "llvmlite", "safetensors", "sentencepiece", "tokenizers")
_PACKAGES = (*_RUNTIME, "jinja2", "rich", "prompt-toolkit")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_SELF_TEST_TOKENS = 4


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm doctor`."""
    options.add_model(parser)
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Print what was found; 69 where the self-test cannot run here, else 0."""
    terminal = Terminal.of(args)
    facts = {
        "edgellm": __version__,
        **machine.system(),
        "processor": machine.processor(),
        "cores": machine.cores(),
        "memory": machine.memory(),
        "cuda_driver": gpus.driver(),
        "gpus": gpus.gpus(),
        **_jetson(),
        "backends": _backends(),
        "runs_on": _runs_on(),
        "packages": machine.packages(_PACKAGES),
        "folders": {kind: _folder(kind) for kind in folders.KINDS},
        "variables": _variables(),
        "self_test": _self_test(args.model, terminal),
    }
    facts["executable"] = places.short(facts["executable"])
    if args.json:
        terminal.json(facts)
    else:
        print_facts(facts, terminal)
    return 0 if facts["self_test"]["ok"] else int(facts["self_test"]["exit_code"])


def _jetson() -> dict[str, Any]:
    """Power mode and clocks, where this is a Jetson."""
    found = gpus.jetson()
    return {} if found is None else {"jetson": found}


def _variables() -> dict[str, str]:
    """What steers edgellm and its libraries from outside, secrets left out."""
    names = [name for name in sorted(os.environ) if name.startswith(("EDGELLM_", "NUMBA_", "OMP_", "OPENBLAS_"))]
    return {n: "(set)" if any(word in n for word in _SECRET) else places.short(os.environ[n]) for n in names}


def _backends() -> dict[str, str]:
    """ "ok", or why it cannot run here, by name; fastest first."""
    import importlib

    from edgellm.backends import NAMES, installed

    found = {}
    for name in NAMES:
        if name not in installed():
            found[name] = "not in this version"
            continue
        try:
            found[name] = importlib.import_module(f"edgellm.backends.{name}").backend.unavailable() or "ok"
        except Exception as error:  # the doctor must not fall ill: whatever a broken install raises is the finding
            found[name] = f"cannot be imported: {type(error).__name__}: {error}"
    return found


def _runs_on() -> dict[str, Any]:
    """What a model runs on where nobody names a backend; with compiled kernels, where they are and how many.

    One set serves every model; where there are none yet, the first run compiles them, here the self-test.
    """
    from edgellm.backends import find

    try:
        backend = find()
    except EdgeLLMError as error:
        return {"error": str(error)}
    if backend.name != "cpu":
        return {"backend": backend.name}
    from edgellm.backends.cpu.cores import choose_threads, detect
    from edgellm.backends.cpu.jit_cache import ENTRY, folders
    from edgellm.backends.cpu.jit_folder import user_roots
    from edgellm.simd import TARGET

    found = folders().readable()
    kept = sum(1 for place in found for _ in place.glob(f"*{ENTRY}"))
    root = next(iter(found or user_roots()), None)
    return {
        "backend": backend.name,
        "isa": TARGET.isa,
        "isas": list(TARGET.available),
        "threads": choose_threads(None, detect())[0],
        "kernels": f"{kept} are compiled" if kept else "none were compiled, the self-test compiles them",
        "kernels_folder": None if root is None else places.short(root),
    }


def _folder(kind: str) -> dict[str, Any]:
    """Where it is, and whether it can be written. A folder that is not there yet is judged by its parent."""
    path = folders.folder(kind)
    if path is None:
        return {"path": None, "state": "no home folder"}
    shown = places.short(path)
    if path.is_dir():
        return {"path": shown, "state": "ok" if _writable(str(path)) else "not writable"}
    parent = next((p for p in path.parents if p.exists()), None)
    creatable = parent is not None and parent.is_dir() and os.access(parent, os.W_OK)
    return {"path": shown, "state": "ok, not there yet" if creatable else "cannot be created"}


def _writable(path: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def _self_test(model: str | None, terminal: Terminal) -> dict[str, Any]:
    """Load a model and generate a few tokens; what came of it."""
    import edgellm

    name = model or NAME
    try:
        with Compiling(terminal), edgellm.load(find_model(model), context=64) as llm:
            result = llm.generate("Hello", max_tokens=_SELF_TEST_TOKENS, temperature=0, ignore_eos=True)
            backend = llm.info["backend"]
    except EdgeLLMError as error:
        return {"ok": False, "model": places.short(name), "error": str(error), "exit_code": error.exit_code}
    except Exception as error:  # as above
        return {"ok": False, "model": places.short(name), "error": f"{type(error).__name__}: {error}", "exit_code": 70}
    decode = rate(len(result.tokens) - 1, result.timings.decode_s)
    return {"ok": True, "model": places.short(name), "backend": backend, "tokens": len(result.tokens), "decode": decode}
