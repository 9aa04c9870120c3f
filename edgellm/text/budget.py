"""What one rendering of a chat template may cost.

Jinja's sandbox keeps a template from running code, not from running for hours or filling memory. Every loop item, call,
operator, filter and comparison is charged here; so is every character that a template builds, before it is built where
the result can be much longer than its parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

MAX_STEPS = 200_000
MAX_CHARACTERS = 8 << 20
MAX_CPU_SECONDS = 1.5  # real templates need 6 ms for 41 messages
_STEPS_PER_MESSAGE = 64
_TEXT_PER_CHARACTER = 16  # a long conversation passes through several operators
_LOOK_AT_CLOCK = 32


class BudgetExceeded(Exception):
    """A template does more than its budget allows."""


class Budget:
    """The budget of one rendering of `messages` messages that hold `characters` characters."""

    def __init__(self, messages: int = 0, characters: int = 0) -> None:
        self._steps = MAX_STEPS + _STEPS_PER_MESSAGE * messages
        self._characters = MAX_CHARACTERS + _TEXT_PER_CHARACTER * characters
        self._largest = self._characters
        self._deadline = time.thread_time() + MAX_CPU_SECONDS * (1 + characters / MAX_CHARACTERS + messages / 10_000)
        self._until_clock = _LOOK_AT_CLOCK

    def spend(self, steps: int = 1) -> None:
        """Charges work. Raises `BudgetExceeded`."""
        self._steps -= steps
        if self._steps < 0:
            raise BudgetExceeded("it does too much work")
        self._until_clock -= steps
        if self._until_clock < 0:
            self._until_clock = _LOOK_AT_CLOCK
            if time.thread_time() > self._deadline:
                raise BudgetExceeded("it takes too long")

    def build(self, characters: int) -> None:
        """Charges characters (or list items) that are about to be built, and the work of it."""
        self._characters -= characters
        if self._characters < 0:
            raise BudgetExceeded("it builds too much text")
        self.spend(1 + (characters >> 12))

    def check(self, value: Any) -> Any:
        """Charges a result and passes it on."""
        if isinstance(value, (str, list, tuple)):
            self.build(len(value))
        else:
            self.spend()
        return value

    def look(self, value: Any) -> Any:
        """Charges work on the whole of a value, such as a comparison or a copy, and passes it on."""
        if isinstance(value, str):
            self.spend(1 + (len(value) >> 12))
        else:
            self.walk(value)
        return value

    def walk(self, value: Any) -> int:
        """Charges every value inside nested lists and mappings; returns the characters they would print as.

        A list that holds one list twice, forty levels deep, is small in memory and endless in print.
        """
        stack, characters = [value], 0
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                characters += len(item) + 2
                self.spend(1 + (len(item) >> 12))
            else:
                characters += 24
                self.spend()
                if isinstance(item, Mapping):
                    stack.extend(item.keys())
                    stack.extend(item.values())
                elif isinstance(item, (list, tuple, set, frozenset)):
                    stack.extend(item)
        return characters

    def limited(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each charged as a step."""
        for item in items:
            self.spend()
            yield item


current: ContextVar[Budget] = ContextVar("edgellm_template_budget")


def budget() -> Budget:
    """The budget of the rendering at hand."""
    return current.get()
