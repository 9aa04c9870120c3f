"""Write a checkpoint at the real shapes of a named model with random weights, in seconds: for benchmarks, load tests.

    python -m tools.make_synthetic llama-3.2-1b OUT_FOLDER [--format gptq|awq|float16] [--layers N] [--asym] ...

MODEL is a name of `MODELS`, or a config.json of a llama, mistral or qwen2 model. The numbers are random, but they are
the numbers such a file has: codes are normally distributed around the zero point, weights have standard deviation
1/sqrt(in_features), so activations neither explode nor vanish through the layers, scales differ from group to group.
It speaks gibberish at exactly the speed of the real model.

Random blocks are made once and repeated with a period that is prime, so that rows do not coincide; tensors are written
one at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgeLLMError, UsageError
from edgellm.formats import TensorSource, save_checkpoint
from edgellm.formats.bits import WORD_BITS, pack_bits
from tools.synthetic_tokenizer import END_ID, START_ID, tokenizer_files

FORMATS = ("gptq", "awq", "float16")
PERIOD = 1_000_003  # elements in a random block, a prime
CODE_SPREAD = 2.7 / 16  # of the range: what rounding normal weights to 4 bits in groups of 128 gives
ZERO_SPREAD = 1 / 16


def _llama(**values: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, **values}


def _qwen2(**values: Any) -> dict[str, Any]:
    common = {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 32768, "vocab_size": 151936}
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **common,
        "tie_word_embeddings": True,
        **values,
    }


def _sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
#: config.json of the published models, as far as it decides shapes and arithmetic.
MODELS: dict[str, dict[str, Any]] = {
    "smollm2-135m": _llama(
        **_sizes(576, 1536, 30, 9, 3),
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": _qwen2(**_sizes(896, 4864, 24, 14, 2)),
    "tinyllama-1.1b": _llama(
        **_sizes(2048, 5632, 22, 32, 4),
        vocab_size=32000,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
    "llama-3.2-1b": _llama(
        **_sizes(2048, 8192, 16, 32, 8),
        head_dim=64,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling=_LLAMA3_ROPE,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": _qwen2(**_sizes(1536, 8960, 28, 12, 2)),
    "llama-2-7b": _llama(
        **_sizes(4096, 11008, 32, 32, 32),
        vocab_size=32000,
        max_position_embeddings=4096,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True)
class Storage:
    """How linear layers are stored: `layout` is one of `FORMATS`; groups are of inputs, -1 means the whole row."""

    layout: str = "gptq"
    bits: int = 4
    group_size: int = 128
    sym: bool = True
    desc_act: bool = False

    def check(self) -> None:
        """Raise `UsageError` where no such file exists."""
        if self.layout not in FORMATS:
            raise UsageError("unknown format", key="format", found=self.layout, allowed=", ".join(FORMATS))
        if self.bits not in ((4,) if self.layout == "awq" else (4, 8)):
            raise UsageError("not written here", key="bits", found=self.bits, allowed="4, or 8 in GPTQ")
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError("out of range", key="group_size", found=self.group_size, allowed="-1, or at least 1")
        if self.desc_act and self.layout != "gptq":
            raise UsageError("only GPTQ permutes inputs", key="desc_act")

    def quantization_config(self) -> dict[str, Any] | None:
        """The entry of config.json; None for float16."""
        common = {"bits": self.bits, "group_size": self.group_size, "lm_head": False}
        if self.layout == "gptq":
            flags = {"sym": self.sym, "desc_act": self.desc_act, "true_sequential": True, "checkpoint_format": "gptq"}
            return {"quant_method": "gptq", **common, **flags}
        if self.layout == "awq":
            return {"quant_method": "awq", **common, "zero_point": not self.sym, "version": "gemm"}
        return None


class Blocks:
    """Random blocks, made once and dealt out again and again, each time from another place."""

    def __init__(self, bits: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._random = random
        self.normal = random.standard_normal(PERIOD, np.float32)
        levels = 1 << bits
        fields = random.standard_normal((PERIOD, WORD_BITS // bits), np.float32) * (CODE_SPREAD * levels) + levels / 2
        self.words = pack_bits(np.clip(np.rint(fields), 0, levels - 1).astype(np.uint8), bits).reshape(-1)

    def deal(self, block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """An array of `shape` filled from `block` over and over."""
        out = np.empty(int(np.prod(shape)), block.dtype)
        start = int(self._random.integers(block.size))
        first = min(out.size, block.size - start)
        out[:first] = block[start : start + first]
        for position in range(first, out.size, block.size):
            part = out[position : position + block.size]
            part[:] = block[: part.size]
        return out.reshape(shape)

    def float16(self, shape: tuple[int, ...], spread: float, mean: float = 0.0) -> np.ndarray:
        """Normally distributed numbers."""
        return self.deal((self.normal * np.float32(spread) + np.float32(mean)).astype(np.float16), shape)

    def scales(self, shape: tuple[int, ...], typical: float) -> np.ndarray:
        """Positive float16 numbers around `typical`, a fifth more or less."""
        return self.deal((np.exp(self.normal * np.float32(0.2)) * np.float32(typical)).astype(np.float16), shape)

    def integers(self, shape: tuple[int, ...], spread: float, low: int, high: int) -> np.ndarray:
        """Rounded normally distributed numbers around the middle of low to high, uint8."""
        block = np.rint(self.normal * np.float32(spread) + np.float32((low + high) / 2))
        return self.deal(np.clip(block, low, high).astype(np.uint8), shape)

    def permutation(self, count: int) -> np.ndarray:
        """A random order of `count` things."""
        return self._random.permutation(count)


def tensors(config: dict[str, Any], storage: Storage, blocks: Blocks) -> dict[str, TensorSource]:
    """Every tensor of the checkpoint, by name; values are made when asked for."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, vocab = config["num_attention_heads"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    bias = config["model_type"] == "qwen2"
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found = {"model.embed_tokens.weight": _float16(blocks, (vocab, hidden), hidden**-0.5)}
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{stem}{norm}.weight"] = _float16(blocks, (hidden,), 0.1, 1.0)
        for name, (outputs, inputs) in linears.items():
            found |= {f"{stem}{name}.{part}": made for part, made in _linear(outputs, inputs, storage, blocks).items()}
            if bias and name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                found[f"{stem}{name}.bias"] = _float16(blocks, (outputs,), 0.1)
    found["model.norm.weight"] = _float16(blocks, (hidden,), 0.1, 1.0)
    if not config.get("tie_word_embeddings", False):
        found["lm_head.weight"] = _float16(blocks, (vocab, hidden), hidden**-0.5)
    return found


def _float16(blocks: Blocks, shape: tuple[int, ...], spread: float, mean: float = 0.0) -> TensorSource:
    return TensorSource("F16", shape, lambda: blocks.float16(shape, spread, mean))


def _linear(outputs: int, inputs: int, storage: Storage, blocks: Blocks) -> dict[str, TensorSource]:
    """The tensors of one linear layer W [outputs, inputs] of standard deviation 1/sqrt(inputs)."""
    if storage.layout == "float16":
        return {"weight": _float16(blocks, (outputs, inputs), inputs**-0.5)}
    group_size = inputs if storage.group_size == -1 else storage.group_size
    groups, fields = -(-inputs // group_size), WORD_BITS // storage.bits
    packed = inputs if storage.layout == "gptq" else outputs
    if packed % fields or outputs % fields:
        raise UsageError(
            "rows do not fill words", key="shape", found=(outputs, inputs), allowed=f"multiples of {fields}"
        )
    levels = 1 << storage.bits
    variance = CODE_SPREAD**2 + (0.0 if storage.sym else ZERO_SPREAD**2)
    typical = inputs**-0.5 / (levels * variance**0.5)
    words = (inputs // fields, outputs) if storage.layout == "gptq" else (inputs, outputs // fields)

    def zeros() -> np.ndarray:
        values = blocks.integers((groups, outputs), 0.0 if storage.sym else ZERO_SPREAD * levels, 1, levels - 1)
        return pack_bits(values - np.uint8(storage.layout == "gptq"), storage.bits)  # GPTQ stores zero - 1

    made = {
        "qweight": TensorSource("I32", words, lambda: blocks.deal(blocks.words, words)),
        "qzeros": TensorSource("I32", (groups, outputs // fields), zeros),
        "scales": TensorSource("F16", (groups, outputs), lambda: blocks.scales((groups, outputs), typical)),
    }
    if storage.layout == "gptq":
        g_idx = (np.arange(inputs) // group_size).astype(np.int32)
        if storage.desc_act:
            g_idx = g_idx[blocks.permutation(inputs)]
        made["g_idx"] = TensorSource.of(g_idx)
    return made


def model_config(model: str) -> dict[str, Any]:
    """The config of a name of `MODELS` or of a file. Raises `UsageError`."""
    if model in MODELS:
        return {"hidden_act": "silu", **MODELS[model]}
    try:
        config = json.loads(Path(model).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        allowed = f"{', '.join(MODELS)}, or a config.json"
        raise UsageError("no such model", key="model", found=f"{model} ({error})", allowed=allowed) from None
    if not isinstance(config, dict) or config.get("model_type") not in ("llama", "mistral", "qwen2"):
        raise UsageError("not a config that is written here", file=model, allowed="llama, mistral, qwen2")
    return config


def make_synthetic(
    config: dict[str, Any],
    folder: Path,
    storage: Storage,
    *,
    layers: int | None = None,
    tokenizer: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    name: str = "custom",
) -> Path:
    """Write the folder and return it.

    Args:
        config: as `model_config` gives it.
        layers: cut the model to so many.
        name: what the files say the shapes are of.

    Raises:
        UsageError: no such checkpoint exists.
        OutputError: the folder is taken or cannot be written.
    """
    storage.check()
    config = {**config, "torch_dtype": "float16", "use_cache": True, "synthetic": True}
    config["_name_or_path"] = f"synthetic/{name}"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UsageError("biases are written for qwen2 alone", key=key, found=True, allowed="false")
    if layers is not None:
        if layers < 1:
            raise UsageError("out of range", key="layers", found=layers, allowed="at least 1")
        config["num_hidden_layers"] = min(layers, config["num_hidden_layers"])
        config.pop("layer_types", None)
    config.pop("quantization_config", None)
    ids = {"bos_token_id": START_ID, "eos_token_id": END_ID}
    config |= ids
    quantization = storage.quantization_config()
    if quantization is not None:
        config["quantization_config"] = quantization
    files = {"config.json": _json(config), "generation_config.json": _json({"_from_model_config": True, **ids})}
    if tokenizer:
        files |= tokenizer_files(config["vocab_size"], config["max_position_embeddings"])
    what = f"random weights at the shapes of {name}, {config['num_hidden_layers']} layers, seed {seed}"
    made = tensors(config, storage, Blocks(storage.bits, seed))
    return save_checkpoint(made, folder, metadata={"synthetic": what}, side_files=files, overwrite=overwrite)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="A checkpoint of random weights at the shapes of a real model")
    parser.add_argument("model", help=f"{', '.join(MODELS)}, or a config.json")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--format", choices=FORMATS, default="gptq", help="how linear layers are stored")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group-size", type=int, default=128, help="inputs that share a scale; -1: the whole row")
    parser.add_argument("--asym", action="store_true", help="zero points that differ")
    parser.add_argument("--desc-act", action="store_true", help="permuted inputs, as GPTQ's act-order makes them")
    parser.add_argument("--layers", type=int, help="cut the model to so many layers")
    parser.add_argument("--no-tokenizer", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        storage = Storage(options.format, options.bits, options.group_size, not options.asym, options.desc_act)
        folder = make_synthetic(
            model_config(options.model),
            options.folder,
            storage,
            layers=options.layers,
            tokenizer=not options.no_tokenizer,
            seed=options.seed,
            overwrite=options.overwrite,
            name=Path(options.model).stem,
        )
    except EdgeLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"wrote {folder}: {size / 1e9:.2f} GB in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
