"""The environment in which transformers renders chat templates, without our budget: what templates must equal."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

NOW = datetime.datetime(2025, 3, 4, 5, 6)


def plain_template(source: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = NOW.strftime
    return environment.from_string(
        re.sub(r"{%(-?) *(end)?generation *(-?)%}", r"{%\1 if true \3%}{%\1 endif \3%}", source)
    )


def conversations() -> list[list[dict[str, Any]]]:
    system = {"role": "system", "content": " You are  “nice”. "}
    user = {"role": "user", "content": 'Hi <there> & "you" 🦙\n'}
    answer = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}
    arguments = {"city": "Köln", "days": 3}
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": arguments}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": '{"t": 3}', "tool_call_id": "abcdefghi", "name": "weather"}
    return [
        [user],
        [system, user],
        [user, answer, user],
        [system, user, answer, user, answer, user],
        [user, calling, result],
        [system, user, calling, result, answer, user],
        [answer],
        [user, user],
        [system],
    ]


def tools() -> list[dict[str, Any]]:
    properties = {"city": {"type": "string", "description": "<a> city's name"}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    return [{"type": "function", "function": {"name": "weather", "description": "Get it", "parameters": parameters}}]
