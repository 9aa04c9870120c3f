"""The reference on trained models and on checkpoints that other tools wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.backends.running import greedy, load, logits_of, relative_error
from tests.golden_models import story_openings
from tests.shared_data import SHARED_DATA, needs_shared_data
from tools.convert_llama2c import convert

pytestmark = needs_shared_data

MODELS = {"stories260K": ("stories260K.bin", "tok512.model"), "babyllama-tok105": ("model5000.bin", "tok105.model")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    sources = SHARED_DATA / "models"
    return {
        name: convert(sources / name / binary, sources / name / tokenizer, root / name)
        for name, (binary, tokenizer) in MODELS.items()
    }


def expected_of(name: str) -> dict:
    return json.loads((SHARED_DATA / "models" / "reference_outputs.json").read_text())[name]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_ids_of_the_story_models(name: str, folders) -> None:
    runner = load(folders[name])
    for sample in expected_of(name)["greedy"]:
        assert greedy(runner, sample["prompt_ids"], len(sample["greedy_ids"])) == sample["greedy_ids"]
        top = logits_of(runner, sample["prompt_ids"])[-1][sample["top5_ids"]]
        np.testing.assert_allclose(top, sample["top5_logits"], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_negative_log_likelihood_of_150_stories(name: str, folders) -> None:
    import sentencepiece

    expected, runner = expected_of(name), load(folders[name])
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folders[name] / "tokenizer.model"))
    context = runner.program.config.max_position_embeddings
    stories = story_openings(SHARED_DATA / "text" / "valid_decoded.txt", tokenizer.encode, 1, context, 150)
    total = 0.0
    for ids in stories:
        logits = logits_of(runner, ids, chunk=512)[:-1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        total += (np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(ids) - 1), ids[1:]]).sum()
    count = sum(len(ids) - 1 for ids in stories)
    assert abs(count - expected["tokens"]) <= 1  # one story has a doubled space, which sentencepiece makes one
    assert total / count == pytest.approx(expected["valid_nll_per_token"], abs=1e-3)


CHECKPOINTS = sorted((SHARED_DATA / "quantized").glob("*/reference.npz"))


@pytest.mark.parametrize("file", CHECKPOINTS, ids=lambda file: file.parent.name)
def test_checkpoints_that_other_tools_quantized(file: Path) -> None:
    runner = load(file.parent)
    with np.load(file) as expected:
        prompts = [key for key in expected.files if key.startswith("input_ids_")]
        for i in range(len(prompts)):
            ids = expected[f"input_ids_{i}"]
            logits = logits_of(runner, ids)
            assert relative_error(logits[expected[f"pos_{i}"]], expected[f"logits_{i}"]) < 1e-4
            np.testing.assert_array_equal(logits.argmax(axis=-1), expected[f"top1_{i}"])
            assert greedy(runner, ids, 32) == expected[f"greedy_{i}"].tolist()
