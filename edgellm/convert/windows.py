"""A stream of token ids as overlapping windows in which every token is counted once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgellm.errors import UsageError

#: Ids a window where nobody says and the model can take more.
DEFAULT_WINDOW = 2048


@dataclass(frozen=True)
class Window:
    """What a model is given at once.

    Attributes:
        tokens: ids, the prefix first.
        first: index in `tokens` of the first one that is counted; those before it are context alone.
    """

    tokens: list[int]
    first: int


def check_sizes(window: int, stride: int) -> None:
    """Raises `UsageError` where windows of so many ids cannot move by `stride`."""
    if window < 2:
        raise UsageError("too short", key="window", found=window, allowed="2 or more")
    if not 1 <= stride < window:
        hint = "A window begins with at least one id that is context alone."
        raise UsageError("out of range", key="stride", found=stride, allowed=f"1 to {window - 1}", hint=hint)


def windows(ids: Iterable[int], prefix: Sequence[int], window: int, stride: int) -> Iterator[Window]:
    """Windows of at most `window` ids over one document; each but the first counts at most `stride` new ones.

    Every id is counted once, given what its window holds before it; the very first only where there is a prefix.

    Args:
        ids: of the document, read as far as needed.
        prefix: ids that every window begins with (BOS), never counted, shorter than `window`.
        window, stride: see `check_sizes`; the stride is cut to what the prefix leaves free.

    Raises:
        UsageError: see `check_sizes`; or the prefix fills the window.
    """
    check_sizes(window, stride)
    prefix = list(prefix)
    room = window - len(prefix)
    if room < 1:
        raise UsageError("too short", key="window", found=window, allowed=f"{len(prefix) + 1} or more")
    stride = min(stride, room if prefix else room - 1)
    stream = iter(ids)
    held = list(itertools.islice(stream, room))
    first = 0 if prefix else 1
    while len(held) > first:
        yield Window(prefix + held, len(prefix) + first)
        context = held[len(held) - (room - stride) :] if room > stride else []
        fresh = list(itertools.islice(stream, stride))
        held, first = context + fresh, len(context)
