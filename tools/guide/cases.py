"""What the guide is examined on: questions that training never saw, and what a right answer contains."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.guide import stories, sums
from tools.guide.conversations import Generator
from tools.guide.intents import Intent, all_intents, commands_in


@dataclass(frozen=True)
class Case:
    """A held-out question; `right` judges an answer."""

    group: str
    name: str
    question: str
    right: Callable[[str], bool]
    before: tuple[dict[str, str], ...] = ()

    def messages(self) -> list[dict[str, str]]:
        """The conversation that the model answers."""
        return [*self.before, {"role": "user", "content": self.question}]


def answers_intent(intent: Intent, answer: str) -> bool:
    """Whether `answer` has every required fact of the intent and names no command of another one."""
    low = answer.lower()
    return all(fact.lower() in low for fact in intent.must) and commands_in(answer) <= intent.commands()


def _intent_cases() -> list[Case]:
    return [
        Case(intent.group, intent.name, question, lambda answer, intent=intent: answers_intent(intent, answer))
        for intent in all_intents()
        for question in intent.heldout
    ]


def _sum_cases(rng: random.Random, count: int) -> list[Case]:
    made: list[Case] = []
    while len(made) < count:
        drawn = sums.Sum(rng.randint(10, 99), rng.choice("+-"), rng.randint(10, 99))
        if drawn.heldout:
            question = rng.choice(["What is {} {} {}?", "how much is {} {} {}", "{} {} {}", "{}{}{}"])
            asked = question.format(drawn.a, drawn.sign, drawn.b)
            end = f"{drawn.a} {drawn.sign} {drawn.b} is {drawn.result}."
            made.append(Case("sums", "held-out pair", asked, lambda answer, end=end: answer.endswith(end)))
    for _ in range(count // 2):
        drawn = sums.Sum(rng.randint(0, 12), "x", rng.randint(0, 12))
        asked = rng.choice(["can you work out {} times {} for me", "i want to know what {} x {} is"])
        asked = asked.format(drawn.a, drawn.b)
        end = f"{drawn.a} x {drawn.b} is {drawn.result}."
        made.append(Case("sums", "held-out wording", asked, lambda answer, end=end: answer.endswith(end)))
    return made


def _is_story(answer: str, hero: str) -> bool:
    return hero in answer and answer.count(".") >= 4 and answer.endswith(".") and not commands_in(answer)


def _story_cases(rng: random.Random, count: int) -> list[Case]:
    made = []
    for _ in range(count):
        hero = rng.choice(stories.HEROES)
        asked = rng.choice(
            ["i'd love a story with a {}", "could i have a short story where a {} is the hero", "story about the {}"]
        )
        made.append(Case("stories", "hero", asked.format(hero), lambda answer, hero=hero: _is_story(answer, hero)))
    return made


def single_turn_cases() -> list[Case]:
    """Every held-out question alone; the same list on each call."""
    rng = random.Random(20)
    return [*_intent_cases(), *_sum_cases(rng, 80), *_story_cases(rng, 40)]


def in_conversation_cases(every: int = 3) -> list[Case]:
    """Each `every`-th case after two to six other turns."""
    generator = Generator(77)
    made = []
    for case in single_turn_cases()[::every]:
        if case.name == "more_of_what":  # after another turn "tell me more" has a meaning of its own
            continue
        before = generator.conversation(generator.rng.randint(2, 6)).messages()
        made.append(Case(case.group, case.name, case.question, case.right, tuple(before)))
    return made
