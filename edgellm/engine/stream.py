"""An answer, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgellm.engine.engine import Engine
from edgellm.engine.results import Piece, Result
from edgellm.engine.sequence import Sequence
from edgellm.errors import EngineBusy, UsageError


class Stream(Iterator[Piece]):
    """Iterates over the pieces of one answer; the texts joined are `result.text`.

    May be dropped, closed or left at any time: the slot is freed. `cancel` may be called from any thread.

    Args:
        engine: where the sequence runs.
        sequence: submitted already.
        on_end: called once, with the result, when the answer has ended in any way but an error.
        on_error: called once when it ended in an error.
    """

    def __init__(
        self,
        engine: Engine,
        sequence: Sequence,
        *,
        on_end: Callable[[Result], None] | None = None,
        on_error: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._sequence = sequence
        self._on_end = on_end
        self._on_error = on_error
        self._result: Result | None = None
        self._failed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        """The next piece. Raises what `Engine.next_piece` raises."""
        if self._result is not None or self._failed:
            raise StopIteration
        try:
            piece = self._engine.next_piece(self._sequence)
        except EngineBusy:
            raise  # a call from inside a step: the answer goes on
        except Exception:
            self._failed = True
            if self._on_error is not None:
                self._on_error()
            raise
        except BaseException:
            self.close()
            raise
        if piece is None:
            self._end()
            raise StopIteration
        return piece

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # No lock here: this may run in the middle of anything. The scheduler finds the flag before its next step.
        self._sequence.cancel_requested = True

    @property
    def result(self) -> Result:
        """The answer; what there is of it where it was cancelled or closed.

        Raises:
            UsageError: before the end, or where the end was an error.
        """
        if self._failed:
            raise UsageError("the answer ended in an error, there is no result")
        if self._result is None:
            raise UsageError("the answer has not ended", hint="Iterate to the end, or call close() first.")
        return self._result

    @property
    def done(self) -> bool:
        """Whether the answer has ended, in an error too."""
        return self._result is not None or self._failed

    def cancel(self) -> None:
        """Ask for the end, from any thread: the iteration ends after at most one more step."""
        self._sequence.cancel_requested = True

    def close(self) -> None:
        """End now and free the slot; what was generated is in `result`. A second call does nothing."""
        if not self.done:
            self._engine.finish(self._sequence)
            self._end()

    def drain(self) -> Result:
        """Iterate to the end. Raises what `Engine.next_piece` raises."""
        for _ in self:
            pass
        return self.result

    def _end(self) -> None:
        self._result = self._sequence.result()
        if self._on_end is not None:
            self._on_end(self._result)
