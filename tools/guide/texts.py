"""The guide's texts for a conversion: conversations to calibrate on, and held-out answers to measure perplexity by.

    python -m tools.guide.texts --calibration OUT.jsonl --held-out OUT.jsonl

Calibration conversations are drawn as those of the training were, from a seed of their own. Held out are the questions
of the examination (`cases.py`) about edgellm and beyond, each with the first right answer, and sums of held-out pairs.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tools.guide.conversations import Generator
from tools.guide.intents import all_intents
from tools.guide.sums import Sum

Messages = list[dict[str, str]]

_CALIBRATION_SEED = 987654321
_SUMS = 60


def calibration(count: int) -> list[Messages]:
    """Conversations as in training."""
    return [made.messages() for made in islice(Generator(_CALIBRATION_SEED), count)]


def held_out() -> list[Messages]:
    """Questions that training never saw, with their answers; the same list on each call."""
    pairs = [(question, intent.answers[0]) for intent in all_intents() for question in intent.heldout]
    rng, added = random.Random(0), 0
    while added < _SUMS:
        drawn = Sum(rng.randint(10, 99), rng.choice("+-"), rng.randint(10, 99))
        if drawn.heldout:
            pairs.append((f"What is {drawn.a} {drawn.sign} {drawn.b}?", drawn.answer()))
            added += 1
    rng.shuffle(pairs)
    return [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in pairs]


def write(path: Path, conversations: Iterable[Messages]) -> None:
    """One JSON object a line, as `edgellm convert` and `edgellm eval` read them."""
    path.write_text("".join(json.dumps({"messages": made}) + "\n" for made in conversations), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, metavar="FILE")
    parser.add_argument("--held-out", type=Path, metavar="FILE")
    parser.add_argument("--conversations", type=int, default=600, help="to calibrate on (600)")
    args = parser.parse_args()
    if args.calibration:
        write(args.calibration, calibration(args.conversations))
    if args.held_out:
        write(args.held_out, held_out())


if __name__ == "__main__":
    main()
