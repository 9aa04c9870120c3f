"""The commands inside a chat: a line that begins with a slash."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.cli.editor import copy_text, edit_text
from edgellm.cli.figures import statistics
from edgellm.cli.loading import start_line
from edgellm.cli.options import SAMPLING
from edgellm.cli.parser import did_you_mean
from edgellm.errors import UsageError, printable

if TYPE_CHECKING:
    from edgellm.cli.chat_session import ChatSession


@dataclass(frozen=True)
class Command:
    """A slash command: what it takes, what it does in a line, and the function."""

    takes: str
    summary: str
    run: Callable[[ChatSession, str], None]


def is_command(text: str) -> bool:
    """Whether a message is a command: one line that begins with a slash."""
    return text.startswith("/") and "\n" not in text


def dispatch(session: ChatSession, text: str) -> None:
    """Run the command in `text`. Raises `UsageError` where there is none, and what the command raises."""
    name, _, rest = text[1:].strip().partition(" ")
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        meant = did_you_mean("/" + name, ["/" + known for known in COMMANDS]).removeprefix(". ")
        hint = "/help lists the commands; a space in front sends a message that begins with a slash."
        raise UsageError(f"no such command: /{printable(name, 40)}", hint=f"{meant} {hint}".lstrip())
    command.run(session, rest.strip())


def _help(session: ChatSession, rest: str) -> None:
    width = max(len(f"/{name} {command.takes}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        session.terminal.warn(f"  {f'/{name} {command.takes}':<{width}}  {command.summary}", "dim")
    session.terminal.warn(f"  {chr(34) * 3:<{width}}  opens and closes a message of several lines", "dim")
    session.terminal.warn(f"  {'Ctrl-C':<{width}}  stops the answer; twice within a second leaves", "dim")
    session.terminal.warn(f"  {'Ctrl-G':<{width}}  opens what is being typed in $VISUAL or $EDITOR", "dim")


def _clear(session: ChatSession, rest: str) -> None:
    session.conversation.clear()
    session.last = None
    session.terminal.say("(a new conversation)")


def _retry(session: ChatSession, rest: str) -> None:
    session.answer(lambda: session.conversation.retry(stream=True, **session.sampling))


def _edit(session: ChatSession, rest: str) -> None:
    asked = [message["content"] for message in session.conversation.messages if message["role"] == "user"]
    text = rest or edit_text(asked[-1] if asked else "")
    if not text.strip():
        session.terminal.say("(empty: nothing was sent)")
    elif not asked:
        session.answer(lambda: session.conversation.send(text, stream=True, **session.sampling))
    else:
        session.answer(lambda: session.conversation.edit(text, stream=True, **session.sampling))


def _system(session: ChatSession, rest: str) -> None:
    if rest:
        session.conversation.set_system(None if rest == "none" else rest)
    session.terminal.warn(f"system: {printable(session.conversation.system or '(none)', 2000)}", "dim")


def _set(session: ChatSession, rest: str) -> None:
    key, _, value = rest.partition(" ")
    key, value = key.replace("-", "_"), value.strip()
    if key and key not in SAMPLING and key != "stop":
        meant = did_you_mean(key, [*SAMPLING, "stop"]).removeprefix(". ")
        raise UsageError("no such setting", key=key, allowed=", ".join([*SAMPLING, "stop"]), hint=meant or None)
    if key and value:
        _change(session.sampling, key, value)
    names = [key] if key else [*SAMPLING, "stop"]
    for name in names:
        session.terminal.warn(f"{name} {_shown(session.sampling.get(name))}", "dim")


def _change(sampling: dict[str, Any], key: str, value: str) -> None:
    if value == "default":
        sampling.pop(key, None)
        return
    if key == "stop":
        sampling["stop"] = [*sampling.get("stop", []), value.replace("\\n", "\n").replace("\\t", "\t")]
        return
    try:
        number = SAMPLING[key](value)
    except ValueError:
        kind = "a whole number" if SAMPLING[key] is int else "a number"
        raise UsageError("cannot be read", key=key, found=value, allowed=f"{kind}, or default") from None
    _check(key, number)
    sampling[key] = number


def _check(key: str, number: float) -> None:
    from edgellm.engine.sampling import SamplingParams

    SamplingParams(**{key: number})


def _shown(value: Any) -> str:
    return "(the model's default)" if value is None else str(value)


def _show(session: ChatSession, rest: str) -> None:
    conversation, say = session.conversation, session.terminal.warn
    say(start_line(session.llm.info), "dim")
    say(
        f"context: {conversation.tokens_used} of {conversation.context} tokens, {len(conversation.messages)} messages",
        "dim",
    )
    if conversation.dropped:
        say(f"dropped so far: {len(conversation.dropped)} messages", "dim")
    say(f"system: {printable(conversation.system or '(none)', 2000)}", "dim")
    settings = ", ".join(f"{key} {value}" for key, value in session.sampling.items())
    say(f"settings: {settings or '(the defaults)'}", "dim")


def _stats(session: ChatSession, rest: str) -> None:
    session.show_stats = not session.show_stats
    session.terminal.warn(f"(statistics {'on' if session.show_stats else 'off'})", "dim")
    if session.show_stats and session.last is not None:
        session.terminal.warn(statistics(session.last, stop_strings="stop" in session.sampling), "dim")


def _save(session: ChatSession, rest: str) -> None:
    path = _file_name(rest)
    session.conversation.save(path)
    session.terminal.say(f"({len(session.conversation.messages)} messages in {printable(path, 300)})")


def _load(session: ChatSession, rest: str) -> None:
    session.restore(_file_name(rest))


def _file_name(rest: str) -> str:
    if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "\"'":
        rest = rest[1:-1]
    if not rest:
        raise UsageError("needs a file name")
    return os.path.expanduser(rest)


def _copy(session: ChatSession, rest: str) -> None:
    answers = [message["content"] for message in session.conversation.messages if message["role"] == "assistant"]
    if not answers:
        raise UsageError("nothing to copy yet")
    session.terminal.say(f"(copied {copy_text(answers[-1])})")


def _bye(session: ChatSession, rest: str) -> None:
    session.done = True


COMMANDS = {
    "help": Command("", "this list", _help),
    "clear": Command("", "forget the conversation, keep the system prompt", _clear),
    "retry": Command("", "answer the last message again", _retry),
    "edit": Command("[TEXT]", "change the last message, in the editor or to TEXT, and answer again", _edit),
    "system": Command("[TEXT]", "set or show the system prompt; 'none' removes it", _system),
    "set": Command("[KEY VALUE]", "set or show how answers are drawn; VALUE 'default' resets", _set),
    "show": Command("", "the model, the context and the settings", _show),
    "stats": Command("", "statistics after each answer, on or off", _stats),
    "save": Command("FILE", "write the conversation to a file", _save),
    "load": Command("FILE", "go on with a saved conversation", _load),
    "copy": Command("", "the last answer to the clipboard", _copy),
    "bye": Command("", "leave (also /exit, /quit, Ctrl-D)", _bye),
}
_ALIASES = {"exit": "bye", "quit": "bye", "?": "help"}
