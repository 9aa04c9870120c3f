"""What every worker does: load, generate, say how long it took, one JSON object a line on standard output.

A job is a JSON object: `model`, `vocab_size`, `threads`, `context`, `options` (the engine's own), `seed`, `steps`. A
step is {"prompt": tokens, "generate": tokens, "repeat": times}; `generate` counts tokens after the first. Lines that
come back have an "event": "loaded" (seconds), "first" (when, on the system's monotonic clock), "step" (seconds of the
prompt up to the first token, seconds of the tokens after it), "memory" (the most this process held so far), "done".
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

FIRST_TOKEN_PROMPT = 16


class Engine(Protocol):
    """An engine with a model in it."""

    def run(self, prompt: list[int], generate: int) -> tuple[float, float]:
        """Continue a prompt it has not seen, greedily and past the end of text, by `generate` tokens after the first.

        Returns:
            Seconds until the first token, seconds of those after it.
        """

    def facts(self) -> dict[str, Any]:
        """What the table says of this engine beyond the times and what was noted beside the model."""


def drive(load: Callable[[dict[str, Any]], Engine]) -> None:
    """Load the model, then do the steps of the job in argv[1]."""
    job = json.loads(sys.argv[1])
    source = random.Random(job["seed"])
    start = time.monotonic()
    engine = load(job)
    say("loaded", seconds=time.monotonic() - start, **engine.facts())

    def prompt(tokens: int) -> list[int]:
        return source.choices(range(job["vocab_size"]), k=tokens)

    engine.run(prompt(FIRST_TOKEN_PROMPT), 0)
    say("first", at=time.monotonic())
    for step in job["steps"]:
        for _ in range(step.get("repeat", 1)):
            first, rest = engine.run(prompt(step["prompt"]), step["generate"])
            say("step", prompt=step["prompt"], generate=step["generate"], prefill_s=first, decode_s=rest)
    say("memory", bytes=peak_bytes())
    say("done")


def say(event: str, **values: Any) -> None:
    """One line to the process that waits."""
    # a library may have left a line unfinished
    print("\n" + json.dumps({"event": event, **values}), flush=True)


def peak_bytes() -> int:
    """The most memory this process held, file pages it mapped included."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")
