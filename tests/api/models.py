"""Tiny models with a tokenizer and a chat template, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_model(
    folder: Path,
    *,
    hidden_size: int = 32,
    num_hidden_layers: int = 2,
    context: int = 1024,
    vocab_rows: int = 264,
    template: str | None = CHATML,
    generation: dict[str, Any] | None = None,
    dtype: type = np.float32,
    **config: Any,
) -> Path:
    """A random Llama of bytes in `folder`: 256 byte tokens, four special ones, the embedding padded to `vocab_rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden_size // 4,
        "vocab_size": vocab_rows,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 258,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    (folder / "generation_config.json").write_text(json.dumps(generation or {"eos_token_id": [256, 258]}))
    _write_weights(folder, sizes, dtype)
    _write_tokenizer(folder, template)
    return folder


def _write_weights(folder: Path, sizes: dict[str, Any], dtype: type) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    hidden, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns), np.float32) * 1.5 / np.sqrt(columns)).astype(dtype)

    tensors = {
        "model.embed_tokens.weight": matrix(sizes["vocab_size"], hidden),
        "model.norm.weight": np.ones(hidden, dtype),
    }
    for layer in range(sizes["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        tensors |= {
            at + "input_layernorm.weight": np.ones(hidden, dtype),
            at + "post_attention_layernorm.weight": np.ones(hidden, dtype),
            at + "self_attn.q_proj.weight": matrix(4 * head, hidden),
            at + "self_attn.k_proj.weight": matrix(2 * head, hidden),
            at + "self_attn.v_proj.weight": matrix(2 * head, hidden),
            at + "self_attn.o_proj.weight": matrix(hidden, 4 * head),
            at + "mlp.gate_proj.weight": matrix(inner, hidden),
            at + "mlp.up_proj.weight": matrix(inner, hidden),
            at + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    save_file(tensors, folder / "model.safetensors")


def _write_tokenizer(folder: Path, template: str | None) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: at for at, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
