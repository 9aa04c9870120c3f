"""Declarations of variables and parameters, as they stand outside functions and inside them."""

from __future__ import annotations

import re
import struct

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.operands import number
from tools.ptx_emulator.syntax import Variable
from tools.ptx_emulator.tokens import Token
from tools.ptx_emulator.types import ptx_type


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0

    @property
    def done(self) -> bool:
        return self.at >= len(self.tokens)

    @property
    def text(self) -> str:
        return "" if self.done else self.tokens[self.at].text

    @property
    def line(self) -> int:
        return self.tokens[min(self.at, len(self.tokens) - 1)].line if self.tokens else 0

    def take(self, expected: str = "") -> str:
        if self.done or (expected and self.text != expected):
            raise EmulatorError(f"expected {expected or 'more text'}, found {self.text or 'the end'}", self.line)
        self.at += 1
        return self.tokens[self.at - 1].text

    def until(self, *ends: str) -> list[Token]:
        """Tokens before the next of `ends` outside brackets; that one is left standing."""
        start, depth = self.at, 0
        while not self.done and (depth or self.text not in ends):
            depth += self.text in "{[(" if self.text else 0
            depth -= self.text in "}])" if self.text else 0
            self.at += 1
        return self.tokens[start : self.at]

    def variables_here(self) -> list[Variable]:
        """One declaration with its semicolon: `.shared .align 16 .b8 a[64], b[4] = {...};`"""
        found = []
        space = self.take()[1:]
        align, type_name, lanes = 0, "b8", 1
        while self.text.startswith("."):
            word = self.take()
            if word == ".align":
                align = int(self.take())
            elif re.fullmatch(r"\.v[248]", word):
                lanes = int(word[2:])
            elif word not in (".attribute", ".unified"):
                type_name = word[1:]
        while True:
            found.append(self._declared(space, type_name, lanes, align))
            if self.text != ",":
                break
            self.take(",")
        self.take(";")
        return found

    def _declared(self, space: str, type_name: str, lanes: int, align: int) -> Variable:
        line, name = self.line, self.take()
        count = 1
        while self.text == "[":
            self.take("[")
            count *= 0 if self.text == "]" else int(self.take(), 0)
            self.take("]")
        item = ptx_type(type_name, line)
        initial = None
        if self.text == "=":
            self.take("=")
            initial = _initial(self.until(",", ";"), type_name, line)
            count = count or len(initial) // item.bytes
        size = item.bytes * lanes * count
        if initial is not None:
            initial = initial.ljust(size, b"\0")
        return Variable(name, space, size, align or item.bytes * lanes, initial, type_name, line)


def parameter(words: list[Token]) -> Variable:
    """`.param .u64 .ptr .global .align 1 name` or `.param .align 8 .b8 name[16]`."""
    texts = [word.text for word in words]
    if texts[0] != ".param":
        raise EmulatorError(f"a parameter in {texts[0]}: only .param is known", words[0].line)
    align, type_name, lanes, name, count, k = 0, "", 1, "", 1, 1
    while k < len(texts):
        text = texts[k]
        if text == ".align":
            if not name and ".ptr" not in texts[:k]:
                align = int(texts[k + 1])
            k += 1
        elif re.fullmatch(r"\.v[248]", text):
            lanes = int(text[2:])
        elif text.startswith("."):
            type_name = type_name or text[1:]
        elif text == "[":
            count = int(texts[k + 1], 0)
            k += 2
        else:
            name = text
        k += 1
    item = ptx_type(type_name, words[0].line)
    return Variable(name, "param", item.bytes * lanes * count, align or item.bytes, None, type_name, words[0].line)


def _initial(tokens: list[Token], type_name: str, line: int) -> bytes:
    """The bytes of `{1, 2, {3, 4}}` or of one literal."""
    item = ptx_type(type_name, line)
    found = bytearray()
    for token in tokens:
        if token.text in "{},":
            continue
        literal = number(token.text)
        if literal is None:
            raise EmulatorError(f"an initial value {token.text}: only numbers are known", token.line)
        value = literal.value
        if literal.float_bits == 64 and item.bits == 32:
            value = struct.unpack("<I", struct.pack("<f", struct.unpack("<d", struct.pack("<Q", value))[0]))[0]
        found += (value & ((1 << item.bits) - 1)).to_bytes(item.bytes, "little")
    return bytes(found)
