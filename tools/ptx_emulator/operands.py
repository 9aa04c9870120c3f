"""Operands of one instruction, read from its tokens."""

from __future__ import annotations

import struct

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.syntax import Address, Immediate, Negated, Operand, Pair, Register, Special, Symbol, Vector
from tools.ptx_emulator.tokens import Token

SPECIALS = frozenset(
    [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    + ["%laneid", "%warpid", "%nwarpid", "%smid", "%nsmid", "%gridid", "%clock", "%clock64", "%globaltimer"]
    + ["%lanemask_eq", "%lanemask_le", "%lanemask_lt", "%lanemask_ge", "%lanemask_gt"]
    + ["%total_smem_size", "%dynamic_smem_size", "WARP_SZ"]
)
_CLOSING = {"{": "}", "[": "]", "(": ")"}


def split(tokens: list[Token]) -> list[list[Token]]:
    """The tokens cut at the commas that lie in no bracket."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += token.text in _CLOSING
        depth -= token.text in _CLOSING.values()
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if parts != [[]] else []


def number(text: str) -> Immediate | None:
    """The literal that `text` is, or None when it is no literal."""
    if text[:2] in ("0f", "0F"):
        return Immediate(int(text[2:], 16), 32)
    if text[:2] in ("0d", "0D"):
        return Immediate(int(text[2:], 16), 64)
    if text[0].isdigit() or (text[0] == "-" and len(text) > 1):
        if "." in text:
            return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 64)
        return Immediate(int(text.rstrip("U"), 0))
    return None


class OperandReader:
    """Reads operands; `registers` is the chain of scopes, the innermost last."""

    def __init__(self, scopes: list[dict[str, Register]]) -> None:
        self.scopes = scopes

    def register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def read(self, tokens: list[Token]) -> Operand | None:
        """One operand; None for the sink `_`."""
        texts = [token.text for token in tokens]
        if "|" in texts and texts[0] not in _CLOSING:
            cut = texts.index("|")
            return Pair(self.read(tokens[:cut]), self.read(tokens[cut + 1 :]))
        if texts[0] in ("{", "("):
            return Vector(tuple(self.read(part) for part in split(tokens[1:-1])))
        if texts[0] == "[":
            return self._address(tokens[1:-1])
        if texts[0] == "!":
            register = self.register(texts[1])
            if register is None:
                raise EmulatorError(f"{texts[1]} is not declared", tokens[0].line)
            return Negated(register)
        if texts[0] == "-" and len(texts) == 2:
            texts = ["-" + texts[1]]
        if len(texts) != 1:
            raise EmulatorError(f"cannot read operand {' '.join(texts)}", tokens[0].line)
        return self._atom(texts[0], tokens[0].line)

    def _atom(self, text: str, line: int) -> Operand | None:
        if text == "_":
            return None
        register = self.register(text)
        if register is not None:
            return register
        if text in SPECIALS:
            return Special(text)
        literal = number(text)
        if literal is not None:
            return literal
        if text.startswith("%"):
            raise EmulatorError(f"register {text} is not declared, or a special register that is not known", line)
        return Symbol(text)

    def _address(self, tokens: list[Token]) -> Address:
        base, offset, sign = None, 0, 1
        for token in tokens:
            if token.text in "+-":
                sign = -1 if token.text == "-" else 1
                continue
            atom = self._atom(token.text, token.line)
            if isinstance(atom, Immediate):
                offset += sign * atom.value
            elif isinstance(atom, Register | Symbol) and base is None:
                base = atom
            else:
                raise EmulatorError(f"cannot read address {' '.join(t.text for t in tokens)}", token.line)
        return Address(base, offset)
