"""The lowered and the emulated vocabulary are the same names with the same parameters."""

from __future__ import annotations

import inspect

import edgellm.simd
from edgellm.simd import arithmetic, convert, dot, emulate, emulate_memory, memory, threads, tiles
from edgellm.simd import ops as vocabulary

TYPES = {"F32", "I32", "I16", "I8", "U8"}


def lowered() -> dict[str, list[str]]:
    found = {}
    for module in (arithmetic, convert, dot, memory, threads, tiles):
        for name, value in vars(module).items():
            if type(value).__name__ == "_Intrinsic":
                found[name] = list(inspect.signature(value._defn).parameters)[1:]
    return found


def emulated() -> dict[str, list[str]]:
    found = {}
    for module in (emulate, emulate_memory):
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                found[name] = list(inspect.signature(value).parameters)
    return found


def test_every_op_has_its_twin() -> None:
    assert lowered() == emulated()


def test_the_list_of_the_vocabulary_is_whole() -> None:
    assert set(vocabulary.__all__) == set(lowered()) | TYPES
    assert set(edgellm.simd.__all__) >= set(vocabulary.__all__)
    assert all(hasattr(edgellm.simd, name) for name in edgellm.simd.__all__)


def test_every_op_says_what_it_does() -> None:
    for module in (arithmetic, convert, dot, memory, threads, tiles):
        for name, value in vars(module).items():
            if type(value).__name__ == "_Intrinsic":
                assert value._defn.__doc__, name
