"""Chat templates: messages to the text that a model was trained on."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgellm.errors import TemplateError, UsageError
from edgellm.text.added import Segment, TokenBreaker, segments_of
from edgellm.text.budget import Budget, BudgetExceeded, current

if TYPE_CHECKING:
    import jinja2

MAX_TEMPLATE_CHARACTERS = 256 << 10
MAX_MESSAGES = 10_000


class ChatTemplate:
    """A Jinja chat template as Hugging Face models carry it, run in a sandbox with a budget of work, text and time.

    Compiled at the first rendering; safe to render from several threads.

    Args:
        source: the template.
        name: how errors name it.
        token_strings: `bos_token` and its like, as variables of the template.
        clock: what `strftime_now` formats.

    Raises:
        TemplateError: from every method, where the template is damaged, refuses the messages or exceeds its budget.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str,
        token_strings: Mapping[str, str] | None = None,
        clock: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        if not isinstance(source, str):
            raise TemplateError("chat template must be a string", file=name, found=type(source).__name__)
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateError(
                "chat template is too long",
                file=name,
                found=f"{len(source):,} characters",
                allowed=f"{MAX_TEMPLATE_CHARACTERS:,}",
            )
        self.source = source
        self.name = name
        self.token_strings = dict(token_strings or {})
        self._clock = clock
        self._lock = threading.Lock()
        self._compiled: jinja2.Template | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with `role` and `content` (or what else the template reads).
            tools: JSON schemas of functions the model may call.
            add_generation_prompt: end with the start of an answer of the assistant.
            variables: others that the template knows, such as `enable_thinking`.

        Raises:
            UsageError: a message is not usable; its index is named.
            TemplateError: as above.
        """
        check_messages(messages)
        values = {
            "documents": None,
            **self.token_strings,
            **variables,
            "messages": [dict(message) for message in messages],
            "tools": list(tools) if tools is not None else None,
            "add_generation_prompt": add_generation_prompt,
        }
        token = current.set(Budget(len(messages), _characters(values)))
        try:
            return "".join(self._template().generate(**values))
        except BaseException as error:
            raise self._explained(error) from None
        finally:
            current.reset(token)

    def render_segments(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        breaker: TokenBreaker,
        token_strings: Mapping[str, str] | None = None,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[Segment]:
        """As `render`, with message text kept from being read as added tokens.

        Args:
            breaker: `Tokenizer.breaker` of the tokenizer that will encode the segments.
            token_strings: `Tokenizer.token_strings`, where the template does not have them.
        """
        check_messages(messages)
        rendered = self.render(
            breaker.messages(messages),
            tools=breaker.value(list(tools)) if tools is not None else None,
            add_generation_prompt=add_generation_prompt,
            **{**(token_strings or {}), **self.token_strings, **breaker.value(variables)},
        )
        return segments_of(rendered)

    def _template(self) -> jinja2.Template:
        with self._lock:
            if self._compiled is None:
                from edgellm.text.sandbox import TemplateEnvironment

                self._compiled = TemplateEnvironment(self._clock).from_string(self.source)
            return self._compiled

    def _explained(self, error: BaseException) -> BaseException:
        import jinja2

        from edgellm.text.sandbox import RaisedByTemplate

        match error:
            case RaisedByTemplate():
                return TemplateError(f"the chat template refuses these messages: {error}", file=self.name)
            case BudgetExceeded():
                return TemplateError(f"the chat template was stopped: {error}", file=self.name)
            case jinja2.TemplateSyntaxError():
                return TemplateError(f"chat template syntax, line {error.lineno}: {error.message}", file=self.name)
            case RecursionError():
                return TemplateError("the chat template is nested too deeply", file=self.name)
            case Exception():
                return TemplateError(f"the chat template fails ({type(error).__name__}: {error})", file=self.name)
        return error


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises `UsageError` naming the first message that no template could use."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError("messages must be a list", key="messages", found=type(messages).__name__)
    if len(messages) > MAX_MESSAGES:
        raise UsageError("too many messages", key="messages", found=f"{len(messages):,}", allowed=f"{MAX_MESSAGES:,}")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise UsageError("must be a mapping with role and content", key=where, found=type(message).__name__)
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise UsageError(
                "must name who speaks", key=f"{where}.role", found=role, allowed="system, user, assistant, tool"
            )
        if not (content is None or isinstance(content, str) or _is_parts(content)):
            raise UsageError(
                "must be text or a list of parts", key=f"{where}.content", found=type(content).__name__, allowed="text"
            )


def _is_parts(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and all(isinstance(part, (str, Mapping)) for part in content)


def _characters(value: Any) -> int:
    """Characters of all texts inside `value`."""
    stack, total = [value], 0
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return total
