"""Training conversations: turns drawn from the intents, the sums and the stories, deterministic from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tools.guide import stories, sums
from tools.guide.grammar import expand, macros, pseudo_word
from tools.guide.intents import Intent, all_intents, heldout_wordings, normalized
from tools.guide.noise import as_typed

# How often each kind of turn comes, as a rule; the help files hold a hundred intents, talk and beyond a dozen each.
SHARES = {"help": 0.61, "sum": 0.13, "hard sum": 0.02, "story": 0.05, "talk": 0.08, "beyond": 0.11}
_HEAVY = {"convert_4bit": 4.0, "what_is": 2.0, "install": 2.0, "chat": 2.0, "fit": 2.0, "jetson": 2.0, "gguf": 1.5,
          "anything": 2.0}  # fmt: skip
_MORE = ["tell me more", "more details please", "can you explain more", "go on", "say more", "more",
         "more about that", "what else should i know",
         "explain that a bit more", "tell me more about it", "anything else about it"]  # fmt: skip
_SYSTEMS = [
    "You are the guide of edgellm.", "You are a helpful assistant.", "Be brief.", "Answer in one sentence.",
    "You are a friendly assistant.", "Answer briefly and clearly.", "You are a teacher.", "Be polite.",
    "You are an expert.", "Help the user.", "You are {word}, an assistant.", "Your name is {word}.",
    "The user works at {word}.", "You are a helpful, honest assistant. Answer as well as you can.",
    "Speak like a {word}.", "Today is day {n}.", "You are a pirate.", "Keep answers under {n} words.",
    "You are a coding assistant. You know {word} and {word}.", "Always tell the truth.",
]  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `topic` is the intent's name, "sum" or "story".

    focus: a pattern for the parts of the answer that the question decides: results of sums, the hero asked for.
    """

    question: str
    answer: str
    topic: str
    result: int | None = None
    more: str | None = None
    focus: str | None = None


_RESULT = r" is -?\d+[,.]"


@dataclass(frozen=True)
class Conversation:
    """What a model trains on: an optional system message and the turns."""

    system: str | None
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """The conversation as role and content records."""
        made = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            made += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return made


class Generator:
    """Draws conversations from one seed, the kinds of turns by `shares`."""

    def __init__(self, seed: int, shares: Mapping[str, float] = SHARES) -> None:
        self.rng = random.Random(seed)
        self._shares = shares
        self._pools: dict[str, list[Intent]] = {"help": [], "talk": [], "beyond": []}
        for intent in all_intents():
            self._pools[intent.group if intent.group in self._pools else "help"].append(intent)
        self._weights = {kind: [self._weight(intent) for intent in pool] for kind, pool in self._pools.items()}
        self._followable = [intent for intent in self._pools["help"] + self._pools["talk"] if intent.follow_ups]

    @staticmethod
    def _weight(intent: Intent) -> float:
        # Cases of one intent share its weight about; a long list of questions earns a little more.
        cases = sum(other.name == intent.name for other in all_intents())
        return _HEAVY.get(intent.name, 1.0) * (len(intent.questions) / 6) ** 0.5 / cases**0.6

    def turn(self, last: Turn | None) -> Turn:
        """One turn that may follow `last`; its question is no held-out wording."""
        while True:
            made = self._draw(last)
            if normalized(made.question) not in heldout_wordings():
                return made

    def conversation(self, turns: int) -> Conversation:
        """`turns` turns, with or without a system message."""
        made: list[Turn] = []
        system = self._system()
        for _ in range(turns):
            made.append(self.turn(made[-1] if made else None))
        return Conversation(system, tuple(made))

    def __iter__(self) -> Iterator[Conversation]:
        while True:
            yield self.conversation(self.rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5]))

    def _system(self) -> str | None:
        draw = self.rng.random()
        if draw < 0.7:
            return None
        if draw < 0.78:
            return _SYSTEMS[0]
        pattern = self.rng.choice(_SYSTEMS)
        while "{word}" in pattern:
            pattern = pattern.replace("{word}", pseudo_word(self.rng).capitalize(), 1)
        return pattern.replace("{n}", str(self.rng.randint(2, 60)))

    def _draw(self, last: Turn | None) -> Turn:
        rng = self.rng
        if last is not None and rng.random() < 0.3:
            follow = self._follow(last)
            if follow is not None:
                return follow
        kind = rng.choices(list(self._shares), list(self._shares.values()))[0]
        if kind == "sum":
            made = sums.draw_sum(rng)
            return Turn(self._sum_typed(sums.ask(made, rng)), made.answer(), "sum", made.result, focus=_RESULT)
        if kind == "hard sum":
            return Turn(self._sum_typed(sums.too_hard(rng)), sums.TOO_HARD_ANSWER, "hard sum")
        if kind == "story":
            request, text, asked_for = stories.ask_story(rng)
            focus = "|".join(rf" {word}\b" for word in asked_for) or None
            return Turn(as_typed(request, rng), text, "story", focus=focus)
        intent = rng.choices(self._pools[kind], self._weights[kind])[0]
        return self._of_intent(intent, rng.choice(intent.questions))

    def _sum_typed(self, question: str) -> str:
        return as_typed(question, self.rng, plain=self.rng.random() < 0.7)

    def _of_intent(self, intent: Intent, pattern: str) -> Turn:
        rng = self.rng
        question = as_typed(expand(pattern, rng, macros()), rng)
        answer = intent.answers[0] if rng.random() < 0.75 else rng.choice(intent.answers)
        return Turn(question, answer, intent.name, more=intent.more)

    def _follow(self, last: Turn) -> Turn | None:
        """A turn that only makes sense after `last`; None where there is none."""
        rng = self.rng
        if last.topic == "story":
            request, text = stories.ask_another(rng)
            return Turn(as_typed(request, rng), text, "story")
        if last.topic == "sum" and last.result is not None:
            drawn = sums.continue_sum(last.result, rng)
            if drawn is None:
                return None
            return Turn(as_typed(drawn[0], rng, plain=True), drawn[1].answer(), "sum", drawn[1].result, focus=_RESULT)
        if last.more is not None and rng.random() < 0.5:
            return Turn(as_typed(rng.choice(_MORE), rng), last.more, last.topic)
        intent = rng.choice(self._followable)
        if intent.name == last.topic:
            return None
        return self._of_intent(intent, rng.choice(intent.follow_ups))
