"""The Jinja environment of chat templates: what transformers offers, sandboxed, allow-listed and budgeted.

Settings, `tojson`, `raise_exception`, `strftime_now`, loop controls and `{% generation %}` are those of transformers'
`apply_chat_template`. Of Jinja itself only what published templates use is there: a census of 125 found no import,
no include and no `**`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes, runtime
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from edgellm.text.budget import BudgetExceeded, budget
from edgellm.text.template_filters import guarded_filters, guarded_tests, replaced_length, text_of

MAX_TEMPLATE_TOKENS = 20_000  # the longest templates in use have about 5,000; Jinja compiles 20,000 a second at worst
_MAX_INTEGER_BITS = 4096
_MAX_PARTS = 262_144
# fmt: off
_STRING_METHODS = frozenset({
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "replace", "upper",
    "lower", "title", "capitalize", "join", "find", "rfind", "index", "count", "isdigit", "isalpha", "isalnum",
    "isspace", "isupper", "islower", "removeprefix", "removesuffix", "partition", "rpartition",
})
# fmt: on
_DICT_METHODS = frozenset({"get", "items", "keys", "values", "copy"})
_JINJA_OBJECTS = (runtime.LoopContext, runtime.Macro, runtime.Undefined, Namespace)
_FORBIDDEN = (nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)


class RaisedByTemplate(Exception):
    """`raise_exception` of a template: it refuses these messages."""


class GenerationTag(Extension):
    """`{% generation %}` marks what the assistant said; it prints its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Charges the current `Budget` for all a template does.

    The syntax tree is rewritten where Jinja gives no hook: the iterable of a loop, `~`, tuples, keys of mappings,
    slices, comparisons and literal text become calls to the methods below.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, clock: Callable[[], datetime.datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
            finalize=self.printed,
            cache_size=0,
        )
        self._clock = clock
        self.globals = {
            "range": self.globals["range"],
            "namespace": TemplateNamespace,
            "dict": make_dict,
            "raise_exception": raise_exception,
            "strftime_now": self.strftime_now,
        }
        self.filters = guarded_filters(self.filters)
        self.tests = guarded_tests(self.tests)

    # What the rewritten syntax tree calls.

    def limited(self, items: Any) -> Any:
        return budget().limited(items)

    def concatenated(self, *values: Any) -> str:
        return "".join([text_of(value) for value in values])

    def looked_at(self, value: Any) -> Any:
        return budget().look(value)

    def sliceable(self, value: Any) -> Any:
        if isinstance(value, (str, list, tuple)):
            budget().build(len(value))
        return value

    def literal(self, characters: int) -> str:
        budget().build(characters)
        return ""

    def flat_tuple(self, items: list[Any]) -> tuple[Any, ...]:
        # Hashing a tuple of tuples of tuples takes time exponential in the depth.
        if any(isinstance(item, tuple) for item in items):
            raise SecurityError("a tuple may not hold tuples")
        return tuple(items)

    def scalar_key(self, key: Any) -> Any:
        if isinstance(key, tuple):
            raise SecurityError("a tuple may not be a key")
        return key

    def printed(self, value: Any) -> Any:
        if isinstance(value, str):
            budget().build(len(value))
        elif isinstance(value, (Mapping, list, tuple)):
            budget().build(budget().walk(value))
        else:
            budget().spend()
        return value

    def strftime_now(self, format: str) -> str:
        if len(format) > 256:
            raise BudgetExceeded("its date format is too long")
        return self._clock().strftime(format)

    # Jinja's own hooks.

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        budget().spend()
        if operator == "**":
            raise SecurityError("** is not allowed")
        if operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError("% formatting is not allowed")
        if operator == "*":
            _check_product(left, right)
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            budget().build(len(left) + len(right))
            return super().call_binop(context, operator, left, right)
        return budget().check(super().call_binop(context, operator, left, right))

    def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget().spend()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name not in _STRING_METHODS:
                raise SecurityError(f"str.{name} is not allowed")
            args = _checked_string_call(owner, name, args)
        elif isinstance(owner, Mapping) and args:
            __self.scalar_key(args[0])
        return budget().check(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> None:
        return None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        if isinstance(obj, Mapping):
            return attr in _DICT_METHODS
        return isinstance(obj, _JINJA_OBJECTS)

    def _tokenize(self, source: str, name: str | None, filename: str | None = None, state: str | None = None) -> Any:
        stream = super()._tokenize(source, name, filename, state)
        return type(stream)(_counted(stream), name, filename)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        forbidden = tree.find(_FORBIDDEN)
        if forbidden is not None:
            raise SecurityError(f"{type(forbidden).__name__.lower()} is not allowed")
        for node in [*tree.find_all((nodes.For, nodes.Concat, nodes.Compare, nodes.Getitem, nodes.Pair, nodes.Output))]:
            _rewrite(node)
        _replace_tuples(tree)
        return tree


class TemplateNamespace(Namespace):
    """`namespace(...)`; attributes with a leading underscore cannot be set, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *args = args
        attributes = make_dict(*args, **kwargs)
        for name in attributes:
            _check_attribute_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute_name(name)
        Namespace.__setitem__(self, name, value)


def _check_attribute_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name[:80]!r}")


def make_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """`dict(...)` of a mapping and keywords; pairs could have keys that take forever to hash."""
    if args and not isinstance(args[0], Mapping):
        raise SecurityError("dict() takes a mapping")
    result = dict(*args, **kwargs)
    budget().build(len(result))
    return result


def raise_exception(message: Any) -> None:
    """Refuses the messages. Raises `RaisedByTemplate`."""
    raise RaisedByTemplate(text_of(message))


def _counted(stream: Any) -> Any:
    for count, token in enumerate(stream):
        if count >= MAX_TEMPLATE_TOKENS:
            raise BudgetExceeded(f"it has more than {MAX_TEMPLATE_TOKENS:,} tokens")
        yield token


def _check_product(left: Any, right: Any) -> None:
    for items, times in ((left, right), (right, left)):
        if isinstance(items, (str, list, tuple)) and isinstance(times, int):
            budget().build(len(items) * max(times, 0))
    both = isinstance(left, int) and isinstance(right, int)
    if both and left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
        raise BudgetExceeded("it builds too large a number")


def _checked_string_call(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Charges a string method before it runs; returns its arguments."""
    budget().look(text)
    if name == "replace" and len(args) >= 2:
        budget().build(replaced_length(text, args[0], args[1]))
    elif name == "join" and args:
        parts = [*budget().limited(args[0])]
        budget().build(sum(len(part) + len(text) for part in parts if isinstance(part, str)))
        return (parts, *args[1:])
    elif name in ("split", "rsplit") and len(text) > _MAX_PARTS:
        parts = (
            text.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(text.split(None, _MAX_PARTS))
        )
        if parts >= _MAX_PARTS:
            raise BudgetExceeded("it splits a text into too many parts")
    elif (
        name == "splitlines"
        and len(text) > _MAX_PARTS
        and sum(map(text.count, "\n\r\x0b\x0c\x1c\x1d\x1e\x85")) > _MAX_PARTS
    ):
        raise BudgetExceeded("it splits a text into too many parts")
    return args


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=line)


def _rewrite(node: nodes.Node) -> None:
    line = node.lineno
    match node:
        case nodes.For():
            if node.recursive:
                raise SecurityError("recursive loops are not allowed")
            node.iter = _call("limited", [node.iter], line)
        case nodes.Concat():
            node.nodes = [_call("concatenated", list(node.nodes), line)]
        case nodes.Compare():
            node.expr = _call("looked_at", [node.expr], line)
            for operand in node.ops:
                if operand.op not in ("in", "notin"):
                    operand.expr = _call("looked_at", [operand.expr], line)
        case nodes.Getitem() if isinstance(node.arg, nodes.Slice):
            node.node = _call("sliceable", [node.node], line)
        case nodes.Pair():
            node.key = _call("scalar_key", [node.key], line)
        case nodes.Output():
            characters = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
            if characters:
                node.nodes.insert(0, _call("literal", [nodes.Const(characters)], line))


def _replace_tuples(node: nodes.Node) -> None:
    """Tuples that are values become calls; those that are targets (`for a, b in`) stay."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_as_flat(item) for item in value]
        elif isinstance(value, nodes.Node):
            setattr(node, field, _as_flat(value))
    for child in node.iter_child_nodes():
        _replace_tuples(child)


def _as_flat(node: Any) -> Any:
    if isinstance(node, nodes.Tuple) and node.ctx == "load":
        return _call("flat_tuple", [nodes.List(node.items, lineno=node.lineno)], node.lineno)
    return node
