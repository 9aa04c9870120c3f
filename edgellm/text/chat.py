"""A model's chat template, and conversations to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.errors import TemplateError
from edgellm.sidefiles import SideFiles, read_side_json
from edgellm.text.template import MAX_TEMPLATE_CHARACTERS, ChatTemplate
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tokens_config import CONFIG_FILE


def load_chat_template(files: SideFiles, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template of a model, None where it has none.

    In this order: chat_template.jinja, `chat_template` of tokenizer_config.json (a string, or a list of named ones of
    which "default" or else the first is taken), chat_template.json.

    Raises:
        TemplateError: a template that is no text or too long.
        ModelError: a damaged JSON file.
    """
    name = "chat_template.jinja"
    data = files.read(name, 4 * MAX_TEMPLATE_CHARACTERS)
    if data is not None:
        try:
            source = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TemplateError(f"not UTF-8 at byte {error.start}", file=files.locate(name)) from None
        return ChatTemplate(source, name=files.locate(name), token_strings=tokenizer.token_strings)
    for name in (CONFIG_FILE, "chat_template.json"):
        entry = (read_side_json(files, name) or {}).get("chat_template")
        if entry is not None:
            where = f"{files.locate(name)}: chat_template"
            return ChatTemplate(_default_of(entry, where), name=where, token_strings=tokenizer.token_strings)
    return None


def _default_of(entry: Any, where: str) -> str:
    if not isinstance(entry, list):
        return entry
    named = {item["name"]: item.get("template") for item in entry if isinstance(item, dict) and "name" in item}
    if len(named) != len(entry) or not named:
        raise TemplateError("must be a text or a list of objects with name and template", file=where)
    return named.get("default", next(iter(named.values())))


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation; added tokens come from the template alone, never out of a message.

    BOS comes from the template where it has one, as in transformers' `apply_chat_template`.

    Raises:
        UsageError: a message is not usable, or too long.
        TemplateError: the template fails, refuses the messages or exceeds its budget.
        TokenizerError: the tokenizer library fails.
    """
    segments = template.render_segments(
        messages,
        breaker=tokenizer.breaker,
        token_strings=tokenizer.token_strings,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return tokenizer.encode_segments(segments)
