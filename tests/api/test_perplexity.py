"""What the CPU backend's default precision costs: perplexity within 0.2 % of the reference in float32.

Default precision is an lm_head in 8 bits, keys and values in float16, and in a prompt 8 bits for what meets quantized
weights; a score is computed as a prompt is, so nothing here has the 16 bits that decoding has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest

import edgellm
from tests.golden_models import story_openings
from tests.shared_data import SHARED_DATA, needs_shared_data
from tools.convert_llama2c import convert as convert_llama2c
from tools.guide.conversations import Conversation, Generator, Turn
from tools.guide.intents import all_intents

BOUND = 0.002
#: A seed beyond those of the guide's training, whose batches are numbered from their run's seed upwards.
HELDOUT_SEED = 10**12
STORY_MODELS = {
    "stories260K": ("stories260K.bin", "tok512.model"),
    "babyllama-tok105": ("model5000.bin", "tok105.model"),
}


def perplexity(llm: edgellm.LLM, texts: Sequence[Sequence[int]]) -> float:
    """Over every id of every text but the first."""
    scores = [llm.score(ids) for ids in texts]
    return math.exp(sum(score.nll for score in scores) / sum(len(score.tokens) - 1 for score in scores))


def compared(folder: Path | None, texts_of, what: str) -> float:
    """Perplexity on the CPU over that on the reference, less one; `texts_of` makes token ids with the model."""
    with edgellm.load(folder, backend="reference") as llm:
        texts = texts_of(llm)
        expected = perplexity(llm, texts)
    with edgellm.load(folder, backend="cpu", cache_dtype="float16") as llm:
        assert llm.info["activations"] == "auto"
        found = perplexity(llm, texts)
    tokens = sum(map(len, texts)) - len(texts)
    print(f"{what}: {tokens} tokens, perplexity {expected:.4f}, on the CPU {100 * (found / expected - 1):+.3f} %")
    return found / expected - 1


def answers_to_unseen_questions(llm: edgellm.LLM) -> list[list[int]]:
    pairs = [(question, intent.answers[0]) for intent in all_intents() for question in intent.heldout]
    conversations = [Conversation(None, (Turn(question, answer, "held out"),)) for question, answer in pairs[::16]]
    return [llm.encode_chat(one.messages()) for one in conversations]


def drawn_conversations(llm: edgellm.LLM) -> list[list[int]]:
    drawn = islice(iter(Generator(HELDOUT_SEED)), 12)
    return [llm.encode_chat(one.messages())[:1024] for one in drawn]


@pytest.mark.parametrize("texts_of", [answers_to_unseen_questions, drawn_conversations])
def test_the_embedded_model(texts_of) -> None:
    assert abs(compared(None, texts_of, texts_of.__name__)) < BOUND


@pytest.fixture(scope="module")
def story_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained story models, and one of them rounded to 4 bits in groups of 32."""
    root, sources = tmp_path_factory.mktemp("models"), SHARED_DATA / "models"
    made = {
        name: convert_llama2c(sources / name / binary, sources / name / tokenizer, root / name)
        for name, (binary, tokenizer) in STORY_MODELS.items()
    }
    made["babyllama-tok105 in 4 bits"] = root / "in4"
    edgellm.convert(made["babyllama-tok105"], root / "in4", method="rtn", bits=4, group_size=32)
    return made


@pytest.mark.slow
@needs_shared_data
@pytest.mark.parametrize("name", [*STORY_MODELS, "babyllama-tok105 in 4 bits"])
def test_150_stories(name: str, story_folders: dict[str, Path]) -> None:
    def stories(llm: edgellm.LLM) -> list[list[int]]:
        def encode(text: str) -> list[int]:
            return llm.tokenize(text, add_special_tokens=False)

        context = llm.config.max_position_embeddings
        return story_openings(SHARED_DATA / "text/valid_decoded.txt", encode, 1, context)

    assert abs(compared(story_folders[name], stories, name)) < BOUND
