"""What a step gives, put together from its parts: logits of rows, or the tokens that were chosen from them."""

from __future__ import annotations

import numpy as np

from edgellm.backends.cuda.kernels.sampling_plan import NOT_FINITE
from edgellm.backends.cuda.records import Part
from edgellm.backends.interface import Batch, Choice
from edgellm.errors import UsageError


class Answer:
    """Of a program without logits, every row of its result.

    Attributes:
        logits: float32 [rows without a choice, width].
        tokens: int64 [R], -1 where there is none.

    Raises:
        UsageError: choices that are not one a row, or of a row that is not its sequence's last and only one.
    """

    def __init__(self, batch: Batch, has_logits: bool, width: int) -> None:
        count = len(batch.token_ids)
        rows = batch.logits_rows if has_logits else np.arange(count)
        choices = batch.choices or (None,) * len(rows)
        _check(batch, rows, choices)
        free = rows[np.array([choice is None for choice in choices], bool)]
        self.logits = np.empty((len(free), width), np.float32)
        self.tokens = np.full(len(rows), -1, np.int64)
        self._places = np.zeros(count, np.int64)
        self._places[free] = np.arange(len(free))
        chosen = zip(rows.tolist(), enumerate(choices), strict=True)
        self._choices = {row: (place, choice) for row, (place, choice) in chosen if choice is not None}

    def choices(self, part: Part) -> dict[int, Choice]:
        """How tokens of a part are chosen, by its rows."""
        rows = zip(part.wanted.tolist(), part.rows[part.wanted].tolist(), strict=True)
        return {own: self._choices[row][1] for own, row in rows if row in self._choices}

    def put_tokens(self, part: Part, own: list[int], tokens: np.ndarray) -> None:
        """Tokens of the part's rows `own`, as the device leaves them."""
        for row, token in zip(part.rows[own].tolist(), chosen_tokens(tokens).tolist(), strict=True):
            self.tokens[self._choices[row][0]] = token

    def put_logits(self, rows: np.ndarray, logits: np.ndarray) -> None:
        """Logits, or the result, of rows of the batch."""
        self.logits[self._places[rows]] = logits


def chosen_tokens(tokens: np.ndarray) -> np.ndarray:
    """Tokens as the device leaves them, uint32, as int64: -1 where a logit was NaN or infinite."""
    return np.array([-1 if token == NOT_FINITE else token for token in tokens.tolist()], np.int64)


def _check(batch: Batch, rows: np.ndarray, choices: tuple[Choice | None, ...]) -> None:
    if len(choices) != len(rows):
        allowed = f"one for each of {len(rows)} rows"
        raise UsageError("choices do not fit the step", key="choices", found=len(choices), allowed=allowed)
    if not batch.choices:
        return
    sequences = np.searchsorted(batch.seq_starts, rows, side="right") - 1
    wanted = np.bincount(sequences, minlength=len(batch.states))
    for row, sequence, choice in zip(rows.tolist(), sequences.tolist(), choices, strict=True):
        if choice is not None and (wanted[sequence] > 1 or row != batch.seq_starts[sequence + 1] - 1):
            allowed = "the last row of a sequence that wants no other"
            raise UsageError("no token is chosen there", key="choices", found=f"row {row}", allowed=allowed)
