"""The loop of `edgellm chat`: read a message or a command, show the answer, say what was dropped."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.cli import slash
from edgellm.cli.answer import AnswerPrinter
from edgellm.cli.echo import hidden_typing
from edgellm.cli.figures import statistics
from edgellm.cli.interrupts import Interrupts
from edgellm.cli.reader import EditingReader, Reader
from edgellm.cli.terminal import Terminal
from edgellm.errors import EdgeLLMError, EngineClosed, printable

if TYPE_CHECKING:
    from edgellm import LLM, Result, Stream

_LONGEST_QUOTE = 60


class ChatSession:
    """One conversation and the person's settings.

    Attributes:
        llm: the loaded model.
        conversation: what was said.
        sampling: keyword arguments of every answer.
        show_stats: whether each answer is followed by its statistics.
        last: the newest result, None before the first.
        done: whether the session was asked to end.
    """

    def __init__(self, llm: LLM, args: Namespace, terminal: Terminal, sampling: dict[str, Any]) -> None:
        self.llm = llm
        self.terminal = terminal
        self.sampling = sampling
        self.show_stats: bool = args.stats
        self.conversation = llm.chat(args.system, evict=args.evict)
        self.last: Result | None = None
        self.done = False
        self._raw, self._wrap = args.raw, not args.no_wrap
        self._interrupts = Interrupts()

    def greet(self, reader: Reader) -> None:
        """What a person at a terminal has to know."""
        if isinstance(reader, EditingReader):
            self.terminal.say("/help lists the commands, Ctrl-D leaves")

    def run(self, reader: Reader) -> int:
        """Until the input ends. The exit code: 130 after two Ctrl-C within a second."""
        while not self.done:
            try:
                text = reader.read()
                if text is None:
                    break
                self.handle(text)
            except KeyboardInterrupt:
                if self._interrupts.again():
                    return 130
                self.terminal.warn("(Ctrl-C once more, Ctrl-D or /bye leaves)", "dim")
        return 0

    def handle(self, text: str) -> None:
        """One line: a command, a message, or nothing. Errors of this line are said; the session goes on."""
        try:
            if slash.is_command(text):
                slash.dispatch(self, text)
            elif text.strip():
                self.answer(lambda: self.conversation.send(text, stream=True, **self.sampling))
        except EngineClosed:
            raise
        except EdgeLLMError as error:
            self.terminal.warn(f"error: {error}", "red")

    def answer(self, begin: Callable[[], Stream]) -> None:
        """Show one answer as it comes; Ctrl-C ends it and what was written stays in the conversation."""
        stream = begin()
        printer = AnswerPrinter(self.terminal, raw=self._raw, wrap=self._wrap)
        try:
            with self._interrupts.stopping(stream.cancel), hidden_typing():
                for piece in stream:
                    printer.write(piece.text)
            self.last = stream.result
        finally:
            stream.close()
            printer.finish()
        self._report(self.last)

    def _report(self, result: Result) -> None:
        for line in result.notes:
            self.terminal.warn(f"note: {line}")
        if result.dropped and not result.notes:
            self.terminal.warn(f"note: {dropped_line(result.dropped)}")
        if result.finish_reason == "cancelled":
            self.terminal.warn("(stopped)", "dim")
        elif result.finish_reason == "length":
            self.terminal.say("(cut at max_tokens; /set max_tokens N allows more)")
        elif result.finish_reason == "context":
            self.terminal.warn("(the context is full; a larger --context holds more)")
        if self.show_stats:
            self.terminal.warn(statistics(result, stop_strings="stop" in self.sampling), "dim")

    def restore(self, path: str) -> None:
        """Go on with a saved conversation; the present one stays where it cannot be read."""
        restored = self.llm.restore(path)
        self.conversation.close()
        self.conversation = restored
        self.terminal.say(f"({len(restored.messages)} messages from {printable(path, 300)})")


def dropped_line(messages: tuple[Any, ...]) -> str:
    """What left the context, in one line."""
    first = printable(messages[0]["content"], _LONGEST_QUOTE)
    return f'the context is full, {len(messages)} oldest message{"s" * (len(messages) != 1)} dropped: "{first}" ...'
