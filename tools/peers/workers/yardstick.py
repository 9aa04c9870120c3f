"""What the machine itself reads and multiplies, in a round's turn as if it were an engine; a job as `drive` has it."""

from __future__ import annotations

import json
import sys

from edgellm.backends.cpu.measure import Yardstick
from tools.peers.workers.drive import say

_SECONDS = 1.0


def main() -> None:
    job = json.loads(sys.argv[1])
    with Yardstick(job["threads"]) as yardstick:
        say("limits", bandwidth=yardstick.read_bandwidth(_SECONDS), integer_peak=yardstick.integer_peak(_SECONDS))
    say("done")


if __name__ == "__main__":
    main()
