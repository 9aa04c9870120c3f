"""Which GGUF type each tensor has, as llama.cpp's own quantizer would choose it (src/llama-quant.cpp).

Names are GGUF's. Rows are the inputs of a linear: a type whose block does not divide them gives way to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: (elements, bytes) of a block.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "Q4_0": (32, 18),
    "Q5_0": (32, 22),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}
#: What stands in where 256 does not divide the row.
_FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
MIXES = ("q4_0", "q4_0-head4", "q4_k_m")


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor to be written: `shape` outermost first, as numpy has it."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        elements, size = BLOCKS[self.type]
        rows = 1
        for count in self.shape[:-1]:
            rows *= count
        return rows * (self.shape[-1] // elements) * size


def more_bits(layer: int, layers: int) -> bool:
    """Layers whose v_proj and down_proj Q4_K_M keeps in Q6_K: the first and last eighth, between them every third."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def fitting(kind: str, inputs: int) -> str:
    """`kind`, or what llama.cpp takes in its place for rows of so many inputs."""
    return kind if inputs % BLOCKS[kind][0] == 0 else _FALLBACK.get(kind, "F16")


def gguf_tensors(config: dict[str, Any], mix: str) -> list[GGUFTensor]:
    """Every tensor of a llama or qwen2 model.

    "q4_0" is Q4_0 with embedding and head in Q8_0, "q4_0-head4" Q4_0 throughout, "q4_k_m" llama.cpp's usual mixture:
    Q4_K with parts in Q6_K, a head in Q6_K. A tied head is the embedding, stored once as the head would be.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, vocab = config["num_attention_heads"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    tied = config.get("tie_word_embeddings", False)
    body = "Q4_K" if mix == "q4_k_m" else "Q4_0"
    head = {"q4_0": "Q8_0", "q4_0-head4": "Q4_0", "q4_k_m": "Q6_K"}[mix]
    embedding = head if tied or mix != "q4_k_m" else body

    def linear(name: str, rows: int, inputs: int, kind: str) -> GGUFTensor:
        return GGUFTensor(f"{name}.weight", (rows, inputs), fitting(kind, inputs))

    found = [linear("token_embd", vocab, hidden, embedding)]
    for layer in range(layers):
        stem = f"blk.{layer}."
        better = "Q6_K" if mix == "q4_k_m" and more_bits(layer, layers) else body
        found += [
            GGUFTensor(f"{stem}attn_norm.weight", (hidden,), "F32"),
            linear(f"{stem}attn_q", queries, hidden, body),
            linear(f"{stem}attn_k", keys, hidden, body),
            linear(f"{stem}attn_v", keys, hidden, better),
            linear(f"{stem}attn_output", hidden, queries, body),
            GGUFTensor(f"{stem}ffn_norm.weight", (hidden,), "F32"),
            linear(f"{stem}ffn_gate", inner, hidden, body),
            linear(f"{stem}ffn_up", inner, hidden, body),
            linear(f"{stem}ffn_down", hidden, inner, better),
        ]
        if config["model_type"] == "qwen2":
            sizes = {"q": queries, "k": keys, "v": keys}
            found += [GGUFTensor(f"{stem}attn_{name}.bias", (size,), "F32") for name, size in sizes.items()]
    found.append(GGUFTensor("output_norm.weight", (hidden,), "F32"))
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        found.append(GGUFTensor("rope_freqs.weight", (head_dim // 2,), "F32"))
    if not tied:
        found.append(linear("output", vocab, hidden, head))
    return found


def head_of(tensors: list[GGUFTensor]) -> GGUFTensor:
    """The tensor that makes logits: the embedding where there is no other."""
    by_name = {tensor.name: tensor for tensor in tensors}
    return by_name.get("output.weight", by_name["token_embd.weight"])


def read_bytes(tensors: list[GGUFTensor]) -> int:
    """Bytes of weights that a token reads: all, but of an embedding that is not the head one row."""
    head = head_of(tensors)
    total = sum(tensor.nbytes for tensor in tensors)
    embedding = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
    if embedding is not head:
        total -= embedding.nbytes - embedding.nbytes // embedding.shape[0]
    return total
