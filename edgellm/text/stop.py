"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.errors import UsageError

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024


class StopMatcher:
    """Passes text on until a stop string is complete; no part of that stop string is ever passed on.

    The stop string that is complete first wins, of several that end at the same character the longest. Text that may
    yet become a stop string is held back, so the outcome does not depend on how the text is cut into pushes.

    Raises:
        UsageError: a stop string is empty or too long, or there are too many.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            stops = [stops]
        if len(stops) > MAX_STOPS:
            raise UsageError("too many stop strings", key="stop", found=len(stops), allowed=f"up to {MAX_STOPS}")
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_LENGTH:
                raise UsageError(
                    "stop string not usable", key="stop", found=repr(stop), allowed=f"1 to {MAX_STOP_LENGTH} characters"
                )
        self._stops = tuple(stops)
        self._starts = {stop[:size] for stop in stops for size in range(1, len(stop))}
        self._longest = max(map(len, self._starts), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """`(text to pass on, whether a stop string was met)`; after a stop nothing more is passed on."""
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start], True
        keep = next((n for n in range(min(self._longest, len(text)), 0, -1) if text[-n:] in self._starts), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """The text still held back at the end of the generation."""
        held, self._held = self._held, ""
        return held
