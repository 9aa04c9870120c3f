"""PTX text -> syntax.Text. Everything that stands outside a function's body; bodies are body.py's."""

from __future__ import annotations

from functools import lru_cache

from tools.ptx_emulator.body import BodyReader
from tools.ptx_emulator.declarations import Cursor, parameter
from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.syntax import Function, Text, Variable
from tools.ptx_emulator.tokens import tokens_of

_LINKING = frozenset([".visible", ".extern", ".weak", ".common"])
_SPACES = frozenset([".global", ".const", ".shared", ".local", ".param", ".tex"])
_TUNING = frozenset(
    [
        ".maxntid",
        ".minnctapersm",
        ".maxnreg",
        ".reqntid",
        ".maxnctapersm",
        ".noreturn",
        ".pragma",
        ".explicitcluster",
        ".reqnctapercluster",
        ".maxclusterrank",
        ".unified",
        ".abi_preserve",
    ]
)


@lru_cache(maxsize=64)
def parse(text: str) -> Text:
    """The functions and variables of a PTX file; EmulatorError naming the line for what cannot be read.

    What it returns is shared by all who parse the same text: nobody changes it.
    """
    return _Parser(tokens_of(text)).file()


class _Parser(Cursor):
    def file(self) -> Text:
        version, target = (0, 0), ""
        functions: dict[str, Function] = {}
        variables: dict[str, Variable] = {}
        while not self.done:
            word = self.take()
            if word in _LINKING:
                continue
            if word == ".version":
                major, _, minor = self.take().partition(".")
                version = (int(major), int(minor or 0))
            elif word == ".target":
                target = self.take()
                while self.text == ",":
                    self.take(), self.take()
            elif word == ".address_size":
                self.take()
            elif word in (".entry", ".func"):
                function = self.function(word == ".entry")
                if function.body or function.name not in functions:
                    functions[function.name] = function
            elif word in _SPACES:
                self.at -= 1
                for variable in self.variables_here():
                    variables[variable.name] = variable
            elif word in (".file", ".section", ".loc"):
                self._skip_debug(word)
            elif word in _TUNING or word == ".alias":
                self.until(";")
                self.take(";")
            else:
                raise EmulatorError(f"cannot read {word}", self.tokens[self.at - 1].line)
        return Text(version, target, functions, variables)

    def _skip_debug(self, word: str) -> None:
        if word == ".section":
            self.take()
            self.take("{")
            self.until("}")
            self.take("}")
            return
        line = self.tokens[self.at - 1].line
        while not self.done and self.line == line:
            self.at += 1

    def function(self, entry: bool) -> Function:
        line = self.line
        returns = self._parameters() if self.text == "(" else []
        name = self.take()
        parameters = self._parameters() if self.text == "(" else []
        function = Function(name, entry, parameters, returns, line=line)
        while self.text in _TUNING:
            word = self.take()
            values = [token.text for token in self.until("{", ";", *_TUNING)]
            if word in (".maxntid", ".reqntid"):
                function.max_threads = 1
                for value in values:
                    function.max_threads *= int(value) if value.isdigit() else 1
        if self.text == ";":
            self.take(";")
            return function
        self.take("{")
        start = self.at
        self.until("}")
        body = self.tokens[start : self.at]
        self.take("}")
        BodyReader(function, body).read()
        return function

    def _parameters(self) -> list[Variable]:
        self.take("(")
        found = []
        while self.text != ")":
            words = self.until(",", ")")
            found.append(parameter(words))
            if self.text == ",":
                self.take(",")
        self.take(")")
        return found
