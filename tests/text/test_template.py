"""Chat templates: the same text as plain Jinja, and an end to every hostile one."""

# ruff: noqa: E501 (a template is easier to read on one line)

from __future__ import annotations

import gc
import itertools
import resource
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import TemplateError, UsageError
from edgellm.text import ChatTemplate
from tests.text.corpus import shared
from tests.text.hostile_templates import REFUSED
from tests.text.plain_jinja import NOW, conversations, plain_template, tools

USER = [{"role": "user", "content": "hi"}]
STRINGS = {"bos_token": "<s>", "eos_token": "</s>"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, name="model/chat_template.jinja", token_strings=STRINGS, clock=lambda: NOW)


@pytest.fixture(scope="module")
def own_garbage_alone():
    """What other tests of the process left is not gone through again and again: 2 s of a template's 0.3."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("own_garbage_alone")
@pytest.mark.parametrize("name", REFUSED)
def test_hostile_template_ends_in_an_error(name):
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    start = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        template(REFUSED[name]).render([{"role": "user", "content": "hi"}])
    assert time.thread_time() - start < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - megabytes < 200
    assert str(caught.value).startswith("model/chat_template.jinja: ")
    assert caught.value.__cause__ is None


def test_unsafe_attributes_are_nothing():
    for source in (
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{% macro f() %}{% endmacro %}{{ f.__code__ }}",
    ):
        assert template(source).render(USER) == ""


def published() -> list[str]:
    return [path.stem for path in sorted(shared("templates").glob("*.jinja"))]


def test_published_templates_render_as_plain_jinja():
    compared = 0
    for name in published():
        source = (shared("templates") / f"{name}.jinja").read_text(encoding="utf-8")
        plain, ours = plain_template(source), template(source)
        options = itertools.product(conversations(), (None, tools()), (True, False), ({}, {"enable_thinking": False}))
        for messages, tool_list, prompt, variables in options:
            values = {"tools": tool_list, "add_generation_prompt": prompt, **variables}
            try:
                expected = plain.render(messages=messages, documents=None, **STRINGS, **values)
            except Exception:
                with pytest.raises(TemplateError):
                    ours.render(messages, **values)
                continue
            assert ours.render(messages, **values) == expected, name
            compared += 1
    assert compared > 300


FEATURES = [
    "{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ loop.previtem is defined }}{{ m.role }}: {{ m['content'] }}{% endfor %}",
    "{% for m in messages[::-1] if m.role == 'user' %}{{ m.content|trim }}{% else %}none{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "{% set ns = namespace(n=0, t='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n * 2 % 3 }}",
    "{% macro show(m, end='!') %}{{ m.role ~ ':' ~ end }}{% endmacro %}{% for m in messages %}{{ show(m, end='?') }}{% endfor %}",
    "{% macro twice() %}{{ caller(1) }}{{ caller(2) }}{% endmacro %}{% call(x) twice() %}{{ x }}{% endcall %}",
    "{{ messages|tojson(indent=2) }}{{ messages|tojson(ensure_ascii=True, separators=(',', ':')) }}{{ tools|tojson }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0]|dictsort }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages|map(attribute='role')|map('upper')|unique|sort|join }}{{ messages|rejectattr('tool_calls')|list|length }}",
    "{{ [{'a': {'b': 1}}, {'a': {'b': 'c'}}]|join('-', attribute='a.b') }}{{ messages|join(',', 'role') }}",
    "{{ (1, 2) }}{{ ('a', 'b')[1] }}{{ 'x'.startswith(('x', 'y')) }}{{ {'a': (1, 2)} }}{{ [1, 2] + [3] }}{{ (1,) + (2,) }}",
    "{{ 'role' in messages[0] }}{{ 'q' not in 'abc' }}{{ 1 < 2 <= 2 }}{{ messages[0] == messages[-1] }}{{ 7 // 2 - 1 }}",
    "{{ messages is iterable }}{{ messages[0].content is string }}{{ nope is defined }}{{ messages[0] is mapping }}{{ none is none }}",
    "{{ ' a b '.strip().split(' ')[-1] }}{{ 'a-b'.replace('-', '+').upper()|lower|title }}{{ 'abc'[1:]|first }}",
    "{{ '<b>'|safe ~ '<c>' }}{{ '<b>'|e }}{{ 'a\nb'|indent(2, true) }}{{ '3'|int + 1 }}{{ '2.5'|float }}{{ nope|default('d') }}",
    "{{ strftime_now('%d %b %Y') }}{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ documents is none }}",
    "{% set block %}a{{ messages|length }}{% endset %}{{ block }}{{ 'x' if block else 'y' }}{{ [3, 1, 2]|sort|reverse|list }}",
    "  {%- generation -%} in {% endgeneration %}\n  {# note #}\n{% raw %}{{ raw }}{% endraw %}{{ dict(a=1)|tojson }}",
    "{% filter upper %}up{{ messages|length }}{% endfilter %}{{ [1, [2, {'a': 'b'}]]|string }}{{ range(3)|list }}{{ -1|abs }}",
    "{% with x = 1 %}{{ x }}{% endwith %}{{ ''.join(['a', 'b']) }}{{ 'a,b'.rsplit(',', 1) }}{{ [1, 2]|max }}{{ messages.0.role }}",
]  # fmt: skip


@pytest.mark.parametrize("source", FEATURES)
def test_features_render_as_plain_jinja(source):
    messages = conversations()[3]
    expected = plain_template(source).render(
        messages=messages, tools=tools(), documents=None, add_generation_prompt=True, **STRINGS
    )
    assert template(source).render(messages, tools=tools()) == expected


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_message_text_passes_unchanged(texts):
    messages = [{"role": "user", "content": text} for text in texts]
    ours = template("{% for m in messages %}[{{ m.role ~ '|' + m.content }}]{% endfor %}")
    assert ours.render(messages) == "".join(f"[user|{text}]" for text in texts)


def test_a_template_may_refuse():
    with pytest.raises(TemplateError, match=r"refuses these messages: no system role$"):
        template("{{ raise_exception('no system role') }}").render(USER)


def test_long_conversations_fit_the_budget():
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(2000)]
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content|trim + '<|im_end|>' }}{% endfor %}"
    assert len(template(source).render(messages)) > 2_000_000


def test_inputs_are_left_alone_and_the_template_is_compiled_once():
    messages = conversations()[4]
    before = repr(messages)
    ours = template("{{ messages|tojson }}")
    first, compiled = ours.render(messages), ours._compiled
    assert ours.render(messages) == first
    assert ours._compiled is compiled
    assert repr(messages) == before


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ("hi", "messages"),
        ({"role": "user"}, "messages"),
        ([{"role": "user", "content": "a"}, "b"], r"messages\[1\]"),
        ([{"content": "a"}], r"messages\[0\]\.role"),
        ([{"role": 3, "content": "a"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [3]}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": "a"}] * 10_001, "messages"),
    ],
)
def test_unusable_messages_are_named(messages, where):
    with pytest.raises(UsageError, match=where):
        template("{{ messages }}").render(messages)


def test_odd_but_legal_messages():
    messages = [{"role": "wizard", "content": "\x1b[31m\0 ok"}, {"role": "assistant", "content": None}]
    assert (
        template("{{ messages[0].content }}{{ messages[1].content is none }}").render(messages) == "\x1b[31m\0 okTrue"
    )
    assert template("{{ messages|length }}").render([]) == "0"


def test_a_template_must_be_text():
    with pytest.raises(TemplateError, match="must be a string"):
        ChatTemplate(["x"], name="t")
