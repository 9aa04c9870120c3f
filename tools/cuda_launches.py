"""What a decode step launches on a GPU, and what each launch moves and takes: from a config alone, with no GPU.

    python -m tools.cuda_launches                                the table of tools/cuda_code/launches.txt
    python -m tools.cuda_launches --write                        write that file
    python -m tools.cuda_launches qwen2.5-0.5b --capability 90   another model, another device

A line a kind of launch: bytes of weights and cache, of activations read and written, each counted once a launch;
registers a thread, bytes of shared memory a block, instructions of a thread for each weight it reads, all three
measured on the shipped kernels' machine code (`python -m tools.build_cuda_kernels --table`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgellm.errors import EdgeLLMError
from tools.cuda_code.launches import Setting, config_of, launches, table
from tools.cuda_code.measured import committed
from tools.make_synthetic import MODELS, model_config
from tools.ptx_emulator.driver import DEVICES

TABLE = Path(__file__).parent / "cuda_code" / "launches.txt"
#: What the file shows.
SHOWN_MODELS = ("llama-2-7b", "llama-3.2-1b")
SHOWN_CAPABILITIES = (75, 87, 90)


def render(models: Sequence[str], settings: Sequence[Setting]) -> str:
    """The table of each model with each setting. Raises `EdgeLLMError`."""
    measured = committed()
    parts = []
    for model in models:
        config = config_of(model_config(model), model)
        for setting in settings:
            stored = f"{setting.bits} bits in groups of {setting.group_size}, lm_head {setting.lm_head}"
            title = f"{model if model in MODELS else Path(model).stem}, {stored}, cache {setting.dtype},"
            parts.append("\n".join(table(title, setting, launches(config, setting), measured)) + "\n")
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_launches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help=f"{', '.join(MODELS)}, or a config.json")
    parser.add_argument("--capability", type=int, action="append", choices=sorted(set(DEVICES) - {70}), help="x 10")
    parser.add_argument("--batch", type=int, default=1, choices=range(1, 9))
    parser.add_argument("--depth", type=int, default=Setting.depth, help="tokens in the cache")
    parser.add_argument("--context", type=int, default=Setting.context, help="tokens that it could hold")
    parser.add_argument("--bits", type=int, default=Setting.bits, choices=(4, 8))
    parser.add_argument("--group-size", type=int, default=Setting.group_size)
    parser.add_argument("--lm-head", default=Setting.lm_head, choices=("int8", "int4", "keep"))
    parser.add_argument("--cache", default=Setting.dtype, choices=("float16", "int8"))
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}; takes no other argument")
    given = parser.parse_args(arguments)
    if given.write:
        TABLE.write_text(shown(), encoding="ascii")
        return 0
    stored = (given.bits, given.group_size, given.lm_head, given.cache)
    sizes = (given.batch, given.depth, given.context)
    settings = [Setting(capability, *sizes, *stored) for capability in given.capability or SHOWN_CAPABILITIES]
    try:
        print(render(given.models or SHOWN_MODELS, settings), end="")
    except EdgeLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def shown() -> str:
    """What the file has to say."""
    return render(SHOWN_MODELS, [Setting(capability) for capability in SHOWN_CAPABILITIES])


if __name__ == "__main__":
    sys.exit(main())
