"""`edgellm.inspect`: what a model is, from its headers and small files."""

from __future__ import annotations

import os
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

from edgellm.api import planning
from edgellm.formats import Checkpoint
from edgellm.model import OpenedModel, build_program
from edgellm.sidefiles import SideFiles
from edgellm.text import load_chat_template

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LICENCE = re.compile(rb"^licen[sc]e:[ \t]*([^\n#]{1,80})", re.MULTILINE)


def inspect(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Facts about a model, JSON-able; no weight is read, neither tokenizer nor template run.

    Keys: path, files, file_bytes, architecture, model_type, parameters, tensors, dtypes, tensor_bytes, the sizes of
    config.json, layers with a sliding window, quantization, chat_template, tokenizer_files, eos_token_ids, licence,
    notes.

    Raises:
        InputError, ModelError: as `load`.
    """
    with planning.open_path(path) as opened:
        return _facts(opened)


def _facts(opened: OpenedModel) -> dict[str, Any]:
    checkpoint, config, files = opened.checkpoint, opened.config, opened.side_files
    names = set(files.names())
    return {
        "path": opened.path,
        "files": [str(file) for file in checkpoint.files],
        "file_bytes": sum(os.path.getsize(file) for file in checkpoint.files),
        "architecture": config.architecture.name,
        "model_type": config.model_type,
        "parameters": build_program(config).parameters,
        "tensors": len(checkpoint.tensors),
        "dtypes": _dtypes(checkpoint),
        "tensor_bytes": sum(info.nbytes for info in checkpoint.tensors.values()),
        "hidden_size": config.hidden_size,
        "intermediate_size": list(config.intermediate_sizes) or config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "sliding_windows": {
            str(window): count for window, count in sorted(Counter(config.layer_windows).items(), key=str) if window
        },
        "quantization": None if opened.quantization is None else opened.quantization.facts(),
        "chat_template": _template_source(files),
        "tokenizer_files": [name for name in _TOKENIZER_FILES if name in names],
        "eos_token_ids": list(opened.generation.eos_token_ids),
        "licence": _licence(files, names),
        "notes": list(opened.notes),
    }


def _dtypes(checkpoint: Checkpoint) -> dict[str, int]:
    """Number of tensors by dtype."""
    return dict(sorted(Counter(info.dtype for info in checkpoint.tensors.values()).items()))


def _template_source(files: SideFiles) -> str | None:
    """The file the chat template is read from."""
    template = load_chat_template(files, SimpleNamespace(token_strings={}))  # type: ignore[arg-type]
    return None if template is None else template.name


def _licence(files: SideFiles, names: set[str]) -> str | None:
    """What the model card's front matter says, else the name of a licence file."""
    for name in ("README.md", "card.md"):
        card = (files.read(name) if name in names else None) or b""
        front_matter = card.split(b"\n---", 1)[0] if card.startswith(b"---") else b""
        if found := _LICENCE.search(front_matter):
            return found[1].decode("utf-8", "replace").strip().strip("\"'")
    return next((name for name in sorted(names) if name.upper().startswith(("LICENSE", "LICENCE"))), None)
