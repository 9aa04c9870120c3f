"""The golden models of tests/golden, made by tools/make_golden.py, and the story openings of the shared data.

A case is a folder that `save_pretrained` wrote: config.json, generation_config.json, model.safetensors (or shards with
an index), and beside them config.v4.json or config.v5.json, the same config in the other spelling of transformers, and
reference.npz: what transformers computes in float32 with eager attention. Prompt 0 has 72 token ids, more than any
sliding window; prompt 1 has 9. Keys, for prompt i, T ids, R rows kept:

    input_ids_i      int64 [T]                BOS first
    pos_i            int64 [R]                positions that the rows of the next ones belong to; all T for prompt 1
    logits_i         float32 [R, vocab_size]
    embedding_i      float32 [R, hidden_size] into layer 0
    layer_<l>_i      float32 [R, hidden_size] out of layer l, the residual added
    final_norm_i     float32 [R, hidden_size] into the lm_head
    top1_i           int64 [T]                argmax of the logits at every position
    greedy_i         int64 [48]               argmax continuation, past any EOS
    greedy_margin_i  float32 [48]             largest logit minus the second; at least 0.02 at every step
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN_FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class GoldenCase:
    """One golden model; `row` is its entry in index.json (description, model_type, dtype, seed, facts, versions)."""

    name: str
    stage: str
    folder: Path
    row: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def other_config(self) -> Path:
        """The config in the spelling that config.json does not use; it means the same model."""
        return next(self.folder.glob("config.v*.json"))

    def reference(self) -> dict[str, np.ndarray]:
        """The arrays of reference.npz."""
        with np.load(self.folder / "reference.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}


def cases(stage: str | None = None) -> list[GoldenCase]:
    """The cases of a stage in the order of the index, all of them for None; use with `parametrize(..., ids=str)`.

    Stage "now" are architectures the package reads, "next" those the architecture table must make easy.
    """
    rows = json.loads((GOLDEN_FOLDER / "index.json").read_text(encoding="utf-8"))["cases"]
    found = [GoldenCase(row["name"], row["stage"], GOLDEN_FOLDER / row["name"], row) for row in rows]
    return [case for case in found if stage in (None, case.stage)]


def story_openings(
    stories_file: Path, encode: Callable[[str], list[int]], bos_token_id: int, max_tokens: int, count: int = 150
) -> list[list[int]]:
    """Token ids of the story openings that models/reference_outputs.json of the shared data is measured on.

    The stories stand between `<|endoftext|>` in text/valid_decoded.txt; the first is cut, so stories 1 to `count` are
    taken, stripped, encoded without special tokens, BOS put in front, and cut to `max_tokens` ids, the model's context.
    Negative log-likelihood per token is the sum over all ids but each BOS, divided by their number: 38,250 of
    babyllama-tok105. The 55,796 of stories260K count a doubled space in one story that sentencepiece makes one: with
    it there are 55,795, and 1.2e-4 less a token.
    """
    stories = stories_file.read_text(encoding="utf-8").split("<|endoftext|>")[1 : count + 1]
    return [[bos_token_id, *encode(story.strip())][:max_tokens] for story in stories]
