"""A function's body: declarations, labels and instructions, nested scopes of inline assembly flattened."""

from __future__ import annotations

import re

from tools.ptx_emulator.declarations import Cursor
from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.operands import OperandReader, split
from tools.ptx_emulator.syntax import Function, Guard, Instruction, Register
from tools.ptx_emulator.tokens import Token

_BITS = {"pred": 1, "b128": 128}


class BodyReader:
    """Fills `function` from the tokens between its braces."""

    def __init__(self, function: Function, tokens: list[Token]) -> None:
        self.function = function
        self.tokens = tokens
        self.at = 0
        self.scopes: list[dict[str, Register]] = [{}]
        self.opened = 0
        self.operands = OperandReader(self.scopes)

    def read(self) -> None:
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.text == "{":
                self.opened += 1
                self.scopes.append({})
                self.at += 1
            elif token.text == "}":
                self.scopes.pop()
                self.at += 1
            elif token.text == ";":
                self.at += 1
            elif token.text == ".loc":
                while self.at < len(self.tokens) and self.tokens[self.at].line == token.line:
                    self.at += 1
            elif self._follows(":"):
                self._label(token)
            else:
                self._statement()

    def _follows(self, mark: str) -> bool:
        return self.at + 1 < len(self.tokens) and self.tokens[self.at + 1].text == mark

    def _label(self, token: Token) -> None:
        self.at += 2
        if self.at < len(self.tokens) and self.tokens[self.at].text in (".branchtargets", ".calltargets"):
            names = [name.text for name in self._take_statement()[1:] if name.text != ","]
            self.function.tables[token.text] = tuple(names)
        else:
            self.function.labels[token.text] = len(self.function.body)

    def _take_statement(self) -> list[Token]:
        start = self.at
        while self.at < len(self.tokens) and self.tokens[self.at].text != ";":
            self.at += 1
        if self.at == len(self.tokens):
            raise EmulatorError(f"a statement of {self.function.name} has no semicolon", self.tokens[start].line)
        self.at += 1
        return self.tokens[start : self.at - 1]

    def _statement(self) -> None:
        tokens = self._take_statement()
        first = tokens[0].text
        if first == ".reg":
            self._registers(tokens)
        elif first in (".local", ".shared", ".param"):
            self._variable(tokens)
        elif first == ".pragma":
            return
        elif first.startswith("."):
            raise EmulatorError(f"cannot read {first}", tokens[0].line)
        else:
            self._instruction(tokens)

    def _registers(self, tokens: list[Token]) -> None:
        """`.reg .b32 %r<20>;` or `.reg .b16 low, high;`"""
        kind = tokens[1].text[1:]
        bits = _BITS.get(kind) or int(re.sub(r"\D*", "", kind.replace("f16x2", "32").replace("bf16x2", "32")) or 0)
        if kind in ("f16x2", "bf16x2"):
            bits = 32
        for words in split(tokens[2:]):
            name = words[0].text
            if len(words) == 4 and words[1].text == "<":
                for number in range(int(words[2].text)):
                    self._declare(f"{name}{number}", bits)
            elif len(words) == 1:
                self._declare(name, bits)
            else:
                raise EmulatorError(f"cannot read the register {' '.join(w.text for w in words)}", words[0].line)

    def _declare(self, name: str, bits: int) -> None:
        depth = len(self.scopes) - 1
        register = Register(name if depth == 0 else f"{name}.{self.opened}", bits)
        self.scopes[-1][name] = register
        self.function.registers.append(register)

    def _variable(self, tokens: list[Token]) -> None:
        self.function.variables += Cursor([*tokens, Token(";", tokens[-1].line)]).variables_here()

    def _instruction(self, tokens: list[Token]) -> None:
        line = tokens[0].line
        guard = None
        if tokens[0].text == "@":
            negate = tokens[1].text == "!"
            name = tokens[2 if negate else 1].text
            register = self.operands.register(name)
            if register is None:
                raise EmulatorError(f"{name} is not declared", line)
            guard = Guard(register, negate)
            tokens = tokens[3 if negate else 2 :]
        text = _shown(tokens)
        operands = tuple(self.operands.read(part) for part in split(tokens[1:]) if part)
        parts = tuple(tokens[0].text.split("."))
        self.function.body.append(Instruction(line, text, parts, operands, guard))


def _shown(tokens: list[Token]) -> str:
    """The instruction as text for messages."""
    text = " ".join(token.text for token in tokens)
    return re.sub(r"\s*([,+|])\s*", r"\1 ", re.sub(r"([\[{])\s*|\s*([\]}])", r"\1\2", text)).replace("+ ", "+")
