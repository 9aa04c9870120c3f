"""The engine's book about one cache slot: which tokens it keeps, and what a new prompt can take over from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgellm.backends.slots import CacheGeometry, SlotState


def common_prefix(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """How many ids both begin with, at most `limit`."""
    limit = min(limit, len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    return next(at for at in range(limit) if first[at] != second[at])


@dataclass(frozen=True)
class Reuse:
    """A slot's content as a new prompt can use it: the state and tokens after evicting and rewinding.

    Attributes:
        state: its slot number is that of the slot it was found in.
        tokens: the kept tokens, a prefix of the prompt.
        shifted: tokens evicted behind the sinks to get there.
    """

    state: SlotState
    tokens: list[int]
    shifted: int = 0


@dataclass
class Slot:
    """One slot.

    Attributes:
        state: what the cache holds, in the sense of `backends.slots`.
        tokens: ids of the kept tokens, as many as `state.length`.
        owner: the conversation whose tokens these are; None for raw prompts.
        busy: a sequence runs here.
        used: when it was last given to a sequence (a counter), for choosing the least recently used.
    """

    state: SlotState
    tokens: list[int] = field(default_factory=list)
    owner: object | None = None
    busy: bool = False
    used: int = 0

    @property
    def index(self) -> int:
        return self.state.slot

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.tokens, self.owner = SlotState(self.index), [], None

    def extend(self, tokens: Sequence[int]) -> None:
        """`tokens` have been run here."""
        self.tokens.extend(tokens)
        self.state = self.state.extended(len(tokens))

    def evict(self, count: int) -> None:
        """The oldest `count` tokens behind the sinks leave."""
        sinks = self.state.sinks
        self.state = self.state.evict(count)
        del self.tokens[sinks : sinks + count]

    def take(self, reuse: Reuse, sinks: int) -> None:
        """Hold what `reuse` says (the cache already does); the sinks can only be set while nothing is evicted."""
        state = replace(reuse.state, slot=self.index)
        self.state = replace(state, sinks=sinks) if state.evicted == 0 else state
        self.tokens = list(reuse.tokens)

    def reusable(
        self, geometry: CacheGeometry, prompt: Sequence[int], *, owner: object | None, sinks: int, dropped: int
    ) -> Reuse:
        """The best that `prompt` can take over; its last token is never part of it, since its logits are wanted.

        Keys behind an eviction carry what they saw of the evicted tokens, so only their own conversation goes on from
        them; others get the sinks at most.

        Args:
            geometry: of the cache.
            prompt: the whole prompt.
            owner: the conversation that asks.
            sinks: tokens at the start of `prompt` that stay in an eviction.
            dropped: tokens behind the sinks that the conversation has dropped since its last prompt.
        """
        mine = owner is not None and owner is self.owner
        plain = common_prefix(self.tokens, prompt, len(prompt) - 1)
        if self.state.evicted and not mine:
            plain = min(plain, self.state.sinks)
        best = self._rewound(geometry, self.state, plain)
        shifted = self._shifted(geometry, prompt, sinks, dropped) if mine and dropped else None
        return shifted if shifted is not None and len(shifted.tokens) > len(best.tokens) else best

    def _rewound(self, geometry: CacheGeometry, state: SlotState, length: int) -> Reuse:
        if length == state.length:
            return Reuse(state, self.tokens)
        if state.evicted and length <= state.sinks:
            # Behind the sinks a new text begins, at the number it would have had: right where no ring has lost a row.
            state = SlotState(state.slot, end=length) if geometry.rings_whole(state) else SlotState(state.slot)
        elif geometry.can_rewind(state, length):
            state = state.rewound(length)
        else:
            state = SlotState(state.slot)
        return Reuse(state, self.tokens[: state.length])

    def _shifted(self, geometry: CacheGeometry, prompt: Sequence[int], sinks: int, dropped: int) -> Reuse | None:
        """After evicting `dropped` tokens behind the sinks, None where the rest is then no prefix of the prompt."""
        if self.state.evicted and self.state.sinks != sinks:
            return None
        if sinks + dropped > len(self.tokens):
            return None
        kept = self.tokens[:sinks] + self.tokens[sinks + dropped :]
        length = common_prefix(kept, prompt, len(prompt) - 1)
        state = replace(self.state, sinks=sinks).evict(dropped)
        if length <= sinks or not geometry.can_rewind(state, length):
            return None
        return Reuse(state.rewound(length), kept[:length], dropped)
