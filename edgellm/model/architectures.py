"""The architecture table: a row is a reader of config switches and a map of tensor names, never a class a model.

To add an architecture whose mathematics the program already has, add a row. A row's `read(config, sizes)` returns the
`ModelConfig` fields that differ from the plain ones; `fused` says which tensors of the file hold several linears.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm.model.reader import ObjectReader
from edgellm.model.rope import read_rope

Switches = dict[str, Any]
LAYER_TYPES = ("full_attention", "sliding_attention")
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
_GRANITE_FACTOR = (1e-6, 1e6)


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
        name: of the row.
        model_types: values of config.json's `model_type` it answers to.
        read: (config, sizes) -> fields of `ModelConfig`.
        names: our tensor name -> the file's, where they differ; per-layer names without the `layers.N.` prefix.
        fused: a linear of the file -> the linears it holds, stacked by rows, per layer.
    """

    name: str
    model_types: tuple[str, ...]
    read: Callable[[ObjectReader, Mapping[str, Any]], Switches]
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_architecture(config: ObjectReader) -> Architecture:
    """The row for a config. Raises `ModelError` where no row answers to its `model_type`."""
    model_type = config.text("model_type")
    architectures = config.values.get("architectures")
    if architectures is not None and (
        not isinstance(architectures, list) or any(not isinstance(item, str) for item in architectures)
    ):
        raise config.error("architectures", "not a list of names", 'such as ["LlamaForCausalLM"]')
    for row in TABLE:
        if model_type in row.model_types:
            return row
    known = ", ".join(sorted(name for row in TABLE for name in row.model_types))
    raise config.error("model_type", "architecture not supported", known)


def _common(config: ObjectReader, sizes: Mapping[str, Any], act_key: str = "hidden_act") -> Switches:
    """One rotation for all layers and the named activation."""
    rope = read_rope(config, sizes["head_dim"])
    return {
        "layer_ropes": (rope,) * sizes["num_hidden_layers"],
        "hidden_act": config.text(act_key, "silu", ACTIVATIONS),
    }


def _window(config: ObjectReader, sizes: Mapping[str, Any]) -> int | None:
    return config.integer("sliding_window", 1, sizes["max_position_embeddings"], None)


def _windows(config: ObjectReader, sizes: Mapping[str, Any], slides: Callable[[int], bool]) -> Switches:
    """Windows by `layer_types` where the file gives them, else where `slides(layer)` says so."""
    layers = sizes["num_hidden_layers"]
    types = config.texts("layer_types", layers, LAYER_TYPES)
    flags = [kind == "sliding_attention" for kind in types] if types else [slides(layer) for layer in range(layers)]
    window = _window(config, sizes) if any(flags) else None
    if any(flags) and window is None:
        raise config.error("sliding_window", "layers slide but the window is missing", "an integer of at least 1")
    return {"layer_windows": tuple(window if flag else None for flag in flags)}


def _llama(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    bias = config.flag("attention_bias", False)
    return {
        **_common(config, sizes),
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": config.flag("mlp_bias", False),
    }


def _mistral(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    window = _window(config, sizes)
    return {**_common(config, sizes), "layer_windows": (window,) * sizes["num_hidden_layers"]}


def _qwen_windows(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    if not config.flag("use_sliding_window", False):
        return {}
    full = config.integer("max_window_layers", 0, 1024, 28)
    return _windows(config, sizes, lambda layer: layer >= full)


def _qwen2(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    return {**_common(config, sizes), **_qwen_windows(config, sizes), "qkv_bias": True}


def _qwen3(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    bias = config.flag("attention_bias", False)
    switches = {**_common(config, sizes), **_qwen_windows(config, sizes)}
    return {**switches, "qkv_bias": bias, "o_bias": bias, "qk_norm": "head"}


def _smollm3(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    layers = sizes["num_hidden_layers"]
    switches = _llama(config, sizes)
    uses_rope = config.values.get("no_rope_layers")  # 1 means the layer does rotate
    if uses_rope is None:
        interval = config.integer("no_rope_layer_interval", 1, 1024, 4)
        uses_rope = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(uses_rope, list) or len(uses_rope) != layers or any(flag not in (0, 1) for flag in uses_rope):
        raise config.error("no_rope_layers", "not such a list", f"{layers} of 0 | 1")
    ropes = switches["layer_ropes"]
    switches["layer_ropes"] = tuple(rope if flag else None for rope, flag in zip(ropes, uses_rope, strict=True))
    if config.flag("use_sliding_window", False):
        switches |= _windows(config, sizes, lambda layer: not uses_rope[layer])
    return switches


def _gemma_act(config: ObjectReader) -> str:
    """Gemma's `hidden_act: gelu` has always meant the tanh form; `hidden_activation` says it outright."""
    key = "hidden_activation" if "hidden_activation" in config else "hidden_act"
    name = config.text(key, "gelu_pytorch_tanh", ACTIVATIONS)
    return "gelu_pytorch_tanh" if name == "gelu" else name


def _gemma(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    rope = read_rope(config, sizes["head_dim"])
    return {
        "layer_ropes": (rope,) * sizes["num_hidden_layers"],
        "hidden_act": _gemma_act(config),
        "norm_offset": 1.0,
        "embedding_multiplier": math.sqrt(sizes["hidden_size"]),
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
    }


def _gemma2(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    return {
        **_gemma(config, sizes),
        **_windows(config, sizes, lambda layer: layer % 2 == 0),
        "post_norms": True,
        "attention_scale": config.number("query_pre_attn_scalar", 1e-3, 1e6, 256.0) ** -0.5,
        "attn_logit_softcapping": config.number("attn_logit_softcapping", 1e-3, 1e6, None),
        "final_logit_softcapping": config.number("final_logit_softcapping", 1e-3, 1e6, None),
    }


def _gemma3(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    pattern = config.integer("sliding_window_pattern", 1, 1024, 6)
    switches = {
        **_gemma2(config, sizes),
        **_windows(config, sizes, lambda layer: (layer + 1) % pattern != 0),
        "qk_norm": "head",
    }
    full = read_rope(config, sizes["head_dim"], "full_attention")
    if "rope_parameters" in config:
        sliding = read_rope(config, sizes["head_dim"], "sliding_attention")
    else:
        local = {"rope_theta": config.number("rope_local_base_freq", 1.0, 1e12, 10000.0)}
        sliding = read_rope(ObjectReader(local, config.file), sizes["head_dim"])
    windows = switches["layer_windows"]
    switches["layer_ropes"] = tuple(full if window is None else sliding for window in windows)
    return switches


def _phi3(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    # Phi-3-mini-128k publishes a window of 262,144 with 131,072 positions: it is never reached.
    window = config.integer("sliding_window", 1, 1 << 27, None)
    if window is not None and window > sizes["max_position_embeddings"]:
        window = None
    return {**_common(config, sizes), "layer_windows": (window,) * sizes["num_hidden_layers"]}


def _granite(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    return {
        **_llama(config, sizes),
        "embedding_multiplier": config.number("embedding_multiplier", *_GRANITE_FACTOR, 1.0),
        "attention_scale": config.number("attention_multiplier", *_GRANITE_FACTOR, 1.0),
        "residual_multiplier": config.number("residual_multiplier", *_GRANITE_FACTOR, 1.0),
        "logits_multiplier": 1.0 / config.number("logits_scaling", *_GRANITE_FACTOR, 1.0),
    }


def _olmo2(config: ObjectReader, sizes: Mapping[str, Any]) -> Switches:
    return {**_llama(config, sizes), "qk_norm": "full", "pre_norms": False, "post_norms": True}


_SANDWICH = {
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "attention_output_layernorm": "post_attention_layernorm",
    "mlp_output_layernorm": "post_feedforward_layernorm",
}
_OUTPUT_NORMS = {
    "attention_output_layernorm": "post_attention_layernorm",
    "mlp_output_layernorm": "post_feedforward_layernorm",
}
_PHI_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}

TABLE = (
    Architecture("llama", ("llama",), _llama),
    Architecture("mistral", ("mistral",), _mistral),
    Architecture("qwen2", ("qwen2",), _qwen2),
    Architecture("qwen3", ("qwen3",), _qwen3),
    Architecture("smollm3", ("smollm3",), _smollm3),
    Architecture("gemma", ("gemma",), _gemma),
    Architecture("gemma2", ("gemma2",), _gemma2, names=_SANDWICH),
    Architecture("gemma3", ("gemma3_text",), _gemma3, names=_SANDWICH),
    Architecture("phi3", ("phi3",), _phi3, fused=_PHI_FUSED),
    Architecture("granite", ("granite",), _granite),
    Architecture("olmo2", ("olmo2",), _olmo2, names=_OUTPUT_NORMS),
)
