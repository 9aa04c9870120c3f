"""A conversation as messages, the tokens they become, and what of it may be dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from edgellm.engine.slot import common_prefix
from edgellm.errors import UsageError

Message = dict[str, str]
#: Messages and add_generation_prompt to token ids.
Render = Callable[[Sequence[Mapping[str, str]], bool], list[int]]

ROLES = ("system", "user", "assistant")


class Transcript:
    """The kept messages of a conversation; never changed, only replaced.

    An exchange is a user message with what follows up to the next one. Whole exchanges are dropped, oldest first;
    neither the system prompt nor the last exchange.

    Args:
        render: the chat template and tokenizer.
        system: the system prompt, None or "" for none.
        turns: the messages behind it.
    """

    def __init__(self, render: Render, system: str | None, turns: Sequence[Message]) -> None:
        self.render = render
        self.system = system or None
        self.turns = tuple(turns)

    @property
    def messages(self) -> list[Message]:
        """All messages, the system prompt first."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *(dict(turn) for turn in self.turns)]

    @cached_property
    def prompt(self) -> list[int]:
        """Token ids up to where the answer begins. Raises what the template raises."""
        return self.render(self.messages, True)

    @cached_property
    def sinks(self) -> int:
        """Tokens that every prompt with this system prompt begins with."""
        first, second = (
            self.render([*Transcript(self.render, self.system, ()).messages, {"role": "user", "content": text}], False)
            for text in ("A", "7")
        )
        return common_prefix(first, second, len(first))

    def with_turns(self, turns: Sequence[Message]) -> Transcript:
        """Other messages behind the same system prompt."""
        other = Transcript(self.render, self.system, turns)
        if "sinks" in self.__dict__:
            other.__dict__["sinks"] = self.sinks
        return other

    def with_message(self, role: str, content: str) -> Transcript:
        """One more message."""
        return self.with_turns([*self.turns, {"role": role, "content": content}])

    def without_oldest(self) -> tuple[Transcript, tuple[Message, ...]] | None:
        """(the rest, the oldest exchange), None where only the last exchange is left."""
        starts = [at for at, turn in enumerate(self.turns) if turn["role"] == "user"]
        if len(starts) < 2:
            return None
        return self.with_turns(self.turns[starts[1] :]), self.turns[: starts[1]]

    def before_last_question(self) -> tuple[Transcript, str]:
        """(what came before the last user message, that message). Raises `UsageError` where there is none."""
        at = next((at for at in range(len(self.turns) - 1, -1, -1) if self.turns[at]["role"] == "user"), None)
        if at is None:
            raise UsageError("there is no message to answer again")
        return self.with_turns(self.turns[:at]), self.turns[at]["content"]


def check_messages(messages: Any) -> tuple[str | None, list[Message]]:
    """(system prompt, the other messages) of a list of messages from outside.

    Raises:
        UsageError: not a list of {"role", "content"} with texts, an unknown role, a system message that is not first.
    """
    if not isinstance(messages, (list, tuple)):
        raise UsageError("not a list of messages", key="messages", found=type(messages).__name__)
    system: str | None = None
    turns: list[Message] = []
    for at, message in enumerate(messages):
        key = f"messages[{at}]"
        if not isinstance(message, Mapping):
            raise UsageError("not a message", key=key, found=type(message).__name__, allowed='{"role", "content"}')
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UsageError("unknown role", key=f"{key}.role", found=repr(role), allowed=", ".join(ROLES))
        check_text(content, f"{key}.content")
        if role == "system" and at:
            raise UsageError("a system message must be the first", key=f"{key}.role")
        if role == "system":
            system = content
        else:
            turns.append({"role": role, "content": content})
    return system, turns


def check_text(text: Any, key: str) -> str:
    """`text` where it is one. Raises `UsageError`."""
    if not isinstance(text, str):
        raise UsageError("not a text", key=key, found=type(text).__name__)
    return text
