"""Turn a llama2.c checkpoint (legacy v0 `.bin`) into a Hugging Face LlamaForCausalLM folder.

    python tools/convert_llama2c.py model.bin tokenizer.model OUT_FOLDER [--dtype float32|float16|bfloat16]

The file: 7 little-endian int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len), then float32
matrices row-major, each kind for all layers before the next kind. A negative vocab_size says that a classifier of
its own follows the RoPE tables; otherwise the embedding is the classifier. The RoPE tables are not stored on: they
follow from theta 10000, and the file's copy must agree with it.

llama2.c rotates neighbours (x[2i], x[2i+1]); Hugging Face rotates halves (x[i], x[i + head_dim/2]). Rows of q_proj and
k_proj are therefore permuted within each head: row i of the first half is row 2i, of the second half row 2i+1.

Writes config.json, generation_config.json, model.safetensors, tokenizer.model and tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROPE_THETA = 10000.0
RMS_NORM_EPS = 1e-5
BOS_TOKEN_ID, EOS_TOKEN_ID = 1, 2  # llama2.c trains every story as BOS + text and hard-codes both ids
HEADER_BYTES = 7 * 4
LARGEST_HEADER_VALUE = 1 << 24
DTYPES = ("float32", "float16", "bfloat16")


class ConversionError(Exception):
    """The input is not a llama2.c checkpoint with its tokenizer; the message names the file and the fault."""


@dataclass(frozen=True)
class Header:
    """The seven integers of the file, under Hugging Face's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array in the file, in file order; the leading L is the layer."""
        layers, hidden, inner = self.num_hidden_layers, self.hidden_size, self.intermediate_size
        kv_size = self.num_key_value_heads * self.head_dim
        shapes = {
            "embed_tokens": (self.vocab_size, hidden),
            "input_layernorm": (layers, hidden),
            "self_attn.q_proj": (layers, hidden, hidden),
            "self_attn.k_proj": (layers, kv_size, hidden),
            "self_attn.v_proj": (layers, kv_size, hidden),
            "self_attn.o_proj": (layers, hidden, hidden),
            "post_attention_layernorm": (layers, hidden),
            "mlp.gate_proj": (layers, inner, hidden),
            "mlp.down_proj": (layers, hidden, inner),
            "mlp.up_proj": (layers, inner, hidden),
            "norm": (hidden,),
            "rope_cos": (self.max_position_embeddings, self.head_dim // 2),
            "rope_sin": (self.max_position_embeddings, self.head_dim // 2),
        }
        if not self.tie_word_embeddings:
            shapes["lm_head"] = (self.vocab_size, hidden)
        return shapes


def read_header(data: bytes, file: Path) -> Header:
    """The header of a legacy v0 file. Raises `ConversionError`."""
    if len(data) < HEADER_BYTES:
        raise ConversionError(f"{file}: {len(data)} bytes, a header alone has {HEADER_BYTES}")
    if data[:4] == b"24ka":  # 0x616b3432, the magic of export versions 1 and 2
        raise ConversionError(f"{file}: a llama2.c export of version 1 or 2; only the legacy version 0 is read")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = np.frombuffer(data, "<i4", 7).tolist()
    values = {
        "dim": dim,
        "hidden_dim": hidden_dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "|vocab_size|": abs(vocab_size),
        "seq_len": seq_len,
    }
    for name, value in values.items():
        if not 1 <= value <= LARGEST_HEADER_VALUE:
            raise ConversionError(f"{file}: header value {name} is {value}, allowed: 1 to {LARGEST_HEADER_VALUE}")
    if dim % n_heads or (dim // n_heads) % 2:
        raise ConversionError(f"{file}: dim {dim} over n_heads {n_heads} does not give an even head size")
    if n_heads % n_kv_heads:
        raise ConversionError(f"{file}: n_heads {n_heads} is not a multiple of n_kv_heads {n_kv_heads}")
    return Header(dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(vocab_size), seq_len, vocab_size > 0)


def read_checkpoint(file: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and float32 arrays (shapes as `Header.shapes`) of a legacy v0 file.

    Raises `ConversionError` where the size is not exact to the byte, a value is not finite, or the RoPE tables are
    not those of theta 10000.
    """
    data = file.read_bytes()
    header = read_header(data, file)
    shapes = header.shapes()
    expected = HEADER_BYTES + 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if len(data) != expected:
        raise ConversionError(f"{file}: {len(data):,} bytes, its header asks for exactly {expected:,}")
    arrays, offset = {}, HEADER_BYTES
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, "<f4", count, offset).reshape(shape)
        offset += 4 * count
        if not np.isfinite(arrays[name]).all():
            raise ConversionError(f"{file}: {name} holds NaN or infinity")
    _check_rope_tables(header, arrays, file)
    return header, arrays


def _check_rope_tables(header: Header, arrays: dict[str, np.ndarray], file: Path) -> None:
    inverse_frequency = ROPE_THETA ** (-np.arange(0, header.head_dim, 2, dtype=np.float64) / header.head_dim)
    angles = np.outer(np.arange(header.max_position_embeddings), inverse_frequency)
    for name, expected in (("rope_cos", np.cos(angles)), ("rope_sin", np.sin(angles))):
        # float32 angles of positions up to 512 are off by 3e-5; another theta is off by more than 0.1
        largest = float(np.abs(arrays[name] - expected).max())
        if largest > 1e-3:
            raise ConversionError(f"{file}: {name} is not that of theta {ROPE_THETA:g} (off by {largest:.3g})")


def rotate_half_rows(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a q or k projection [heads * head_dim, hidden_size], from interleaved pairs to halves, in each head."""
    rows, hidden_size = weight.shape
    pairs = weight.reshape(rows // head_dim, head_dim // 2, 2, hidden_size)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, hidden_size)


def to_hugging_face(header: Header, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float32 tensors under the names of `LlamaForCausalLM`; the tied lm_head is left out, as transformers does."""
    tensors = {"model.embed_tokens.weight": arrays["embed_tokens"], "model.norm.weight": arrays["norm"]}
    if not header.tie_word_embeddings:
        tensors["lm_head.weight"] = arrays["lm_head"]
    for name, stacked in arrays.items():
        if name in ("embed_tokens", "norm", "lm_head", "rope_cos", "rope_sin"):
            continue
        for layer, weight in enumerate(stacked):
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = rotate_half_rows(weight, header.head_dim)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
    return tensors


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """A float32 array in `dtype`, to nearest even, C-contiguous; bfloat16 as its uint16 bits."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(array, dtype)
    bits = np.ascontiguousarray(array, "float32").view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + half) >> np.uint32(16)).astype(np.uint16)


def model_config(header: Header, dtype: str) -> dict[str, Any]:
    """config.json in the spelling of published Llama checkpoints."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": BOS_TOKEN_ID,
        "eos_token_id": EOS_TOKEN_ID,
        "head_dim": header.head_dim,
        "hidden_act": "silu",
        "hidden_size": header.hidden_size,
        "intermediate_size": header.intermediate_size,
        "max_position_embeddings": header.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": header.num_attention_heads,
        "num_hidden_layers": header.num_hidden_layers,
        "num_key_value_heads": header.num_key_value_heads,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": header.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": header.vocab_size,
    }


def tokenizer_config(header: Header) -> dict[str, Any]:
    """tokenizer_config.json of a sentencepiece Llama tokenizer: BOS before the text, no EOS after it."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": header.max_position_embeddings,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }


def check_tokenizer(file: Path, header: Header) -> None:
    """Raise `ConversionError` unless `file` is a sentencepiece model of one piece a vocabulary row, BOS 1, EOS 2."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=file.read_bytes())
    except RuntimeError as error:
        raise ConversionError(f"{file}: not a sentencepiece model ({error})") from None
    if len(processor) != header.vocab_size:
        raise ConversionError(
            f"{file}: {len(processor)} pieces, the checkpoint has {header.vocab_size} vocabulary rows"
        )
    if (processor.bos_id(), processor.eos_id()) != (BOS_TOKEN_ID, EOS_TOKEN_ID):
        found = f"BOS {processor.bos_id()}, EOS {processor.eos_id()}"
        raise ConversionError(f"{file}: {found}; llama2.c has BOS {BOS_TOKEN_ID}, EOS {EOS_TOKEN_ID}")


def convert(model: Path, tokenizer: Path, folder: Path, dtype: str = "float32") -> Path:
    """Write the Hugging Face folder of one llama2.c checkpoint and return it.

    Raises:
        ConversionError: the checkpoint or the tokenizer is damaged, or they do not belong together.
        OSError: a file cannot be read or written.
    """
    from safetensors import TensorSpec, serialize

    header, arrays = read_checkpoint(model)
    check_tokenizer(tokenizer, header)
    stored = {name: rounded(array, dtype) for name, array in to_hugging_face(header, arrays).items()}
    specs = {
        name: TensorSpec(dtype=dtype, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in stored.items()  # `stored` outlives the call below: the pointers stay valid
    }
    generation = {"_from_model_config": True, "bos_token_id": BOS_TOKEN_ID, "eos_token_id": EOS_TOKEN_ID}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(serialize(specs, {"format": "pt"}))
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    for name, table in (
        ("config.json", model_config(header, dtype)),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config(header)),
    ):
        (folder / name).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return folder


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="llama2.c legacy .bin -> Hugging Face folder")
    parser.add_argument("model", type=Path, help="llama2.c legacy v0 checkpoint")
    parser.add_argument("tokenizer", type=Path, help="sentencepiece model the checkpoint was trained with")
    parser.add_argument("folder", type=Path, help="where to write; made if missing")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="how weights are stored")
    options = parser.parse_args(arguments)
    try:
        convert(options.model, options.tokenizer, options.folder, options.dtype)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
