"""`edgellm warmup`: compile the CPU backend's kernels now, so that no later start waits for it."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.compiling import Compiling, found_in, kept_in, kernels
from edgellm.cli.parser import Parser
from edgellm.cli.places import short
from edgellm.cli.terminal import Terminal

if TYPE_CHECKING:
    import numpy as np

    from edgellm.model import Program


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm warmup`."""
    parser.description = (
        "Compile the CPU backend's kernels for this processor and keep them, as the first run of a model would.\n"
        "For images and installers: run it as the user, and with the EDGELLM_CACHE_DIR, that will run the models."
    )
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Print what was compiled and where it is kept. 0 also where it cannot be kept."""
    from edgellm.backends import find

    find("cpu")  # an installation that cannot run it says so here
    from edgellm.backends.cpu import jit_progress
    from edgellm.simd import TARGET

    terminal = Terminal.of(args)
    start, before = time.perf_counter(), jit_progress.statistics()
    with Compiling(terminal, summarize=False) as compiling:
        compile_kernels()
    seconds = time.perf_counter() - start
    folder = kept_in() if compiling.compiled else found_in()
    facts = {
        "isa": TARGET.isa,
        "cpu": TARGET.cpu,
        "compiled": compiling.compiled,
        "from_cache": jit_progress.statistics().loaded - before.loaded,
        "compile_seconds": round(compiling.seconds, 3),
        "seconds": round(seconds, 3),
        "folder": None if folder is None else short(folder),
    }
    if args.json:
        terminal.json(facts)
    else:
        terminal.line(_sentence(facts))
    return 0


def compile_kernels() -> None:
    """Load a tiny model with the CPU backend and run a token: one compile serves every model."""
    from edgellm.backends.cpu.backend import CpuBackend
    from edgellm.model import build_program, fuse

    program = fuse(build_program(_tiny_config()))
    CpuBackend().load(program, _TinyWeights(program), threads=1).close()


def _sentence(facts: dict[str, Any]) -> str:
    if facts["compiled"]:
        done = f"compiled {kernels(facts['compiled'])} for {facts['isa']} in {facts['compile_seconds']:.1f} s"
    else:
        done = f"nothing to compile: the kernels for {facts['isa']} are ready ({facts['seconds']:.1f} s)"
    if facts["folder"] is None:
        return f"{done}; nothing can be kept here, every process compiles anew: set EDGELLM_CACHE_DIR"
    return f"{done}; kept in {facts['folder']}"


def _tiny_config() -> Any:
    from edgellm.model import ModelConfig
    from edgellm.model.architectures import TABLE
    from edgellm.model.rope import Rope

    return ModelConfig(
        model_type="llama",
        architecture=next(row for row in TABLE if row.name == "llama"),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=32,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        hidden_act="silu",
        tie_word_embeddings=True,
        layer_windows=(None,),
        layer_ropes=(Rope(10000.0, 16),),
        attention_scale=0.25,
    )


class _TinyWeights:
    """Constant weights of a program, in place of a checkpoint: dense linears, and the embedding as lm_head."""

    lm_head_is_embedding = True

    def __init__(self, program: Program) -> None:
        self._program = program

    @property
    def program(self) -> Program:
        return self._program

    def vector(self, name: str) -> np.ndarray:
        return self._full(name)

    def is_dense(self, name: str) -> bool:
        return True

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        return self._full(name)[first:last]

    def stored_dtype(self, name: str) -> str:
        return "F32"

    def bias(self, name: str) -> None:
        return None

    def describe(self, name: str) -> dict[str, Any]:
        shape = self._program.weights[name].shape
        return {"kind": "F32", "nbytes": 4 * shape[0] * shape[1]}

    def _full(self, name: str) -> np.ndarray:
        import numpy as np

        return np.full(self._program.weights[name].shape, 0.01, np.float32)
