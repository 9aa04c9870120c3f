"""CTranslate2's Generator on the CPU; `options`: compute_type."""

from __future__ import annotations

import time
from typing import Any

import ctranslate2

from tools.peers.workers.drive import drive


class _Engine:
    def __init__(self, job: dict[str, Any]) -> None:
        self._generator = ctranslate2.Generator(
            job["model"],
            device="cpu",
            compute_type=job["options"].get("compute_type", "int8"),
            inter_threads=1,
            intra_threads=job["threads"],
        )

    def run(self, prompt: list[int], generate: int) -> tuple[float, float]:
        # The vocabulary that `ctranslate2_model` writes spells a token as its id.
        tokens, moments = [[str(number) for number in prompt]], []
        start = time.perf_counter()

        def step(result: Any) -> bool:
            moments.append(time.perf_counter())
            return False

        self._generator.generate_batch(
            tokens,
            max_length=generate + 1,
            min_length=generate + 1,
            end_token=[],
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
            callback=step,
        )
        if len(moments) != generate + 1:
            raise RuntimeError(f"{len(moments)} tokens instead of {generate + 1}")
        return moments[0] - start, moments[-1] - moments[0]

    def facts(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    drive(_Engine)
