"""llama.cpp through the C functions that `llama-cpp-python` was built with.

Its ctypes module alone is imported, so that a start costs what it costs a C program, and a bare Python. `options`:
repack (weights rearranged at load), flash_attn, n_ubatch, and `state`: a folder of saved caches. A prompt beyond the
first step is then not computed where only the tokens after it are asked for ("cached" in the job's options): it is
read from a file that a run before has left, for what is in the cache does not change how long reading it takes.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import time
import types
from pathlib import Path
from typing import Any

from tools.peers.workers.drive import drive


def library() -> Any:
    """llama_cpp.llama_cpp without what the package around it imports (numpy, jinja2, a disk cache)."""
    spec = importlib.util.find_spec("llama_cpp")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


class _Engine:
    def __init__(self, job: dict[str, Any]) -> None:
        c, options = library(), job["options"]
        self._c, self._vocab_size = c, job["vocab_size"]
        self._quiet = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self._quiet, ctypes.c_void_p(0))
        c.llama_backend_init()
        model = c.llama_model_default_params()
        model.use_extra_bufts = options.get("repack", True)
        model.n_gpu_layers = 0
        self._model = c.llama_model_load_from_file(job["model"].encode(), model)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {job['model']}")
        context = c.llama_context_default_params()
        context.n_ctx = -(-job["context"] // 256) * 256
        context.n_batch = 2048
        context.n_ubatch = options.get("n_ubatch", 512)
        context.n_threads = context.n_threads_batch = job["threads"]
        context.flash_attn_type = {None: -1, False: 0, True: 1}[options.get("flash_attn")]
        self._context = c.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._batch = context.n_batch
        self._sampler = c.llama_sampler_init_greedy()
        self._state = Path(options["state"]) if options.get("state") else None

    def run(self, prompt: list[int], generate: int) -> tuple[float, float]:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        start = time.perf_counter()
        if self._state is not None and generate:
            self._restore(prompt)
            prompt = prompt[-1:]
        for first in range(0, len(prompt), self._batch):
            self._decode(prompt[first : first + self._batch])
        token = self._sample()
        between = time.perf_counter()
        for _ in range(generate):
            self._decode([token])
            token = self._sample()
        return between - start, time.perf_counter() - between

    def _restore(self, prompt: list[int]) -> None:
        """Fill the cache with all of a prompt but its last token, from the file or anew and into the file."""
        count = len(prompt) - 1
        path = self._state / f"{count}.state"
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        if path.exists():
            read = ctypes.c_size_t(0)
            done = self._c.llama_state_seq_load_file(
                self._context, str(path).encode(), 0, tokens, len(prompt), ctypes.byref(read)
            )
            if not done or read.value != count:
                raise RuntimeError(f"llama.cpp does not take the cache of {path}")
            return
        for first in range(0, count, self._batch):
            self._decode(prompt[first : min(first + self._batch, count)])
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._c.llama_state_seq_save_file(self._context, str(path).encode(), 0, tokens, count):
            raise RuntimeError(f"llama.cpp does not write {path}")

    def _decode(self, ids: list[int]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        status = self._c.llama_decode(self._context, self._c.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode: {status}")

    def _sample(self) -> int:
        return self._c.llama_sampler_sample(self._sampler, self._context, -1)

    def facts(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    drive(_Engine)
