"""What the CUDA kernels move for a model: it runs on the PTX emulator, with no GPU, and prints a line a kernel.

    python -m tools.cuda_traffic tests/golden/llama-gqa-head-dim --tokens 4 --capability 80

Bytes, sectors and bank conflicts are exact; nothing here is a time. Small models only: a token of a model of a million
weights takes about a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.interface import Batch
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model import fuse, open_model
from tools.cuda_code.pretended import pretended
from tools.ptx_emulator.driver import DEVICES, FakeDriver
from tools.ptx_emulator.report import table
from tools.ptx_emulator.statistics import Statistics


def traffic(folder: Path, prompt: int, tokens: int, capability: int, lm_head: str, dtype: str) -> dict[str, Statistics]:
    """Counts by kernel of a prompt of `prompt` ids and `tokens` steps after it.

    Args:
        folder: of the model.
        capability: of the device to pretend, times ten.
        lm_head: how the output matrix is kept: int8, int4 or keep.
        dtype: of the cache, float16 or int8.
    """
    with pretended(FakeDriver(capability, measure=True)) as fake:
        with open_model(folder) as model:
            runner = CudaBackend().load(fuse(model.weights.program), model.weights, lm_head=lm_head)
        config = runner.program.config
        shape = CacheGeometry(
            prompt + tokens, config.layer_windows, config.num_key_value_heads, config.head_dim, prompt, dtype
        )
        cache, state = runner.new_cache(shape, 1), SlotState(0)
        runner.run(cache, Batch.of([(state, [k % config.vocab_size for k in range(prompt)], "last")]))
        state = state.extended(prompt)
        for token in range(tokens):
            runner.run(cache, Batch.of([(state, [token % config.vocab_size], "last")]))
            state = state.extended(1)
        return fake.statistics()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_traffic", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("--prompt", type=int, default=16, help="ids of the prompt (16)")
    parser.add_argument("--tokens", type=int, default=4, help="steps after the prompt (4)")
    parser.add_argument("--capability", type=int, default=80, choices=sorted(DEVICES), help="times ten (80)")
    parser.add_argument("--lm-head", default="keep", choices=["keep", "int8", "int4"])
    parser.add_argument("--cache", default="float16", choices=["float16", "int8"])
    given = parser.parse_args()
    found = traffic(given.model, given.prompt, given.tokens, given.capability, given.lm_head, given.cache)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
