"""The filters and tests of chat templates, each charged to the budget before it can do harm."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.filters import make_attrgetter

from edgellm.text.added import BREAK
from edgellm.text.budget import BudgetExceeded, budget

# Filters whose work is bounded by their input; what else a filter needs stands with its own function below.
# fmt: off
_PLAIN = frozenset({
    "trim", "length", "count", "upper", "lower", "title", "capitalize", "first", "last", "default", "d",
    "float", "selectattr", "rejectattr", "select", "reject", "map", "items", "dictsort", "sort", "unique",
    "reverse", "safe", "escape", "e", "abs", "min", "max",
})
# fmt: on
_COMPARING = frozenset({"dictsort", "sort", "unique", "min", "max"})
_LAZY = frozenset({"map", "select", "reject", "selectattr", "rejectattr", "unique", "first", "min", "max", "sort"})
_MAX_INDENT = 64
_MAX_DIGITS = 4096
# ensure_ascii writes BREAK as an escape; an even number of backslashes before it means that it was no text.
_ESCAPED_BREAK = re.compile(rf"(?<!\\)((?:\\\\)*)\\u{ord(BREAK):04x}")


def text_of(value: Any) -> str:
    """`str(value)`, charged before it is built."""
    if isinstance(value, str):
        budget().build(len(value))
    elif isinstance(value, (Mapping, list, tuple)):
        budget().build(budget().walk(value))
    else:
        budget().spend()
    return str(value)


def replaced_length(text: str, old: Any, new: Any) -> int:
    """Length of `text.replace(old, new)`."""
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    times = text.count(old) if old else len(text) + 1
    return len(text) + times * max(0, len(new) - len(old))


def guarded_filters(stock: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The allowed ones of Jinja's filters, charged, and our own."""
    own = {
        "tojson": to_json,
        "string": text_of,
        "join": _join,
        "list": lambda value: [*budget().limited(value)],
        "replace": _replace,
        "indent": functools.partial(_indent, stock["indent"]),
        "int": functools.partial(_integer, stock["int"]),
    }
    filters = {name: _charged(name, stock[name]) for name in _PLAIN}
    return {**filters, **{name: _charged(name, function) for name, function in own.items()}}


def guarded_tests(stock: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Jinja's tests; those that compare are charged for the whole of what they compare."""
    return {name: _charged_test(function) for name, function in stock.items()}


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passes = 1 if getattr(function, "jinja_pass_arg", None) else 0  # environment, context: handed in by Jinja

    @functools.wraps(function, assigned=())
    def charged(*args: Any, **kwargs: Any) -> Any:
        args = list(args)
        value = args[passes] if len(args) > passes else None
        if name in _COMPARING:
            budget().walk(value)
        elif isinstance(value, str):
            budget().look(value)
        if name in _LAZY and not isinstance(value, (str, Mapping)) and isinstance(value, Iterable):
            args[passes] = budget().limited(value)
        return budget().check(function(*args, **kwargs))

    return charged


def _charged_test(function: Callable[..., Any]) -> Callable[..., Any]:
    passes = 1 if getattr(function, "jinja_pass_arg", None) else 0

    @functools.wraps(function, assigned=())
    def charged(*args: Any) -> Any:
        if len(args) > passes + 1:
            for value in args[passes:]:
                budget().look(value)
        else:
            budget().spend()
        return function(*args)

    return charged


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' `tojson`: no HTML escaping."""
    widths = [indent, *(separators if isinstance(separators, (list, tuple)) else [])]
    if any((isinstance(w, str) and len(w) > _MAX_INDENT) or (isinstance(w, int) and w > _MAX_INDENT) for w in widths):
        raise BudgetExceeded("its tojson indents too far")
    budget().build(budget().walk(value))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _ESCAPED_BREAK.sub(rf"\g<1>{BREAK}", text) if ensure_ascii else text


@pass_environment
def _join(environment: Environment, value: Any, d: str = "", attribute: Any = None) -> str:
    read = make_attrgetter(environment, attribute) if attribute is not None else lambda item: item
    parts = [text_of(read(item)) for item in budget().limited(value)]
    separator = str(d)
    budget().build(len(separator) * len(parts))
    return separator.join(parts)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(value), str(old), str(new)
    budget().build(replaced_length(text, old, new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(stock: Callable[..., Any], value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    step = len(width) if isinstance(width, str) else width
    if step > _MAX_INDENT:
        raise BudgetExceeded("it indents too far")
    text = str(value)
    budget().build(len(text) + (text.count("\n") + 1) * step)
    return stock(text, width, first, blank)


def _integer(stock: Callable[..., Any], value: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise BudgetExceeded("it reads too long a number")
    return stock(value, *args, **kwargs)
