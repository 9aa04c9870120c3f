"""edgellm through its Python API; `options` are passed on to `edgellm.load`."""

from __future__ import annotations

from typing import Any

import edgellm
from tools.peers.workers.drive import drive


class _Engine:
    def __init__(self, job: dict[str, Any]) -> None:
        self._llm = edgellm.load(job["model"], threads=job["threads"], context=job["context"], **job["options"])

    def run(self, prompt: list[int], generate: int) -> tuple[float, float]:
        result = self._llm.generate(prompt, max_tokens=generate + 1, temperature=0, ignore_eos=True, stop=[])
        if len(result.tokens) != generate + 1 or result.usage.cached_tokens:
            raise RuntimeError(f"{len(result.tokens)} tokens, {result.usage.cached_tokens} of the prompt remembered")
        return result.timings.prefill_s, result.timings.decode_s

    def facts(self) -> dict[str, Any]:
        info = self._llm.info
        cache = {"float32": (4, 0), "float16": (2, 0), "int8": (1, 4)}[info["cache_dtype"]]
        return {
            "weight_bytes": info["work"]["weight_bytes"],
            "head": info.get("lm_head", "int8"),
            "cache_item_bytes": cache[0],
            "cache_head_bytes": cache[1],
            "isa": info.get("isa"),
        }


if __name__ == "__main__":
    drive(_Engine)
