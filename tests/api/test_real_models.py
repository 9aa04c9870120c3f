"""The API on trained models and on checkpoints that other tools quantized."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgellm
from tests.shared_data import SHARED_DATA, needs_shared_data
from tools.convert_llama2c import convert

pytestmark = needs_shared_data
QUANTIZED = sorted(path.parent for path in (SHARED_DATA / "quantized").glob("*/reference.npz"))


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    source = SHARED_DATA / "models" / "stories260K"
    folder = tmp_path_factory.mktemp("stories")
    with edgellm.load(convert(source / "stories260K.bin", source / "tok512.model", folder / "m")) as llm:
        yield llm


def test_stories_go_on_as_recorded(stories):
    expected = json.loads((SHARED_DATA / "models" / "reference_outputs.json").read_text())["stories260K"]
    for sample in expected["greedy"]:
        assert stories.tokenize(sample["prompt"]) == sample["prompt_ids"]
        result = stories.generate(sample["prompt_ids"], max_tokens=len(sample["greedy_ids"]), ignore_eos=True)
        assert result.tokens == sample["greedy_ids"]
        text = stories.generate(sample["prompt"], max_tokens=len(sample["greedy_ids"]), ignore_eos=True).text
        assert (sample["prompt"] + text).strip() == sample["text"].strip()


def test_a_story_that_outgrows_its_slot_goes_on_in_words(stories):
    result = stories.generate("Once upon a time", max_tokens=900, ignore_eos=True)
    assert (result.finish_reason, result.usage.evicted_tokens > 300) == ("length", True)
    assert "dropped the oldest" in result.notes[0]


@pytest.mark.parametrize("folder", QUANTIZED, ids=lambda folder: folder.name)
def test_quantized_checkpoints_of_other_tools(folder):
    with np.load(folder / "reference.npz") as reference, edgellm.load(folder, backend="reference") as llm:
        ids = reference["input_ids_0"].tolist()
        logits = llm.logits(ids)[reference["pos_0"]]
        expected = reference["logits_0"]
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
        options = {"temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True}
        found = llm.generate(ids, max_tokens=len(reference["greedy_0"]), **options).tokens
        differs = np.flatnonzero(np.array(found) != reference["greedy_0"])
        assert differs.size == 0 or reference["greedy_margin_0"][differs[0]] < 2e-2


@pytest.mark.parametrize("folder", QUANTIZED, ids=lambda folder: folder.name)
def test_quantized_checkpoints_of_other_tools_on_the_default_backend(folder):
    with np.load(folder / "reference.npz") as reference, edgellm.load(folder) as llm:
        expected = reference["logits_0"]
        difference = llm.logits(reference["input_ids_0"].tolist())[reference["pos_0"]] - expected
    # of random weights; 0.077 at most with 8-bit activations in groups of 32 to 128 and an 8-bit lm_head
    assert np.linalg.norm(difference) < 0.1 * np.linalg.norm(expected)
