"""What a model is: `config.json` read into numbers that were checked, free of the spelling of any one architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgellm.errors import ModelError
from edgellm.model.reader import ObjectReader
from edgellm.sidefiles import SideFiles, read_side_json

if TYPE_CHECKING:
    from edgellm.model.architectures import Architecture
    from edgellm.model.rope import Rope

MAX_LAYERS = 1024
MAX_HIDDEN = 131_072
MAX_HEADS = 1024
MAX_HEAD_DIM = 1024
MAX_INTERMEDIATE = 1 << 20
MAX_VOCAB = 1 << 22
MAX_CONTEXT = 1 << 27


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and switches of a decoder-only transformer. Names are those of Hugging Face's config.json.

    Attributes:
        model_type: as in the file.
        architecture: the row of the architecture table.
        intermediate_size, num_attention_heads ...: as in Hugging Face.
        intermediate_sizes: a layer, where the file's `intermediate_size` is a list of different widths, as checkpoints
            pruned by layer have it; `intermediate_size` is then the largest. () where all layers are equal.
        layer_windows: a layer, the sliding window in tokens (the query counts), None for full attention.
        layer_ropes: a layer, its rotation, None for a layer without positions.
        attention_scale: factor on q.k, 1/sqrt(head_dim) as a rule.
        qkv_bias, o_bias, mlp_bias: whether the file must hold these biases.
        qk_norm: None, "head" (RMSNorm over each head's head_dim) or "full" (over the whole projection).
        norm_offset: added to every norm weight (Gemma stores weight - 1).
        pre_norms, post_norms: norms before a branch, norms on a branch's output before it is added.
        attn_logit_softcapping, final_logit_softcapping: cap * tanh(x / cap), None without.
        embedding_multiplier, residual_multiplier, logits_multiplier: plain factors, 1.0 as a rule.
        notes: things a person should know (ignored keys, clamped values).
    """

    model_type: str
    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    layer_windows: tuple[int | None, ...]
    layer_ropes: tuple[Rope | None, ...]
    attention_scale: float
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str | None = None
    norm_offset: float = 0.0
    pre_norms: bool = True
    post_norms: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    intermediate_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def mlp_width(self, layer: int) -> int:
        """The `intermediate_size` of a layer."""
        return self.intermediate_sizes[layer] if self.intermediate_sizes else self.intermediate_size


def read_config(files: SideFiles) -> ModelConfig:
    """The config of the model whose side files these are.

    Raises:
        ModelError: no config.json, an architecture without a row in the table, a value missing or out of range.
    """
    values = read_side_json(files, "config.json")
    if values is None:
        raise ModelError(
            "config.json is missing",
            file=files.locate("config.json"),
            hint="Keep config.json and the tokenizer beside the weights, or pack all of them into one bundle.",
        )
    from edgellm.model.architectures import find_architecture

    reader = ObjectReader(values, files.locate("config.json"))
    architecture = find_architecture(reader)
    notes = []
    if "auto_map" in reader:
        notes.append("config.json names code of its own (auto_map); edgellm never runs code that comes with a model")
    sizes = _read_sizes(reader)
    switches = architecture.read(reader, sizes)
    fields = {**sizes, **switches}
    notes.extend(fields.pop("notes", ()))
    if fields["rms_norm_eps"] == 0.0:
        notes.append("rms_norm_eps is 0: a row of zeros would give NaN")
    return ModelConfig(architecture=architecture, notes=tuple(notes), **fields)


def _read_sizes(reader: ObjectReader) -> dict:
    """The numbers every architecture has, with the defaults that transformers gives them."""
    heads = reader.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = reader.integer("num_key_value_heads", 1, MAX_HEADS, heads)
    hidden_size = reader.integer("hidden_size", 1, MAX_HIDDEN)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", "must divide num_attention_heads", f"a divisor of {heads}")
    head_dim = reader.integer("head_dim", 1, MAX_HEAD_DIM, None)
    if head_dim is None:
        if hidden_size % heads:
            allowed = f"a multiple of num_attention_heads ({heads}), or head_dim given"
            raise reader.error("hidden_size", "does not divide into heads", allowed)
        head_dim = hidden_size // heads
    if head_dim % 2:
        raise reader.error("head_dim", f"rotary positions need an even head_dim, this is {head_dim}", "an even number")
    layers = reader.integer("num_hidden_layers", 1, MAX_LAYERS)
    return {
        "model_type": reader.text("model_type"),
        "hidden_size": hidden_size,
        **_read_widths(reader, layers),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": reader.integer("vocab_size", 1, MAX_VOCAB),
        "max_position_embeddings": reader.integer("max_position_embeddings", 1, MAX_CONTEXT),
        "rms_norm_eps": reader.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        "tie_word_embeddings": reader.flag("tie_word_embeddings", False),
        "attention_scale": head_dim**-0.5,
        "layer_windows": (None,) * layers,
    }


def _read_widths(reader: ObjectReader, layers: int) -> dict:
    """`intermediate_size`, one for all layers or a list of one a layer."""
    if not isinstance(reader.values.get("intermediate_size"), list):
        return {"intermediate_size": reader.integer("intermediate_size", 1, MAX_INTERMEDIATE)}
    widths = reader.integers("intermediate_size", 1, MAX_INTERMEDIATE, layers)
    if len(widths) != layers:
        raise reader.error("intermediate_size", "not one width a layer", f"an integer, or {layers} of them")
    return {"intermediate_size": max(widths), "intermediate_sizes": widths if len(set(widths)) > 1 else ()}
