"""The program: a network as a list of ops over named buffers. Backends interpret it; nobody subclasses it.

Buffers are float32 [T, width], one row a token of the step; `token_ids` is int32 [T]. The kinds and what they mean:

    embed      out = embed_tokens[token_ids] * multiplier
    inputs     its outputs are what the caller gives; the first op of a program that was cut out of another (`cut.py`)
    rms_norm   out = x / sqrt(mean(x^2) + eps) * (offset + weight); the mean runs over the row, or over each run of
               `group` elements (a head) where that attribute is there  (RMSNorm, arXiv:1910.07467)
    linear     out_i = in W_i^T + b_i for each weight i; with `add`, out = out + multiplier * (in W^T + b), where out is
               the last input
    rope       x turned to the token's position, in place
    store_kv   the keys, not yet turned, and the values enter the token's row of the slot. A kept key's position can
               change (an eviction), so it is `attention` that sees keys at their present positions; a backend may
               store them turned if it keeps that true
    attention  softmax(softcap(q.k * scale) + mask) v over the tokens of the sequence that the slot keeps, this step's
               included; causal, at most `window` tokens back; query head h reads KV head h / (H / KvH)
    act_mul    out = act(gate) * up
    add        x = x + multiplier * y
    logits     softcap(h W^T * multiplier) for the rows whose logits are wanted

`build_program` writes the plain ops; `fusion.fuse` joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm.model.config import ModelConfig
from edgellm.model.rope import Rope


@dataclass(frozen=True)
class Op:
    """One step of the program.

    Attributes:
        kind: one of those above.
        inputs, outputs: buffer names, in the order of the formulas above.
        weights: names of the weights it reads, see `WeightSpec`.
        layer: decoder layer, the cache's layer too; None outside of the layers.
        attributes: numbers of the formula.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    layer: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightSpec:
    """A weight the program reads.

    Attributes:
        kind: "linear" (y = x W^T + b; may be quantized), "embedding" or "vector".
        shape: (out_features, in_features), (vocab_size, hidden_size) or (size,).
        bias: whether a linear must have a bias; one that the file has anyway is added too.
    """

    kind: str
    shape: tuple[int, ...]
    bias: bool = False


@dataclass(frozen=True)
class Program:
    """The ops, the width of every buffer and the weights by name (`layers.0.self_attn.q_proj`, `norm` ...).

    `result` is the buffer that a step gives: the logits, or of a program cut out of another its last buffer.
    """

    config: ModelConfig
    ops: tuple[Op, ...]
    buffers: Mapping[str, int]
    weights: Mapping[str, WeightSpec]
    result: str = "logits"

    @property
    def parameters(self) -> int:
        """Numbers in all weights; a tied lm_head counts once, biases count where they must be there."""
        total = 0
        for name, spec in self.weights.items():
            if name == "lm_head" and self.config.tie_word_embeddings:
                continue
            size = spec.shape[0] * (spec.shape[1] if len(spec.shape) > 1 else 1)
            total += size + (spec.shape[0] if spec.bias else 0)
        return total

    def table(self) -> str:
        """The program for people: one line an op, equal layers folded into the first of them."""
        lines = [f"{len(self.ops)} ops; buffers: " + ", ".join(f"{n}[{w}]" for n, w in self.buffers.items())]
        bodies: dict[int, list[str]] = {}
        order: list[int | str] = []
        for op in self.ops:
            if op.layer is None:
                order.append(_line(op))
            else:
                if op.layer not in bodies:
                    order.append(op.layer)
                bodies.setdefault(op.layer, []).append(_line(op))
        shown: dict[tuple[str, ...], list[int]] = {}
        for layer, body in bodies.items():
            shown.setdefault(tuple(body), []).append(layer)
        for entry in order:
            if isinstance(entry, str):
                lines.append(entry)
                continue
            same = shown[tuple(bodies[entry])]
            if same[0] == entry:
                lines.append(f"layers {_ranges(same)}:")
                lines.extend("  " + line for line in bodies[entry])
        return "\n".join(lines)


def _line(op: Op) -> str:
    weights = ", ".join(name.split(".", 2)[2] if op.layer is not None else name for name in op.weights)
    facts = " ".join(f"{key}={_shown(value)}" for key, value in op.attributes.items() if value is not None)
    reads = ", ".join(op.inputs) + (f" | {weights}" if weights else "")
    return f"{op.kind:<9} {', '.join(op.outputs) or '-':<12} <- {reads}" + (f"   {facts}" if facts else "")


def _shown(value: Any) -> str:
    if isinstance(value, Rope):
        return f"{value.rope_type}({value.theta:g})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ranges(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def build_program(config: ModelConfig) -> Program:
    """The plain program of a model, one op a formula."""
    return _Builder(config).build()


class _Builder:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.ops: list[Op] = []
        self.weights: dict[str, WeightSpec] = {}
        self.layer: int | None = None
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.buffers = {
            "x": config.hidden_size,
            "h": config.hidden_size,
            "q": q_size,
            "k": kv_size,
            "v": kv_size,
            "a": q_size,
            "y": config.hidden_size,
            "gate": config.intermediate_size,
            "up": config.intermediate_size,
            "m": config.intermediate_size,
        }

    def build(self) -> Program:
        config = self.config
        table = (config.vocab_size, config.hidden_size)
        self._weight("embed_tokens", WeightSpec("embedding", table))
        self._op("embed", ("token_ids",), ("x",), ("embed_tokens",), multiplier=config.embedding_multiplier)
        for layer in range(config.num_hidden_layers):
            self.layer = layer
            self._branch(self._attention, "input_layernorm", "attention_output_layernorm")
            self._branch(self._mlp, "post_attention_layernorm", "mlp_output_layernorm")
        self.layer = None
        self._norm("x", "h", "norm")
        self._weight("lm_head", WeightSpec("linear", table))
        self._op(
            "logits",
            ("h",),
            ("logits",),
            ("lm_head",),
            multiplier=config.logits_multiplier,
            softcap=config.final_logit_softcapping,
        )
        return Program(config, tuple(self.ops), self.buffers, self.weights)

    def _op(self, kind: str, inputs: tuple, outputs: tuple, weights: tuple = (), **attributes: Any) -> None:
        self.ops.append(Op(kind, inputs, outputs, weights, self.layer, attributes))

    def _weight(self, name: str, spec: WeightSpec) -> str:
        full = name if self.layer is None else f"layers.{self.layer}.{name}"
        self.weights[full] = spec
        return full

    def _norm(self, source: str, target: str, name: str, size: int | None = None, group: int | None = None) -> None:
        weight = self._weight(name, WeightSpec("vector", (size or self.buffers[source],)))
        attributes = {"eps": self.config.rms_norm_eps, "offset": self.config.norm_offset}
        if group:
            attributes["group"] = group
        self._op("rms_norm", (source,), (target,), (weight,), **attributes)

    def _linear(self, source: str, target: str, name: str, bias: bool) -> None:
        weight = self._weight(name, WeightSpec("linear", (self.buffers[target], self.buffers[source]), bias))
        self._op("linear", (source,), (target,), (weight,))

    def _branch(self, body: Any, pre_norm: str, post_norm: str) -> None:
        """x = x + multiplier * post_norm(body(pre_norm(x))), each norm where the architecture has it."""
        source = "x"
        if self.config.pre_norms:
            self._norm("x", "h", pre_norm)
            source = "h"
        body(source)
        if self.config.post_norms:
            self._norm("y", "y", post_norm)
        self._op("add", ("x", "y"), ("x",), multiplier=self.config.residual_multiplier)

    def _attention(self, source: str) -> None:
        config, layer = self.config, self.layer
        for target in ("q", "k", "v"):
            self._linear(source, target, f"self_attn.{target}_proj", config.qkv_bias)
        if config.qk_norm is not None:
            per_head = config.qk_norm == "head"
            for buffer in ("q", "k"):
                size = config.head_dim if per_head else self.buffers[buffer]
                self._norm(buffer, buffer, f"self_attn.{buffer}_norm", size, config.head_dim if per_head else None)
        rope = config.layer_ropes[layer]
        self._op("store_kv", ("k", "v"), ())
        if rope is not None:
            self._op("rope", ("q",), ("q",), rope=rope, head_dim=config.head_dim)
        self._op(
            "attention",
            ("q",),
            ("a",),
            scale=config.attention_scale,
            window=config.layer_windows[layer],
            softcap=config.attn_logit_softcapping,
            rope=rope,
        )
        self._linear("a", "y", "self_attn.o_proj", config.o_bias)

    def _mlp(self, source: str) -> None:
        bias = self.config.mlp_bias
        gate, up, inner = (self._mlp_buffer(name) for name in ("gate", "up", "m"))
        self._linear(source, gate, "mlp.gate_proj", bias)
        self._linear(source, up, "mlp.up_proj", bias)
        self._op("act_mul", (gate, up), (inner,), act=self.config.hidden_act)
        self._linear(inner, "y", "mlp.down_proj", bias)

    def _mlp_buffer(self, name: str) -> str:
        """A buffer as wide as this layer's MLP: `gate`, or `gate.96` in a layer narrower than the widest."""
        width = self.config.mlp_width(self.layer)
        if width != self.config.intermediate_size:
            name = f"{name}.{width}"
            self.buffers[name] = width
        return name
