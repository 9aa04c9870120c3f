"""Added tokens, and how text that may name them is told from text that may not.

A tokenizer finds its added tokens (`<|im_end|>`, `</s>`) in any text it is given, so a message that spells one would
end its own turn. Text therefore travels as `Segment`s: in template text added tokens are parsed, in message text they
are spelled out. Through the rendering of a template, which knows nothing of segments, message text carries marks:
`BREAK`, a Unicode noncharacter, stands after the first character of every added token that a message spells.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.errors import UsageError
from edgellm.text.boundary import clean_text

BREAK = "\ufdd0"  # noncharacters: never assigned, valid in UTF-8, no white space, unchanged by normalization
OPEN, CLOSE = "\ufdd1", "\ufdd2"
_MARKS = {ord(mark): None for mark in (BREAK, OPEN, CLOSE)}
_MAX_DEPTH = 200


@dataclass(frozen=True)
class AddedToken:
    """A token found in the text before the model of the tokenizer sees it; fields as in tokenizer.json."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Segment:
    """A stretch of text; added tokens are parsed out of it only where `parse_special`, never across its ends."""

    text: str
    parse_special: bool = True


def is_markup(content: str) -> bool:
    """Whether an added token means structure, as `<think>` or `[IMG]` do, rather than text."""
    return len(content) > 2 and content[0] in "<[{|"


class TokenMatcher:
    """Finds added tokens as the `tokenizers` library does: leftmost, then longest, unnormalized ones first."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.by_content = {token.content: token for token in tokens}
        groups = ([], [])
        for token in self.by_content.values():
            groups[token.normalized].append(token.content)
        self._patterns = [re.compile(_alternation(group)) for group in groups if group]

    def split(self, segments: Sequence[Segment]) -> list[str | AddedToken]:
        """The segments as plain text and added tokens; neighbouring texts are joined, none is empty."""
        parts: list[str | AddedToken] = []
        for segment in segments:
            for part in self._split(segment.text, 0) if segment.parse_special else [segment.text]:
                if isinstance(part, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part:
                    parts.append(part)
        return parts

    def _split(self, text: str, phase: int) -> Iterator[str | AddedToken]:
        if phase == len(self._patterns):
            yield text
            return
        start = 0
        for match in self._patterns[phase].finditer(text):
            token = self.by_content[match[0]]
            if token.single_word and _touches_word(text, match):
                continue
            yield from self._split(text[start : match.start()], phase + 1)
            yield token
            start = match.end()
        yield from self._split(text[start:], phase + 1)


def _alternation(contents: Iterable[str]) -> str:
    """A regular expression for the longest of `contents`: a trie, for tokenizers have thousands of added tokens."""
    trie: dict[str, dict] = {}
    for content in contents:
        node = trie
        for character in content:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(trie)


def _expression(node: dict[str, dict]) -> str:
    branches = []
    for character, child in node.items():
        chain = character
        while len(child) == 1 and "" not in child:  # a chain without forks costs no nesting
            ((character, child),) = child.items()
            chain += character
        if chain:
            branches.append(re.escape(chain) + ("" if child.keys() <= {""} else _expression(child)))
    return f"(?:{'|'.join(branches)})" + ("?" if "" in node else "")


def _touches_word(text: str, match: re.Match[str]) -> bool:
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    return bool(re.match(r"\w", before) or re.match(r"\w", after))


class TokenBreaker:
    """Marks added tokens inside message text, so that they stay text.

    Added tokens that are neither special nor markup (Gemma's runs of newlines, digits) are ordinary content and left
    alone. In messages of the assistant only special tokens are marked: templates look for `</think>` there.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        markup = [token for token in tokens if is_markup(token.content) or (token.special and token.content.strip())]
        self._every = _Breaks(token.content for token in markup)
        self._special = _Breaks(token.content for token in markup if token.special)

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Copies of the messages with every string in them marked."""
        return [
            self._walk(message, self._special if message.get("role") == "assistant" else self._every)
            for message in messages
        ]

    def value(self, value: Any) -> Any:
        """A copy of a template variable, such as `tools`, with every string in it marked."""
        return self._walk(value, self._every)

    def _walk(self, value: Any, breaks: _Breaks, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise UsageError("messages or tools are nested too deeply", allowed=f"{_MAX_DEPTH} levels")
        if isinstance(value, str):
            return breaks.insert(value)
        if isinstance(value, Mapping):
            return {
                self._walk(key, breaks, depth + 1): self._walk(item, breaks, depth + 1) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._walk(item, breaks, depth + 1) for item in value]
        return value


class _Breaks:
    """Inserts `BREAK` into every spelling of some tokens, and into a start of one at the end of the text.

    The second keeps two strings that a template sets side by side from making a token together. Starts that are white
    space alone are left out: templates trim the ends of contents.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        contents = set(contents)
        self._pattern = re.compile(f"(?={_alternation(contents)})(?s:.)") if contents else None
        self._starts = {text[:size] for text in contents for size in range(1, len(text)) if text[:size].strip()}
        self._longest = max(map(len, self._starts), default=0)

    def insert(self, text: str) -> str:
        text = clean_text(text)
        if not text.isascii():
            text = text.translate(_MARKS)
        if self._pattern is None:
            return text
        cuts = {match.end() for match in self._pattern.finditer(text)}
        cuts |= {
            len(text) - size + 1 for size in range(1, min(self._longest, len(text)) + 1) if text[-size:] in self._starts
        }
        edges = [0, *sorted(cuts), len(text)]
        return BREAK.join(text[start:end] for start, end in itertools.pairwise(edges))


def segments_of(rendered: str) -> list[Segment]:
    """Segments of a rendered template: no added token begins at a character that `BREAK` follows."""
    *marked, last = rendered.split(BREAK)
    segments = []
    for text in marked:
        segments.append(Segment(text[:-1]))
        segments.append(Segment(text[-1:], parse_special=False))
    segments.append(Segment(last))
    return [segment for segment in segments if segment.text]


def enclose(parts: Sequence[str | AddedToken]) -> str:
    """One text in which only the true added tokens stand between `OPEN` and `CLOSE`."""
    return "".join(
        part.translate(_MARKS) if isinstance(part, str) else f"{OPEN}{part.content}{CLOSE}" for part in parts
    )
