"""The models and texts of the quality table: float sources, calibration and held-out JSONL, made in a work folder.

The story models are those of the shared data. stories260K has MLPs of 172 channels, whose 3- and 4-bit codes fill no
words of 32 bits: they are widened to 192 with channels of zeros, which changes no output, so that every linear can be
quantized and stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tools import convert_llama2c
from tools.guide.conversations import Generator
from tools.guide.texts import calibration

MODELS = ("stories260K", "babyllama-tok105", "guide")
_LLAMA2C = {
    "stories260K": ("stories260K.bin", "tok512.model"),
    "babyllama-tok105": ("model5000.bin", "tok105.model"),
}
#: What widths are raised to multiples of: 32 fills the words of every number of bits.
_MULTIPLE = 32
_CONVERSATIONS = 4000
#: Far from every seed of the training data.
_HELD_OUT_SEED = 10**12


@dataclass(frozen=True)
class Source:
    """A model in floating point with its texts.

    Attributes:
        name: of the model.
        folder: a Hugging Face folder.
        calibration, held_out: JSONL; nothing is in both.
        length: tokens of a calibration sequence, and of an evaluation window.
    """

    name: str
    folder: Path
    calibration: Path
    held_out: Path
    length: int


def make_source(name: str, data: Path, guide: Path | None, work: Path, documents: int) -> Source:
    """The source of that name, written into `work`.

    Args:
        data: the shared data, for the story models.
        guide: a folder with the guide in floating point, for the guide.
        documents: held-out stories or conversations.
    """
    work.mkdir(parents=True, exist_ok=True)
    if name == "guide":
        texts = work / "conversations.jsonl", work / "held_out_conversations.jsonl"
        held_out = [made.messages() for made in islice(Generator(_HELD_OUT_SEED), documents)]
        _write(texts[0], ({"messages": made} for made in calibration(_CONVERSATIONS)))
        _write(texts[1], ({"messages": made} for made in held_out))
        return Source(name, guide, *texts, 512)
    weights, tokenizer = (data / "models" / name / file for file in _LLAMA2C[name])
    folder = convert_llama2c.convert(weights, tokenizer, work / name)
    widen(folder)
    stories = json.loads((data / "text" / "tinystories_1000.json").read_text(encoding="utf-8"))
    unseen = (data / "text" / "valid_decoded.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    texts = work / "stories.jsonl", work / "held_out_stories.jsonl"
    _write(texts[0], ({"text": story.strip()} for story in stories))
    _write(texts[1], ({"text": story.strip()} for story in unseen[1 : documents + 1]))
    return Source(name, folder, *texts, 256)


def widen(folder: Path) -> None:
    """Raise the width of the MLPs to a multiple of 32 by channels of zeros, in place; nothing where it is one."""
    from safetensors.numpy import load_file, save_file

    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    missing = -config["intermediate_size"] % _MULTIPLE
    if not missing:
        return
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensors[name] = np.pad(tensor, ((0, missing), (0, 0)))
        elif name.endswith("down_proj.weight"):
            tensors[name] = np.pad(tensor, ((0, 0), (0, missing)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config["intermediate_size"] += missing
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
