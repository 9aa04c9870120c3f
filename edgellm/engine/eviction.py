"""What leaves when a slot is full in the middle of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgellm.backends.slots import SlotState
from edgellm.errors import UsageError

EVICT_RAW = ("shift", "stop")
EVICT_CHAT = ("shift", "recompute", "error")

#: Tokens at the start of a raw text that stay (StreamingLLM, arXiv:2309.17453: four suffice), at most a quarter.
RAW_SINKS = 4


@dataclass(frozen=True)
class Eviction:
    """Make room.

    Attributes:
        count: tokens that leave behind the sinks.
        recompute: None: the kept keys stay and move; else the tokens to prefill anew into the emptied slot.
    """

    count: int
    recompute: list[int] | None = None


class EvictionPolicy(Protocol):
    """Asked each time a sequence finds its slot full.

    Attributes:
        dropped: messages that have left the conversation, oldest first.
    """

    dropped: tuple[Mapping[str, str], ...]

    def started(self, kept_keys: bool) -> None:
        """Tokens were dropped before the start: whether the kept ones' keys stay, or are computed anew."""

    def make_room(self, state: SlotState, tokens: list[int]) -> Eviction | None:
        """What leaves of the kept `tokens`; None ends the answer with finish_reason "context"."""

    def notes(self, evicted: int) -> tuple[str, ...]:
        """What to tell after `evicted` tokens have left."""


class KeepAll:
    """Nothing leaves: the answer ends where the slot is full."""

    dropped: tuple[Mapping[str, str], ...] = ()

    def started(self, kept_keys: bool) -> None:
        """Nothing is dropped before the start."""

    def make_room(self, state: SlotState, tokens: list[int]) -> Eviction | None:
        return None

    def notes(self, evicted: int) -> tuple[str, ...]:
        return ()


class OldestToken(KeepAll):
    """The oldest token behind the sinks leaves."""

    def make_room(self, state: SlotState, tokens: list[int]) -> Eviction | None:
        return Eviction(1) if state.length > state.sinks else None

    def notes(self, evicted: int) -> tuple[str, ...]:
        return (f"dropped the oldest {evicted} tokens to make room",) if evicted else ()


def raw_policy(evict: str) -> EvictionPolicy:
    """The policy of a raw text by its name. Raises `UsageError`."""
    return OldestToken() if check_evict(evict, EVICT_RAW) == "shift" else KeepAll()


def raw_sinks(context: int) -> int:
    """Tokens at the start of a raw text that stay."""
    return min(RAW_SINKS, context // 4)


def check_evict(evict: object, allowed: tuple[str, ...]) -> str:
    """`evict`, if it is one of `allowed`. Raises `UsageError`."""
    if not isinstance(evict, str) or evict not in allowed:
        raise UsageError("no such way to make room", key="evict", found=repr(evict), allowed=", ".join(allowed))
    return evict
