"""A model opened: files found, headers and configs checked, nothing heavy read yet."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from types import TracebackType

from edgellm.formats import Checkpoint, QuantizationConfig, open_checkpoint, read_quantization
from edgellm.model.config import ModelConfig, read_config
from edgellm.model.generation import GenerationDefaults, read_generation_defaults
from edgellm.model.program import build_program
from edgellm.model.weights import Weights, find_prefix
from edgellm.sidefiles import SideFiles, read_side_json

#: Embeddings are published padded to a multiple of up to this many rows.
_VOCAB_PADDING = 1024


@dataclass(frozen=True)
class OpenedModel:
    """What is known of a model from its headers and side files."""

    path: str
    checkpoint: Checkpoint
    config: ModelConfig
    quantization: QuantizationConfig | None
    weights: Weights
    generation: GenerationDefaults
    notes: tuple[str, ...]

    @property
    def side_files(self) -> SideFiles:
        """config.json, the tokenizer and their neighbours."""
        return self.checkpoint.side_files

    def close(self) -> None:
        """Close the files."""
        self.checkpoint.close()

    def __enter__(self) -> OpenedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_model(path: str | os.PathLike[str]) -> OpenedModel:
    """Open a checkpoint and prove that config and tensors belong together.

    Raises:
        InputError: a file is missing or unreadable.
        ModelError: a file is damaged, hostile, or does not fit the others.
    """
    checkpoint = open_checkpoint(path)
    try:
        files = checkpoint.side_files
        config = _with_padded_vocab(read_config(files), checkpoint)
        quantization = read_quantization(files, read_side_json(files, "config.json") or {})
        weights = Weights(checkpoint, build_program(config), quantization)
        generation = read_generation_defaults(files, config)
    except BaseException:
        checkpoint.close()
        raise
    notes = [*config.notes, *checkpoint.notes]
    unused = weights.unused()
    if unused:
        notes.append(f"{len(unused)} tensors are not used, the first is {unused[0]}")
    if not generation.eos_token_ids:
        notes.append("no eos_token_id is given: unless the tokenizer names one, answers end only at max_tokens")
    return OpenedModel(os.fspath(path), checkpoint, config, quantization, weights, generation, tuple(notes))


def _with_padded_vocab(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The config with as many vocabulary entries as the embedding has rows, where the file is merely padded."""
    info = checkpoint.info(find_prefix(checkpoint) + "embed_tokens.weight")
    rows = info.shape[0] if len(info.shape) == 2 else 0
    if not config.vocab_size < rows < config.vocab_size + _VOCAB_PADDING:
        return config
    note = f"vocab_size is {config.vocab_size:,}, the embedding is padded to {rows:,} rows"
    return replace(config, vocab_size=rows, notes=(*config.notes, note))
