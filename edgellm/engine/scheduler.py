"""Which tokens run in the next step, in which slots, and what becomes of their logits.

Not thread-safe: `engine.py` calls `plan`, runs the batch and calls `commit`, one step at a time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edgellm.backends.interface import Batch, Cache, Choice, Chosen
from edgellm.backends.slots import SlotState
from edgellm.engine.sequence import Sequence
from edgellm.engine.slot import Slot
from edgellm.errors import EdgeLLMError, NumericalError

#: Tokens a sequence may be ahead of its consumer while nobody waits for a slot.
READ_AHEAD = 8
#: A shared prefix shorter than this is computed again rather than copied from another slot.
COPY_AT_LEAST = 16
#: A shared prefix shorter than this never costs a slot more than it holds of it.
WORTH_A_SLOT = 8


@dataclass(frozen=True)
class Step:
    """A batch and what each sequence brought to it."""

    batch: Batch
    parts: tuple[tuple[Sequence, int], ...]

    @property
    def unwanted(self) -> bool:
        """Whether at least half of the tokens are of sequences that were cancelled: others lose less than is spared."""
        cancelled = sum(count for sequence, count in self.parts if sequence.cancelled)
        return 2 * cancelled >= len(self.batch.token_ids)


class Scheduler:
    """Continuous batching over slots.

    Every step takes one token of each decoding sequence and fills the rest of the token budget (the chunk) with
    prefill, first come first served. Sequences wait for a slot in the order of their submission; one that is given a
    slot takes over what the slot, or a copy of another one, already holds of its prompt.

    Args:
        cache: its geometry says how many tokens fit.
        num_slots: of the cache.
        chooses: whether the runner can choose tokens.
        draws: whether it can where they are drawn, with a temperature.
    """

    def __init__(self, cache: Cache, num_slots: int, *, chooses: bool = False, draws: bool = True) -> None:
        self.cache: Cache | None = cache
        self._chooses, self._draws = chooses, draws
        self.geometry = cache.geometry
        self.slots = [Slot(SlotState(index)) for index in range(num_slots)]
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._clock = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def plan(self) -> Step | None:
        """The next step, None where nothing can run."""
        self.reap()
        while self.waiting and any(not slot.busy for slot in self.slots):
            self._admit(self.waiting.popleft())
        eager = bool(self.waiting)
        ready = [s for s in self.running if (eager or len(s.pieces) < READ_AHEAD) and self._has_room(s)]
        self.running = [sequence for sequence in self.running if not sequence.over]
        budget = self.geometry.chunk - sum(sequence.decoding for sequence in ready)
        parts: list[tuple[Sequence, int]] = []
        for sequence in ready:
            count = 1 if sequence.decoding else min(len(sequence.todo), max(budget, 0 if parts else 1))
            budget -= 0 if sequence.decoding else count
            if count:
                parts.append((sequence, count))
        if not parts:
            return None
        wanted = [(s.slot.state, s.todo[:n], "last" if n == len(s.todo) else "none") for s, n in parts]
        choices = tuple(s.choice(self._draws) for s, n in parts if n == len(s.todo)) if self._chooses else ()
        use = max(s.request.params.logits_use for s, _ in parts)
        choices, ahead = (choices, self._ahead(parts, choices)) if any(choices) else ((), 0)
        return Step(Batch.of(wanted, logits_use=use, choices=choices, ahead=ahead), tuple(parts))

    def _ahead(self, parts: list[tuple[Sequence, int]], choices: tuple[Choice | None, ...]) -> int:
        """Tokens that a backend may choose behind the next one: those that nobody else has to wait for, that have room,
        and that the consumer may be behind."""
        (sequence, count), (choice, *_) = parts[0], choices
        if len(parts) > 1 or self.waiting or choice is None or choice.temperature:
            return 0
        room = self.geometry.room(sequence.slot.state)
        most = min(READ_AHEAD - len(sequence.pieces), sequence.left) - 1
        return max(most if room is None else min(most, room - count), 0)

    def commit(self, step: Step, chosen: Chosen) -> None:
        """Enter a step into the books; where the runner has not chosen the next token, the sequence does now.

        Args:
            chosen: of `Runner.choose` where the batch has choices; else with the logits alone.
        """
        choices, row, free = step.batch.choices, 0, 0
        for sequence, count in step.parts:
            sequence.slot.extend(sequence.todo[:count])
            done, sequence.todo = sequence.todo[:count], sequence.todo[count:]
            if sequence.todo:
                continue
            sequence.todo = done[-1:]
            is_chosen = bool(choices) and choices[row] is not None
            try:
                if sequence.cancelled:
                    pass
                elif is_chosen:
                    sequence.accept_token(int(chosen.tokens[row]))
                    for token in chosen.tokens[len(choices) :]:  # of a lone sequence
                        if sequence.over or sequence.cancelled:
                            break
                        sequence.slot.extend(sequence.todo)
                        sequence.accept_token(int(token))
                else:
                    sequence.accept(chosen.logits[free])
            except Exception as error:
                if isinstance(error, NumericalError):
                    sequence.slot.reset()
                sequence.fail(as_engine_error(error))
            row += 1
            free += not is_chosen
        self.reap()

    def fail(self, step: Step | None, error: EdgeLLMError) -> None:
        """The step (None: any) failed half-way: its sequences end, and what their slots hold is not known any more."""
        for sequence in [*self.running, *self.waiting] if step is None else [part[0] for part in step.parts]:
            if sequence.slot is not None:
                sequence.slot.reset()
            sequence.fail(error)
        self.reap()

    def reap(self) -> None:
        """Take out what is over or cancelled; a freed slot keeps its content."""
        for sequence in [*self.running, *self.waiting]:
            if sequence.cancelled:
                sequence.finish("cancelled")
            if sequence.over and sequence.slot is not None:
                sequence.slot.busy = False
                sequence.slot = None
        self.running = [sequence for sequence in self.running if not sequence.over]
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.over)

    def _admit(self, sequence: Sequence) -> None:
        """Give a sequence the free slot that spares it the most work."""
        request = sequence.request
        finds = [
            slot.reusable(
                self.geometry,
                request.prompt,
                owner=request.owner,
                sinks=request.sinks,
                dropped=request.dropped_tokens,
            )
            for slot in self.slots
        ]
        free = [slot.index for slot in self.slots if not slot.busy]
        best = max(range(len(finds)), key=lambda index: len(finds[index].tokens))
        oldest = min(free, key=lambda index: (self.slots[index].used, index))
        target = max(free, key=lambda index: (len(finds[index].tokens), -self.slots[index].used))
        reused = len(finds[target].tokens)
        if 2 * reused < len(self.slots[target].tokens) and (reused < WORTH_A_SLOT or 2 * reused < len(request.prompt)):
            target = oldest  # most of what that slot holds would be lost for a short common start
        find = finds[target]
        if len(finds[best].tokens) >= len(find.tokens) + COPY_AT_LEAST and not finds[best].shifted:
            self.cache.copy_slot(self.slots[best].state, target)
            find = finds[best]
        slot = self.slots[target]
        slot.take(find, request.sinks)
        slot.owner, slot.busy, slot.used = request.owner, True, self._tick()
        sequence.admitted(slot, len(find.tokens))
        if request.dropped_tokens:
            request.policy.started(bool(find.shifted))
        self.running.append(sequence)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _has_room(self, sequence: Sequence) -> bool:
        """Make room for the sequence's next token where its slot is full; False where that ends it."""
        slot = sequence.slot
        room = self.geometry.room(slot.state)
        if room is None or room >= len(sequence.todo):
            return True
        try:
            eviction = sequence.request.policy.make_room(slot.state, slot.tokens)
        except EdgeLLMError as error:
            sequence.fail(error)
            eviction = None
        if eviction is None:
            sequence.finish("context")
            slot.busy, sequence.slot = False, None
            return False
        sequence.evicted_tokens += eviction.count
        if eviction.recompute is None:
            slot.evict(eviction.count)
        else:
            owner, sinks = slot.owner, slot.state.sinks
            slot.reset()
            slot.owner, slot.state = owner, SlotState(slot.index, sinks=sinks)
            sequence.todo = [*eviction.recompute, *sequence.todo]
        return True


def as_engine_error(error: Exception) -> EdgeLLMError:
    """`error`, wrapped where it is none of ours, so that a consumer need only expect `EdgeLLMError`."""
    if isinstance(error, EdgeLLMError):
        return error
    wrapped = EdgeLLMError(f"the step failed ({type(error).__name__}: {error})")
    wrapped.__cause__ = error
    return wrapped
