"""Chat templates that try to break out, to hang or to fill memory, by name."""

# ruff: noqa: E501 (a template is easier to read on one line)

from __future__ import annotations

_LOOP = "{% set ns = namespace(x='aa', y=['a'], z=['a']) %}{% for i in range(60) %}BODY{% endfor %}"


def _loop(body: str, after: str = "") -> str:
    return _LOOP.replace("BODY", body) + after


_NEST = "{% set ns.y = [ns.y, ns.y] %}{% set ns.z = [ns.z, ns.z] %}"
_BIG = "{% set s = 'a' * 4000000 %}{% set t = 'a' * 4000000 %}"

# Each must end in a TemplateError.
REFUSED = {
    # code execution
    "mro": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner.__init__.__globals__.os }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self context": "{{ self._TemplateReference__context.cycler }}",
    "namespace class": "{{ namespace.__init__.__globals__ }}",
    "globals of a function": "{{ raise_exception.__globals__['x'] }}",
    "attr": "{{ ''|attr('__class__') }}",
    "attr of bytes": "{{ ()|attr('__class__')|attr('__base__') }}",
    "format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "markup format": "{{ ('{0.__class__}'|safe).format(1) }}",
    "map of an attribute": "{{ ['']|map(attribute='__class__')|map(attribute='__mro__')|list }}",
    "namespace name": "{{ namespace(__class__=1) }}",
    "set namespace name": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "class of an index": "{{ messages['__class__']['__mro__'] }}",
    # mutation
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "pop": "{{ messages[0].pop('role') }}",
    # other files
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as y %}",
    "from": "{% from 'x' import y %}",
    "extends": "{% extends 'x' %}",
    # time
    "range": "{{ range(1000000000) }}",
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "exponential macro": "{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "compare": _BIG + "{% if s == t %}{% endif %}" * 2000,
    "count": _BIG + "{{ s.count('ab') }}" * 2000,
    "upper": _BIG + "{{ s|upper|length }}" * 2000,
    "slice": _BIG + "{% set t = s[1:] %}" * 2000,
    "hash of tuples": _loop("{% set ns.x = (ns.x, ns.x) %}", "{{ {ns.x: 1} }}"),
    "hash of items": _loop("{% set ns.x = {ns.x: ns.x}|items|first %}"),
    "hash of pairs": _loop("{% set ns.x = dict([(ns.x, ns.x)])|items|first %}"),
    "equal lists": _loop(_NEST, "{{ ns.y == ns.z }}"),
    "eq of lists": _loop(_NEST, "{{ ns.y is eq ns.z }}"),
    "list in list": _loop(_NEST, "{{ ns.y in [ns.z] }}"),
    "sorted lists": _loop(_NEST, "{{ [ns.y, ns.z]|sort|length }}"),
    "digits": "{{ ('9' * 4000000)|int }}",
    # memory
    "times": "{{ 'a' * 100000000 }}",
    "list times": "{{ [0] * 1000000000 }}",
    "power": "{{ 10 ** 10 }}",
    "squares": "{% set ns = namespace(x=12345) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "tilde": _loop("{% set ns.x = ns.x ~ ns.x %}"),
    "plus": _loop("{% set ns.x = ns.x + ns.x %}"),
    "plus of lists": _loop("{% set ns.y = ns.y + ns.y %}"),
    "replace": _loop("{% set ns.x = ns.x|replace('a', 'aa') %}"),
    "str.replace": _loop("{% set ns.x = ns.x.replace('a', 'aa') %}"),
    "join": _loop("{% set ns.x = [ns.x, ns.x]|join %}"),
    "join with": _loop("{% set ns.x = ['', '', '']|join(ns.x) %}"),
    "str.join": _loop("{% set ns.x = ''.join([ns.x, ns.x]) %}"),
    "set block": _loop("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + _loop("{% set ns.x = f(ns.x) %}"),
    "literal": "{% set x %}{% for i in range(100000) %}" + "x" * 100_000 + "{% endfor %}{% endset %}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent of markup": "{{ ('%1000000000d'|safe) % 1 }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "str.center": "{{ 'a'.center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "indent": "{{ 'a\nb'|indent(1000000000) }}",
    "json indent": "{{ [[1]]|tojson(indent=1000000000) }}",
    "json indent text": "{{ [[1]]|tojson(indent='" + " " * 500 + "') }}",
    "batch": "{{ [1]|batch(1000000000, 0)|list }}",
    "slices": "{{ [1]|slice(1000000000)|list }}",
    "split": "{{ ('ab ' * 2000000).split(' ')|length }}",
    "splitlines": "{{ ('ab\n' * 2000000).splitlines()|length }}",
    "list of text": "{{ ('a' * 4000000)|list|length }}",
    "print nested": _loop(_NEST, "{{ ns.y }}"),
    "json nested": _loop(_NEST, "{{ ns.y|tojson }}"),
    "text nested": _loop(_NEST, "{{ ns.y|string }}"),
    "join nested": _loop(_NEST, "{{ 'x' ~ ns.y }}"),
    "date": "{{ strftime_now('%Y' * 1000) }}",
    # depth and size
    "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nested fors": "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    "deep fors": "{% for a in [1] %}" * 2000 + "{% endfor %}" * 2000,
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep list": "{% set ns = namespace(x=[]) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "many expressions": "{{ a }}" * 30_000,
    "many operands": "{{ " + "a + " * 60_000 + "a }}",
    "too long": "x" * ((256 << 10) + 1),
    # plain mistakes
    "syntax": "{% if %}",
    "unclosed": "{% generation %}x",
    "undefined": "{{ a.b.c }}",
    "division": "{{ 1 / 0 }}",
    "type": "{{ 'a' + 1 }}",
    "unknown filter": "{{ 'a'|nothing }}",
}
