"""Making room in a conversation: whole exchanges leave, before an answer and in the middle of one."""

from __future__ import annotations

from edgellm.backends.slots import SlotState
from edgellm.engine.eviction import Eviction
from edgellm.engine.transcript import Message, Transcript
from edgellm.errors import ContextLengthError


class TurnEviction:
    """The eviction policy of one answer, an `EvictionPolicy`.

    Args:
        transcript: with the message to be answered.
        mode: "shift", "recompute" or "error".

    Attributes:
        transcript: what is kept now.
        dropped: messages that have left, oldest first.
        dropped_tokens: how many tokens shorter the prompt became, before the start.
    """

    def __init__(self, transcript: Transcript, mode: str) -> None:
        self.transcript = transcript
        self.mode = mode
        self.dropped: tuple[Message, ...] = ()
        self.dropped_tokens = 0
        self._recomputed = False

    def fit(self, context: int, reserve: int) -> None:
        """Drop exchanges until the prompt and `reserve` more tokens fit, as far as there are any to drop.

        Raises:
            ContextLengthError: the prompt alone does not fit, or something would have to go in mode "error".
        """
        before = len(self.transcript.prompt)
        while len(self.transcript.prompt) + reserve > context:
            shorter = self.transcript.without_oldest()
            if shorter is None:
                break
            if self.mode == "error":
                raise ContextLengthError(
                    f"the conversation has {before} tokens, the answer should have {reserve} and the context holds "
                    f"{context}",
                    hint='Clear the conversation, or let old turns go with evict="shift".',
                )
            self.transcript, dropped = shorter
            self.dropped += dropped
        if len(self.transcript.prompt) > context:
            raise ContextLengthError(
                f"the system prompt and the message have {len(self.transcript.prompt)} tokens and the context holds "
                f"{context}",
                hint="Shorten the message or the system prompt, or load the model with a larger context.",
            )
        self.dropped_tokens = before - len(self.transcript.prompt)

    def started(self, kept_keys: bool) -> None:
        """Whether the kept turns' keys could stay in the slot."""
        self._recomputed = not kept_keys

    def make_room(self, state: SlotState, tokens: list[int]) -> Eviction | None:
        """Drop the oldest exchange in the middle of the answer."""
        shorter = self.transcript.without_oldest() if self.mode != "error" else None
        if shorter is None:
            return None
        old, new = self.transcript.prompt, shorter[0].prompt
        count = len(old) - len(new)
        if count <= 0:
            return None
        self.transcript = shorter[0]
        self.dropped += shorter[1]
        sinks = state.sinks
        if self.mode == "shift" and old[:sinks] == new[:sinks] and old[sinks + count :] == new[sinks:]:
            return Eviction(count)
        self._recomputed = True
        return Eviction(count, recompute=[*new, *tokens[len(old) :]])

    def notes(self, evicted: int) -> tuple[str, ...]:
        """What was dropped and whether the rest was computed anew."""
        if not self.dropped:
            return ()
        turns = sum(message["role"] == "user" for message in self.dropped)
        what = "the first turn" if turns == 1 else f"the first {turns} turns"
        how = "the kept turns were computed anew" if self._recomputed else "the kept turns stayed in the cache"
        return (f"dropped {what} ({len(self.dropped)} messages, {evicted} tokens) to make room; {how}",)
