"""Small sums: two whole numbers up to 99 added or subtracted, up to 12 multiplied; the answer shows its steps."""

from __future__ import annotations

import random
from dataclasses import dataclass

_NUMBER_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
_ASK = ["what is {}", "what's {}", "how much is {}", "{}", "{}", "{} =", "calculate {}", "can you tell me {}",
        "tell me {}", "compute {}", "please calculate {}", "what does {} make", "what do you get for {}",
        "and {}", "do you know {}", "work out {}", "whats {}", "solve {}", "what is the result of {}"]  # fmt: skip
_SIGNS = {
    "+": [" + ", " + ", "+", " plus ", " plus ", " and "],
    "-": [" - ", " - ", "-", " minus ", " minus ", " take away "],
    "x": [" x ", " * ", "*", "x", " times ", " times ", " multiplied by "],
}
_PHRASES = {
    "+": ["add {a} and {b}", "the sum of {a} and {b}", "add {b} to {a}", "what is the sum of {a} and {b}",
          "i have {a} apples and get {b} more, how many do i have", "{a} birds and {b} birds, how many are there",
          "what do {a} and {b} make together", "what is {b} more than {a}"],
    "-": ["subtract {b} from {a}", "take {b} away from {a}", "the difference between {a} and {b}",
          "what is left if i take {b} from {a}", "i had {a} apples and ate {b}, how many are left",
          "what is {b} less than {a}"],
    "x": ["multiply {a} by {b}", "multiply {a} and {b}", "the product of {a} and {b}",
          "{a} boxes with {b} eggs each, how many eggs are there", "what is the product of {a} and {b}"],
}  # fmt: skip
_TOO_HARD = ["{big} + {n}", "{big} - {n}", "{big} x {n}", "{big} * {big}", "{big} plus {big}", "{big} times {n}",
             "{n} divided by {m}", "{big} / {m}", "{n} / {m}", "the square root of {n}", "{n} percent of {big}",
             "{n} to the power of {m}", "{n}.5 + {m}.25", "{n} squared", "the square root of {big}",
             "half of {big}", "{n} + {m} + {m}", "{m} x {m} + {n}", "{n} - {m} - {m}", "the sine of {n}",
             "pi", "{big} plus {n}", "{big} minus {n}", "{n} mod {m}", "the factorial of {m}"]  # fmt: skip
_GO_ON = {
    "+": ["plus {}", "and plus {}", "and {} more", "add {} to that", "now add {}"],
    "-": ["minus {}", "and minus {}", "and {} less", "take {} away from that", "now subtract {}"],
}
TOO_HARD_ANSWER = (
    "That is beyond me: I am a small model. I add and subtract two whole numbers up to 99 and multiply up to 12."
)


@dataclass(frozen=True)
class Sum:
    """`a sign b`, sign one of "+", "-", "x"."""

    a: int
    sign: str
    b: int

    @property
    def result(self) -> int:
        return {"+": self.a + self.b, "-": self.a - self.b, "x": self.a * self.b}[self.sign]

    @property
    def heldout(self) -> bool:
        """One in sixteen of the sums with two numbers of two digits never occurs in training."""
        return self.sign != "x" and min(self.a, self.b) >= 10 and (self.a * 31 + self.b * 17) % 16 == 5

    def answer(self) -> str:
        """The steps and the result, in one sentence."""
        a, sign, b = self.a, self.sign, self.b
        end = f"{a} {sign} {b} is {self.result}."
        large, small = (b, a) if sign == "-" and b > a else (a, b)
        tens, ones = small // 10 * 10, small % 10
        if sign == "x" or not tens or not ones:
            return end
        between = large + tens if sign == "+" else large - tens
        last = between + ones if sign == "+" else between - ones
        return f"{large} {sign} {tens} is {between}, and {between} {sign} {ones} is {last}, so {end}"


def draw_sum(rng: random.Random) -> Sum:
    """A sum that may be trained on."""
    while True:
        sign = rng.choice("++--x")
        top = 12 if sign == "x" else rng.choice([20, 99, 99, 99])
        made = Sum(rng.randint(0, top), sign, rng.randint(0, top))
        if sign == "-" and made.result < 0 and rng.random() < 0.7:
            made = Sum(made.b, "-", made.a)
        if not made.heldout:
            return made


def ask(made: Sum, rng: random.Random) -> str:
    """A question for the sum, in lower case."""
    in_words = max(made.a, made.b) <= 20 and rng.random() < 0.2
    a, b = (_NUMBER_WORDS[n] if in_words else str(n) for n in (made.a, made.b))
    if rng.random() < 0.25:
        return rng.choice(_PHRASES[made.sign]).format(a=a, b=b)
    signs = [sign for sign in _SIGNS[made.sign] if sign.startswith(" ") or not in_words]
    return rng.choice(_ASK).format(a + rng.choice(signs) + b)


def continue_sum(last: int, rng: random.Random) -> tuple[str, Sum] | None:
    """A question that goes on from the last result, None where that would leave the range."""
    sign = rng.choice("+-")
    n = rng.randint(1, 20)
    made = Sum(last, sign, n)
    if not 0 <= last <= 99 or made.result < 0 or made.heldout:
        return None
    return rng.choice(_GO_ON[sign]).format(n), made


def too_hard(rng: random.Random) -> str:
    """A calculation that is out of reach, in lower case."""
    pattern = rng.choice(_TOO_HARD)
    text = pattern.format(big=rng.randint(100, 99999), n=rng.randint(2, 99), m=rng.randint(2, 12))
    return rng.choice(_ASK).format(text)
