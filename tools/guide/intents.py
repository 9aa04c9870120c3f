"""The intents: what people ask, the answer, and what an answer must contain. Read from intents/*.txt and heldout/*.txt.

An intent file is plain text; a line with no field name is an error.

    # convert_4bit                  starts an intent
    must: `a` | b                   phrases that a right answer contains
    each: n=7; gb=4                 a case: {n} and {gb} are replaced everywhere; several lines give several cases
    q: how do i <pattern>           a question that stands alone (grammar.py)
    f: and on a jetson              a question that only follows another one
    a: Use `...`.                   an answer; several lines are variants, the first is the usual one
    m: More about it.               the answer to "tell me more" right after
    h: ...                          heldout/ only: a question that never occurs in training
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tools.guide.grammar import HERE

COMMANDS = frozenset({"chat", "run", "convert", "show", "fit", "check", "verify", "doctor", "completion"})

_FIELDS = {"must", "each", "q", "f", "a", "m", "h"}


@dataclass
class Intent:
    """One intent in one case; `group` is the name of its file."""

    name: str
    group: str
    must: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    follow_ups: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    more: str | None = None
    heldout: list[str] = field(default_factory=list)

    def commands(self) -> set[str]:
        """The edgellm commands that its answers name."""
        return set().union(*(commands_in(answer) for answer in [*self.answers, self.more or ""]))


def commands_in(text: str) -> set[str]:
    """The words that follow "`edgellm " in `text`: the commands it tells people to type."""
    return set(re.findall(r"`(?:[^`]*\| )?edgellm ([a-z]+)", text))


def _blocks(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("# "):
            found.append((line[2:].strip(), []))
        elif line.strip():
            key, colon, value = line.partition(": ")
            if not found or not colon or key not in _FIELDS:
                raise ValueError(f"{path.name}:{number}: not a field: {line!r}")
            found[-1][1].append((key, value.strip()))
    return found


def _intents_of(name: str, group: str, lines: list[tuple[str, str]]) -> list[Intent]:
    cases = [dict(part.split("=", 1) for part in value.split("; ")) for key, value in lines if key == "each"] or [{}]
    made = []
    for case in cases:
        intent = Intent(name, group)
        for key, value in lines:
            for slot, text in case.items():
                value = value.replace("{" + slot + "}", text)
            if key == "must":
                intent.must += value.split(" | ")
            elif key == "m":
                intent.more = value
            elif key != "each":
                {"q": intent.questions, "f": intent.follow_ups, "a": intent.answers, "h": intent.heldout}[key].append(
                    value
                )
        made.append(intent)
    return made


@cache
def all_intents() -> tuple[Intent, ...]:
    """Every intent with its held-out questions, in file order."""
    intents: list[Intent] = []
    for path in sorted((HERE / "intents").glob("*.txt")):
        unseen = dict(_blocks(HERE / "heldout" / path.name)) if (HERE / "heldout" / path.name).exists() else {}
        for name, lines in _blocks(path):
            intents += _intents_of(name, path.stem, [*lines, *unseen.pop(name, [])])
        if unseen:
            raise ValueError(f"heldout/{path.name}: no such intent: {sorted(unseen)}")
    return tuple(intents)


def normalized(question: str) -> str:
    """Letters and digits only, lower case: what makes two questions the same wording."""
    return " ".join(re.findall(r"\w+", question.lower()))


@cache
def heldout_wordings() -> frozenset[str]:
    """The normalized held-out questions of all intents."""
    return frozenset(normalized(question) for intent in all_intents() for question in intent.heldout)
