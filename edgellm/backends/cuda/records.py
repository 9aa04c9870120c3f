"""Step records from a batch, and how a batch is taken apart into steps that the kernels know."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgellm.backends.cuda.kernels.record import (
    COUNT,
    END,
    EVICTED,
    MAX_BATCH,
    RECORD_WORDS,
    SINKS,
    SLOT,
    TEMPERATURE,
    TOKEN,
)
from edgellm.backends.interface import Batch, Choice
from edgellm.backends.slots import SlotState

_RECORD_BYTES = 4 * RECORD_WORDS
#: The words of a record from TOKEN to COUNT, which are its first ones.
_BEGIN = struct.Struct(f"<{COUNT - TOKEN + 1}I")
#: Those from TEMPERATURE to VOCAB, the seed as one number.
_CHOICE = struct.Struct("<fIfQII")
_CHOICE_BYTES = 4 * TEMPERATURE


@dataclass(frozen=True)
class Part:
    """What one step does of a batch: a token of each of several sequences, or some tokens of one.

    Attributes:
        decode: whether each row is a sequence's.
        states: slot states before it.
        rows: which tokens of the batch, ascending.
        wanted: rows of this part whose logits are wanted, by their number in the part.
    """

    decode: bool
    states: tuple[SlotState, ...]
    rows: np.ndarray
    wanted: np.ndarray


def parts_of(batch: Batch, most: int) -> Iterator[Part]:
    """The steps of a batch: tokens that are alone in their sequence, up to `MAX_BATCH` at a time, then the prompts, up
    to `most` tokens at a time."""
    spans = list(itertools.pairwise(batch.seq_starts.tolist()))
    wanted = np.zeros(len(batch.token_ids), bool)
    wanted[batch.logits_rows] = True
    alone = [number for number, (first, last) in enumerate(spans) if last - first == 1]
    for begin in range(0, len(alone), MAX_BATCH):
        numbers = alone[begin : begin + MAX_BATCH]
        rows = np.array([spans[number][0] for number in numbers])
        yield Part(True, tuple(batch.states[number] for number in numbers), rows, np.flatnonzero(wanted[rows]))
    for number, (first, last) in enumerate(spans):
        if last - first == 1:
            continue
        state = batch.states[number]
        for begin in range(first, last, most):
            rows = np.arange(begin, min(begin + most, last))
            yield Part(False, (state,), rows, np.flatnonzero(wanted[rows]))
            state = state.extended(len(rows))


def write_records(records: np.ndarray, part: Part, token_ids: np.ndarray) -> None:
    """Fill `records`, uint32 [MAX_BATCH, RECORD_WORDS], for a part; token ids of a prompt stand elsewhere."""
    records[:] = 0
    for row, state in enumerate(part.states):
        record = records[row]
        record[TOKEN] = token_ids[part.rows[row]]
        record[SLOT], record[END], record[EVICTED], record[SINKS] = state.slot, state.end, state.evicted, state.sinks
        record[COUNT] = 1 if part.decode else len(part.rows)


def is_decode(batch: Batch) -> bool:
    """Whether a batch is one decode step as it stands: a token of each of up to `MAX_BATCH` sequences."""
    return len(batch.token_ids) == len(batch.states) <= MAX_BATCH


def write_decode_records(host: memoryview, batch: Batch) -> None:
    """As `write_records` for such a batch, into the bytes of the pinned memory; a token waits for this."""
    for row, (token, state) in enumerate(zip(batch.token_ids.tolist(), batch.states, strict=True)):
        _BEGIN.pack_into(host, _RECORD_BYTES * row, token, state.slot, state.end, state.evicted, state.sinks, 1)


def write_choice(host: memoryview, row: int, choice: Choice) -> None:
    """How record `row` chooses its token."""
    at = _RECORD_BYTES * row + _CHOICE_BYTES
    limits = (choice.temperature, choice.top_k, choice.top_p)
    _CHOICE.pack_into(host, at, *limits, choice.seed, choice.draw, choice.vocab_size)


def records_in(host: np.ndarray) -> np.ndarray:
    """The records in pinned memory, uint32 [MAX_BATCH, RECORD_WORDS]."""
    return host[: 4 * MAX_BATCH * RECORD_WORDS].view(np.uint32).reshape(MAX_BATCH, RECORD_WORDS)


def ids_in(host: np.ndarray) -> np.ndarray:
    """The token ids of a prompt in pinned memory, uint32, behind the records."""
    return host[4 * MAX_BATCH * RECORD_WORDS :].view(np.uint32)
