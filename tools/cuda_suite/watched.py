"""A prompt and some tokens of golden models, for a tool that watches the process:

python -m tools.cuda_suite.watched cuda:0 llama-mha qwen3
"""

from __future__ import annotations

import sys

from tests.golden_models import cases
from tools.cuda_suite.models import greedy, load

_TOKENS = 4


def main(device: str, names: list[str]) -> int:
    """0 where every id is right."""
    wrong = 0
    for case in cases():
        if case.name not in names:
            continue
        expected, runner = case.reference(), load(case.folder, device, lm_head="keep")
        found = greedy(runner, expected["input_ids_1"], _TOKENS)
        wrong += found != expected["greedy_1"][:_TOKENS].tolist()
        runner.close()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
