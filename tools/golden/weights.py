"""Random weights under which every part of a model matters, and a folder of them as `save_pretrained` writes it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from golden.cases import Case, Config
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

# Standard deviation of an output of each matrix for an input of unit RMS. q and k make attention scores of a few
# units, o and down let every layer outweigh the embedding (a tied model would echo its input otherwise).
GAINS = {"q_proj": 1.5, "k_proj": 1.5, "qkv_proj": 1.5, "o_proj": 1.5, "down_proj": 3.0, "lm_head": 3.0}
EMBEDDING_STD = 0.6
NORM_CENTERS = {"q_norm": 1.5, "k_norm": 1.5}  # 1 elsewhere; scores between normed q and k would be near uniform
# Gemma multiplies the embedding by sqrt(hidden_size) on its way in: a small one, and large norms behind the layers and
# at the end, keep the tied model from echoing.
GEMMA_EMBEDDING_STD = 0.15
GEMMA_NORM_CENTERS = {"post_attention_layernorm": 2.5, "post_feedforward_layernorm": 2.5, "norm": 4.0}
BIAS_STD = 0.5
NORM_SPREAD = 0.5


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Overwrite every parameter; each has its own stream, drawn from the seed and its name."""
    gemma = model.config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = np.random.default_rng([seed, zlib.crc32(name.encode())])
            parts = name.split(".")
            if parts[-1] == "bias":
                values = random.normal(0.0, BIAS_STD, parameter.shape)
            elif parameter.ndim == 1:
                center = (NORM_CENTERS | (GEMMA_NORM_CENTERS if gemma else {})).get(parts[-2], 1.0)
                values = random.uniform(center - NORM_SPREAD, center + NORM_SPREAD, parameter.shape)
                values -= 1.0 if gemma else 0.0  # Gemma's files hold a norm's weight minus one
            elif parts[-2] == "embed_tokens":
                values = random.normal(0.0, GEMMA_EMBEDDING_STD if gemma else EMBEDDING_STD, parameter.shape)
            else:
                std = GAINS.get(parts[-2], 1.0) / np.sqrt(parameter.shape[1])
                values = random.normal(0.0, std, parameter.shape)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def save_model(case: Case, seed: int, folder: Path) -> None:
    """Write config.json, its twin in the other spelling, generation_config.json and the weights of a case."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(case.model_type, **case.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, seed)
    model.generation_config = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id)
    model.to(getattr(torch, case.dtype)).save_pretrained(folder, max_shard_size=case.max_shard_size)
    newer = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    older = version_4_spelling(newer) | case.v4_extra
    if case.config_version == 4:
        (folder / "config.json").rename(folder / "config.v5.json")
    write_json(folder / ("config.json" if case.config_version == 4 else "config.v4.json"), older)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def version_4_spelling(config: Config) -> Config:
    """A config.json of transformers 5 as version 4 wrote it: rope_theta, rope_scaling, torch_dtype, no layer_types."""
    newer = ("rope_parameters", "dtype", "layer_types", "_sliding_window_pattern")
    old = {key: value for key, value in config.items() if key not in newer}
    rope = dict(config["rope_parameters"])
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    elif rope["rope_type"] == "linear":  # the oldest spelling, still in many published folders
        rope["type"] = rope.pop("rope_type")
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    old["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    old["torch_dtype"] = config["dtype"]
    old["transformers_version"] = "4.44.2"
    return dict(sorted(old.items()))


def load_model(folder: Path, config_file: str = "config.json", changes: Config | None = None) -> PreTrainedModel:
    """The saved model in float32 with eager attention, its config read from `config_file` and then changed."""
    table = json.loads((folder / config_file).read_text(encoding="utf-8")) | (changes or {})
    config = AutoConfig.for_model(**table)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise RuntimeError(f"{folder}: {wrong}")
    return model.eval()


def write_json(path: Path, table: Config) -> None:
    """Sorted, indented by 2, UTF-8, one newline at the end."""
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
