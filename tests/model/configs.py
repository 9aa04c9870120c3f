"""A sound config.json to spoil, one key at a time."""

from __future__ import annotations

import json

from edgellm.model.config import ModelConfig, read_config
from edgellm.sidefiles import MemoryFiles

GOOD = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def files(config: dict | str | bytes, **others: dict) -> MemoryFiles:
    def encode(value) -> bytes:
        return value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()

    named = {f"{name}.json": encode(value) for name, value in others.items()}
    return MemoryFiles({"config.json": encode(config), **named}, "model")


def read(**changes) -> ModelConfig:
    values = {**GOOD, **changes}
    return read_config(files({key: value for key, value in values.items() if value is not ...}))
