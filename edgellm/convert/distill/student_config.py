"""The config.json of a smaller model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgellm.convert.distill.reduction import Kept
from edgellm.errors import ModelError
from edgellm.model.config import ModelConfig, read_config
from edgellm.sidefiles import MemoryFiles

_ROPE_LAYERS = "no_rope_layers"  # of smollm3: 1 means that the layer does rotate


def reduced_values(values: Mapping[str, Any], config: ModelConfig, kept: Kept) -> dict[str, Any]:
    """config.json's values for what is kept; keys that name a value a layer get those of the kept layers."""
    layers, groups = kept.layers, kept.groups[kept.layers[0]]
    shared = config.num_attention_heads // config.num_key_value_heads
    count = config.num_hidden_layers
    changed: dict[str, Any] = {
        "num_hidden_layers": len(layers),
        "hidden_size": len(kept.channels),
        "num_attention_heads": len(groups) * shared,
        "num_key_value_heads": len(groups),
        "head_dim": config.head_dim,
    }
    widths = [len(kept.ffn[layer]) for layer in layers]
    changed["intermediate_size"] = widths[0] if len(set(widths)) == 1 else widths
    result = {key: value for key, value in values.items() if key != "quantization_config"}
    for key, value in result.items():
        if isinstance(value, list) and len(value) == count and key in ("layer_types", _ROPE_LAYERS):
            changed[key] = [value[layer] for layer in layers]
    if len(layers) < count:
        if "layer_types" not in changed and len(set(config.layer_windows)) > 1:
            slides = [config.layer_windows[layer] is not None for layer in layers]
            changed["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in slides]
        if _ROPE_LAYERS not in changed and None in config.layer_ropes:
            changed[_ROPE_LAYERS] = [int(config.layer_ropes[layer] is not None) for layer in layers]
    return {**result, **changed}


def read_values(values: Mapping[str, Any], file: str) -> ModelConfig:
    """The config that `values` mean; `file` is named in errors. Raises `ModelError`."""
    return read_config(MemoryFiles({"config.json": json.dumps(dict(values)).encode()}, file))


def check_layers(made: ModelConfig, source: ModelConfig, kept: Kept, file: str) -> None:
    """Raises `ModelError` where config.json cannot say that the kept layers attend as they did."""
    for key, found, all_layers in (
        ("layer_types", made.layer_windows, source.layer_windows),
        ("rope_parameters", made.layer_ropes, source.layer_ropes),
    ):
        expected = tuple(all_layers[layer] for layer in kept.layers)
        if found != expected:
            raise ModelError(
                "this architecture's config.json cannot carry these layers",
                file=file,
                key=key,
                found=found,
                allowed=str(expected),
                hint="Keep other layers.",
            )
