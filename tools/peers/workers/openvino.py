"""OpenVINO GenAI's LLMPipeline on the CPU; `options`: cache_dir, attention_backend, max_num_batched_tokens."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino_genai
from openvino import Tensor

from tools.peers.workers.drive import drive


class _Engine:
    def __init__(self, job: dict[str, Any]) -> None:
        options = job["options"]
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": job["threads"]}
        if options.get("cache_dir"):
            properties["CACHE_DIR"] = options["cache_dir"]
        if options.get("attention_backend", "PA") == "PA":
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            # a prompt in one piece, as the other engines take it
            scheduler.max_num_batched_tokens = options.get("max_num_batched_tokens", job["context"])
            properties["scheduler_config"] = scheduler
        else:
            properties["ATTENTION_BACKEND"] = "SDPA"
        self._pipe = openvino_genai.LLMPipeline(job["model"], "CPU", **properties)

    def run(self, prompt: list[int], generate: int) -> tuple[float, float]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = generate + 1
        config.ignore_eos = True
        config.do_sample = False
        ids = np.array([prompt], np.int64)
        inputs = openvino_genai.TokenizedInputs(Tensor(ids), Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self._pipe.generate(inputs, config)
        spent = time.perf_counter() - start
        if len(result.tokens[0]) != generate + 1:
            raise RuntimeError(f"{len(result.tokens[0])} tokens instead of {generate + 1}")
        first = result.perf_metrics.get_ttft().mean / 1000 if generate else spent
        return first, spent - first

    def facts(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    drive(_Engine)
