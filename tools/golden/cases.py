"""The golden models: every architecture and switch, each a few thousand random weights.

A case names the config as transformers takes it. `ablations` are config changes that must move the logits: they prove
that the prompt reaches the switch (a window longer than the prompt would prove nothing).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCAB_SIZE = 96
LONG_PROMPT, SHORT_PROMPT = 72, 9  # token ids; every window below is shorter than the long one
WINDOW = 20

Config = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One golden model.

    Attributes:
        stage: "now" for architectures the package reads, "next" for rows the table must make easy.
        dtype: how model.safetensors stores the weights; the reference is float32 over the rounded weights.
        max_shard_size: given to `save_pretrained`.
        config_version: which transformers' spelling config.json has; the other one stands beside it.
    """

    name: str
    description: str
    model_type: str
    config: Config
    ablations: tuple[Config, ...] = ()
    stage: str = "now"
    dtype: str = "float32"
    max_shard_size: str = "1GB"
    config_version: int = 5
    v4_extra: Config = field(default_factory=dict)


def _config(**changes: Any) -> Config:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }


def _rope(theta: float, rope_type: str = "default", **values: float) -> Config:
    return {"rope_type": rope_type, "rope_theta": theta, **values}


PLAIN_ROPE: Config = {"rope_parameters": _rope(10000.0)}
FULL, SLIDING = "full_attention", "sliding_attention"

NOW = (
    Case(
        "llama-mha",
        "Llama 2: as many key/value heads as heads, default RoPE, stored in float16",
        "llama",
        _config(hidden_size=48, num_key_value_heads=4, **PLAIN_ROPE),
        ({"rope_parameters": _rope(500.0)},),
        dtype="float16",
    ),
    Case(
        "llama-gqa-head-dim",
        "Llama: 2 heads share a key/value head, head_dim 16 where hidden_size / heads is 8, weights in shards",
        "llama",
        _config(head_dim=16, **PLAIN_ROPE),
        max_shard_size="40KB",
    ),
    Case(
        "llama3-rope",
        "Llama 3.1: RoPE scaling llama3; wavelengths fall into all three bands",
        "llama",
        _config(
            head_dim=16,
            rope_parameters=_rope(
                10000.0,
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        (PLAIN_ROPE,),
    ),
    Case(
        "llama-linear-rope",
        "Llama with linear RoPE scaling; config.json in the spelling of transformers 4 (rope_scaling with `type`)",
        "llama",
        _config(rope_parameters=_rope(10000.0, "linear", factor=4.0)),
        (PLAIN_ROPE,),
        config_version=4,
    ),
    Case(
        "llama-bias",
        "Llama with attention_bias and mlp_bias",
        "llama",
        _config(attention_bias=True, mlp_bias=True, **PLAIN_ROPE),
    ),
    Case(
        "llama-tied",
        "SmolLM2, Llama 3.2: tied embeddings, no lm_head in the file",
        "llama",
        _config(tie_word_embeddings=True, num_hidden_layers=3, rope_parameters=_rope(100000.0)),
    ),
    Case(
        "tinyllama",
        "TinyLlama: 8 heads on one key/value head, stored in bfloat16",
        "llama",
        _config(hidden_size=64, intermediate_size=64, num_attention_heads=8, num_key_value_heads=1, **PLAIN_ROPE),
        dtype="bfloat16",
    ),
    Case(
        "mistral-window",
        f"Mistral 0.1: sliding window of {WINDOW} on every layer",
        "mistral",
        _config(sliding_window=WINDOW, **PLAIN_ROPE),
        ({"sliding_window": None}, {"sliding_window": WINDOW - 1}),
    ),
    Case(
        "mistral",
        "Mistral 0.2 and later: no window, head_dim 12 where hidden_size / heads is 8",
        "mistral",
        _config(sliding_window=None, head_dim=12, rope_parameters=_rope(1000000.0)),
    ),
    Case(
        "qwen2",
        "Qwen2.5: biases on q, k and v, tied embeddings, a window that use_sliding_window leaves off",
        "qwen2",
        _config(
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=WINDOW,
            rms_norm_eps=1e-6,
            rope_parameters=_rope(1000000.0),
        ),
        ({"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": [SLIDING] * 2},),
        v4_extra={"sliding_window": WINDOW},
    ),
    Case(
        "qwen2-mixed-window",
        f"Qwen2 with use_sliding_window: a window of {WINDOW} from layer max_window_layers 2 on; in bfloat16",
        "qwen2",
        _config(
            num_hidden_layers=4,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=2,
            rms_norm_eps=1e-6,
            rope_parameters=_rope(1000000.0),
        ),
        ({"layer_types": [FULL] * 4}, {"layer_types": [SLIDING] * 4}, {"layer_types": [SLIDING] * 2 + [FULL] * 2}),
        dtype="bfloat16",
    ),
    Case(
        "qwen3",
        "Qwen3: RMS norm of each head of q and k, head_dim 16 apart from hidden_size, tied embeddings",
        "qwen3",
        _config(head_dim=16, tie_word_embeddings=True, rms_norm_eps=1e-6, rope_parameters=_rope(1000000.0)),
    ),
)

NEXT = (
    Case(
        "gemma",
        "Gemma 1: embeddings times sqrt(hidden_size), norms by 1 + weight, gelu, tied",
        "gemma",
        _config(head_dim=16, num_key_value_heads=1, **PLAIN_ROPE),
        stage="next",
    ),
    Case(
        "gemma2",
        "Gemma 2: norms before and after, soft caps on scores and logits, every other layer with a window",
        "gemma2",
        _config(
            head_dim=8,
            query_pre_attn_scalar=4,
            sliding_window=WINDOW,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=6.0,
            **PLAIN_ROPE,
        ),
        (
            {"layer_types": [FULL] * 2},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
            {"query_pre_attn_scalar": 8},
        ),
        stage="next",
    ),
    Case(
        "gemma3",
        "Gemma 3 (text): norm of each head of q and k, local and global RoPE, window on two of three layers",
        "gemma3_text",
        _config(
            head_dim=8,
            num_hidden_layers=3,
            query_pre_attn_scalar=4,
            sliding_window=WINDOW,
            layer_types=[SLIDING, FULL, SLIDING],
            rope_parameters={
                FULL: _rope(1000000.0, "linear", factor=8.0),
                SLIDING: _rope(10000.0),
            },
        ),
        (
            {"layer_types": [FULL] * 3},
            {"rope_parameters": {FULL: _rope(10000.0), SLIDING: _rope(10000.0)}},
        ),
        stage="next",
        v4_extra={"sliding_window_pattern": 2},
    ),
    Case(
        "phi3",
        "Phi-3: q, k, v in one matrix, gate and up in one matrix, a window",
        "phi3",
        _config(sliding_window=WINDOW, **PLAIN_ROPE),
        ({"sliding_window": None},),
        stage="next",
    ),
    Case(
        "phi3-partial-rope",
        "Phi-4-mini: half of each head is rotated, the rest left as it is, stored in bfloat16",
        "phi3",
        _config(
            head_dim=16,
            hidden_size=64,
            intermediate_size=48,
            original_max_position_embeddings=256,
            rope_parameters={**_rope(10000.0), "partial_rotary_factor": 0.5},
        ),
        ({"rope_parameters": {**_rope(10000.0), "partial_rotary_factor": 1.0}},),
        stage="next",
        dtype="bfloat16",
    ),
    Case(
        "granite",
        "Granite 3: multipliers on embeddings, scores, residuals and logits",
        "granite",
        _config(
            embedding_multiplier=3.0,
            attention_multiplier=0.25,
            residual_multiplier=0.6,
            logits_scaling=2.0,
            **PLAIN_ROPE,
        ),
        (
            {"embedding_multiplier": 1.0},
            {"attention_multiplier": 8**-0.5},
            {"residual_multiplier": 1.0},
            {"logits_scaling": 1.0},
        ),
        stage="next",
    ),
    Case(
        "olmo2",
        "OLMo 2: norms after attention and MLP only, norm over the whole of q and k",
        "olmo2",
        _config(rope_parameters=_rope(500000.0)),
        stage="next",
    ),
    Case(
        "smollm3",
        "SmolLM3: no RoPE on the second layer of three, tied",
        "smollm3",
        _config(num_hidden_layers=3, no_rope_layers=[1, 0, 1], rope_parameters=_rope(50000.0)),
        ({"no_rope_layers": [1, 1, 1]}, {"no_rope_layers": [0, 1, 1]}),
        stage="next",
    ),
)

CASES = NOW + NEXT
