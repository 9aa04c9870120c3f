"""Training batches: whole conversations packed into rows, each seeing only itself, positions counted from its start."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.guide.conversations import SHARES, Conversation, Generator, Turn
from tools.guide.intents import all_intents
from tools.guide.sums import Sum
from tools.guide.vocabulary import Vocabulary

SHORT_ROW, LONG_ROW = 256, 1024
_OPENING_LENGTH, _OPENING_WEIGHT = 4, 4.0

Encoded = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Mix:
    """What a part of the training sees.

    long: share of batches with conversations up to max_position_embeddings, which keeps long chats sane.
    lone: share of the other conversations that have one turn only, besides those drawn so.
    cut: share of the lone questions whose answer ends after `_CUT_LENGTH` ids: the first words settle an answer, so a
        batch of them holds more questions.
    question: weight of the question's own ids in the loss, those of an answer counting 1.
    story: weight of the ids of a story. It is drawn by chance, so its loss is mostly noise.
    shares: how often each kind of turn comes.
    focus: weight of the parts of sums and stories that the question decides (`Turn.focus`).
    """

    long: float
    lone: float
    cut: float
    question: float
    story: float
    shares: Mapping[str, float]
    focus: float | None = None


_CUT_LENGTH = 14
# The answers are learned by heart within a few hundred steps; then the questions are what is hard, then the
# copying of names and the arithmetic, then to refuse, and last all of it.
_MORE_COPYING = {"help": 0.55, "sum": 0.18, "hard sum": 0.02, "story": 0.08, "talk": 0.07, "beyond": 0.1}
_ALL_AGAIN = {"help": 0.5, "sum": 0.19, "hard sum": 0.02, "story": 0.07, "talk": 0.08, "beyond": 0.14}
_ANYTHING = {"help": 0.51, "sum": 0.14, "hard sum": 0.02, "story": 0.06, "talk": 0.09, "beyond": 0.18}
_MOST_COPYING = {"help": 0.36, "sum": 0.32, "hard sum": 0.02, "story": 0.1, "talk": 0.08, "beyond": 0.12}
_REFUSING = {"help": 0.52, "sum": 0.1, "hard sum": 0.02, "story": 0.05, "talk": 0.09, "beyond": 0.22}
_LAST = {"help": 0.5, "sum": 0.18, "hard sum": 0.02, "story": 0.06, "talk": 0.08, "beyond": 0.16}
PHASES = {
    0: Mix(long=0.1, lone=0.0, cut=0.7, question=0.0, story=0.4, shares=SHARES),
    800: Mix(long=0.06, lone=0.7, cut=0.92, question=0.1, story=0.4, shares=SHARES),
    1400: Mix(long=0.06, lone=0.7, cut=0.92, question=0.1, story=1.0, shares=_MORE_COPYING),
    2200: Mix(long=0.06, lone=0.7, cut=0.92, question=0.0, story=0.1, shares=_MOST_COPYING, focus=4.0),
    2800: Mix(long=0.06, lone=0.7, cut=0.92, question=0.0, story=0.1, shares=_ALL_AGAIN, focus=4.0),
    3400: Mix(long=0.06, lone=0.7, cut=0.92, question=0.0, story=0.1, shares=_ANYTHING, focus=4.0),
    4400: Mix(long=0.06, lone=0.7, cut=0.92, question=0.0, story=0.1, shares=_REFUSING, focus=4.0),
    5200: Mix(long=0.06, lone=0.7, cut=0.92, question=0.0, story=0.1, shares=_LAST, focus=4.0),
}


@dataclass(frozen=True)
class Batch:
    """ids, positions [B, T] int64; mask [B, 1, T, T] bool; targets [B, T] int64, -1 where nothing is to be learned.

    weights [B, T] float32: how much the loss counts each target.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor


def encode_weighted(conversation: Conversation, vocabulary: Vocabulary, mix: Mix) -> Encoded:
    """The ids, and the weight of each in the loss."""
    ids, written = vocabulary.encode(conversation.messages())
    weights = [1.0 if by_model else mix.question for by_model in written]
    starts = [i for i in range(1, len(ids)) if written[i] and not written[i - 1]]
    for start, turn in zip(starts, conversation.turns, strict=True):
        end = written.index(False, start) if False in written[start:] else len(ids)
        weights[start : start + _OPENING_LENGTH] = [_OPENING_WEIGHT] * len(weights[start : start + _OPENING_LENGTH])
        if turn.topic == "story":
            weights[start:end] = [mix.story] * (end - start)
        if turn.focus is not None and mix.focus is not None:
            for i in vocabulary.covering(ids[start : end - 1], turn.focus):
                weights[start + i] = mix.focus
    return ids, weights


def encode_within(conversation: Conversation, vocabulary: Vocabulary, limit: int, mix: Mix) -> Encoded:
    """The longest start of whole turns with at most `limit` ids; the first turn always stays, cut if it must be."""
    turns = conversation.turns
    while True:
        ids, weights = encode_weighted(Conversation(conversation.system, turns), vocabulary, mix)
        if len(ids) <= limit or len(turns) == 1:
            return ids[:limit], weights[:limit]
        turns = turns[: max(1, min(len(turns) - 1, int(len(turns) * limit / len(ids)) + 1))]


def cut_answer(encoded: Encoded, vocabulary: Vocabulary) -> Encoded:
    """Only the first words of the one answer."""
    ids, weights = encoded
    end = ids.index(vocabulary.roles["assistant"]) + 1 + _CUT_LENGTH
    return ids[:end], weights[:end]


def pack(rows: list[list[Encoded]], length: int) -> Batch:
    """Rows of encoded conversations as one batch; a row's conversations together have at most `length` ids."""
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    positions, owner = torch.zeros_like(ids), torch.full_like(ids, -1)
    weight = torch.zeros(len(rows), length)
    for r, row in enumerate(rows):
        at = 0
        for number, (tokens, weights) in enumerate(row):
            end = at + len(tokens)
            ids[r, at:end] = torch.tensor(tokens)
            positions[r, at:end] = torch.arange(len(tokens))
            owner[r, at:end] = number
            weight[r, at : end - 1] = torch.tensor(weights[1:])
            at = end
    causal = torch.tril(torch.ones(length, length, dtype=torch.bool))
    mask = causal & (owner[:, :, None] == owner[:, None, :])
    targets = torch.where(weight > 0, ids.roll(-1, dims=1), -1)
    return Batch(ids, positions, mask[:, None], targets, weight)


def training_batch(vocabulary: Vocabulary, seed: int, step: int, tokens: int) -> Batch:
    """Batch number `step` of the run `seed`: about `tokens` ids. Nothing else decides it: a run can go on anywhere."""
    mix = next(mix for start, mix in reversed(PHASES.items()) if step >= start)
    generator = Generator(seed * 1_000_003 + step, mix.shares)
    long = generator.rng.random() < mix.long
    length = LONG_ROW if long else SHORT_ROW
    rows: list[list[Encoded]] = [[] for _ in range(tokens // length)]
    room = [length] * len(rows)
    failures = 0
    drawn = _long_conversations(generator) if long else _conversations(generator, mix)
    while failures < 8:
        conversation = next(drawn)
        encoded = encode_within(conversation, vocabulary, length, mix)
        only = conversation.turns[0].topic if len(conversation.turns) == 1 else "several"
        if only not in ("sum", "story", "several") and generator.rng.random() < mix.cut:
            encoded = cut_answer(encoded, vocabulary)
        fitting = [r for r, free in enumerate(room) if free >= len(encoded[0])]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            rows[best].append(encoded)
            room[best] -= len(encoded[0])
        else:
            failures += 1
    return pack([row for row in rows if row], length)


def _conversations(generator: Generator, mix: Mix) -> Iterator[Conversation]:
    drawn = iter(generator)
    while True:
        yield generator.conversation(1) if mix.lone and generator.rng.random() < mix.lone else next(drawn)


def _long_conversations(generator: Generator) -> Iterator[Conversation]:
    while True:
        yield generator.conversation(generator.rng.choice([6, 10, 15, 20, 30]))


def heldout_batches(vocabulary: Vocabulary, rows: int = 32) -> list[Batch]:
    """The held-out questions with the answers that are expected, and held-out sums: the loss on what was never seen."""
    pairs = [(question, intent.answers[0]) for intent in all_intents() for question in intent.heldout]
    rng = random.Random(0)
    while len(pairs) % 50 or not pairs:
        made = Sum(rng.randint(10, 99), rng.choice("+-"), rng.randint(10, 99))
        if made.heldout:
            pairs.append((f"What is {made.a} {made.sign} {made.b}?", made.answer()))
    conversations = (Conversation(None, (Turn(question, answer, "held out"),)) for question, answer in pairs)
    encoded = [encode_weighted(conversation, vocabulary, PHASES[0]) for conversation in conversations]
    encoded.sort(key=lambda pair: len(pair[0]))
    groups = [encoded[i : i + rows] for i in range(0, len(encoded), rows)]
    return [pack([[pair] for pair in group], max(len(ids) for ids, _ in group)) for group in groups]
