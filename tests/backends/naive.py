"""A decoder of the Llama family in float64 and plain loops over kept keys and values: what an eviction must equal.

It shares nothing with `backends/reference` but the config and the bytes of the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgellm.formats import QuantizedTensor
from edgellm.model import open_model


class NaiveDecoder:
    """Keeps, a layer, a list of (number, position, unturned key, value); numbers never change, positions do."""

    def __init__(self, folder: Path) -> None:
        with open_model(folder) as model:
            self.config = model.config
            self.weights: dict[str, np.ndarray] = {}
            self.biases: dict[str, np.ndarray] = {}
            for name, spec in model.weights.program.weights.items():
                self.weights[name] = self._load(model.weights, name, spec.kind).astype(np.float64)
                if spec.kind == "linear" and not (name == "lm_head" and model.weights.lm_head_is_embedding):
                    bias = model.weights.bias(name)
                    if bias is not None:
                        self.biases[name] = bias.astype(np.float64)
        self.kept: list[list[tuple[int, int, np.ndarray, np.ndarray]]] = [
            [] for _ in range(self.config.num_hidden_layers)
        ]
        self.count = 0
        self.length = 0

    @staticmethod
    def _load(weights, name: str, kind: str) -> np.ndarray:
        if kind == "embedding" or (name == "lm_head" and weights.lm_head_is_embedding):
            return weights.embedding()
        if kind == "vector":
            return weights.vector(name)
        weight = weights.linear(name)
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def evict(self, first: int, last: int) -> None:
        """Forget the tokens at positions first..last-1; those behind move down."""
        gap = last - first
        for layer, entries in enumerate(self.kept):
            stay = [entry for entry in entries if not first <= entry[1] < last]
            self.kept[layer] = [(n, p - gap if p >= last else p, k, v) for n, p, k, v in stay]
        self.length -= gap

    def step(self, token: int, stored: list[tuple[np.ndarray, np.ndarray]] | None = None) -> np.ndarray:
        """Logits float64 [V] after one more token.

        `stored`, a layer the keys and values [N, KvH, Hd] of the kept tokens with this one, replaces its own memory.
        """
        config, x = self.config, self.weights["embed_tokens"][token]
        for layer in range(config.num_hidden_layers):
            at = f"layers.{layer}."
            q, k, v = self._project(at, self._norm(x, at + "input_layernorm"))
            self.kept[layer].append((self.count, self.length, k, v))
            entries = self.kept[layer]
            if stored is not None:
                entries = [
                    (n, p, key.astype(np.float64), value.astype(np.float64))
                    for (n, p, _, _), key, value in zip(entries, *stored[layer], strict=True)
                ]
            x = x + self._linear(at + "self_attn.o_proj", self._attend(layer, q, entries))
            h = self._norm(x, at + "post_attention_layernorm")
            gate = self._linear(at + "mlp.gate_proj", h)
            x = x + self._linear(at + "mlp.down_proj", gate / (1 + np.exp(-gate)) * self._linear(at + "mlp.up_proj", h))
        self.count += 1
        self.length += 1
        return self._linear("lm_head", self._norm(x, "norm"))

    def _project(self, at: str, h: np.ndarray) -> list[np.ndarray]:
        parts = []
        for name in "qkv":
            heads = self._linear(f"{at}self_attn.{name}_proj", h).reshape(-1, self.config.head_dim)
            if self.config.qk_norm == "head" and name != "v":
                heads = np.stack([self._norm(head, f"{at}self_attn.{name}_norm") for head in heads])
            parts.append(heads)
        return parts

    def _attend(self, layer: int, q: np.ndarray, entries: list) -> np.ndarray:
        window = self.config.layer_windows[layer]
        seen = [entry for entry in entries if window is None or entry[0] > self.count - window]
        groups = len(q) // self.config.num_key_value_heads
        out = []
        for head, query in enumerate(q):
            turned = self._turn(layer, query, self.length)
            scores = np.array([turned @ self._turn(layer, k[head // groups], p) for _, p, k, _ in seen])
            scores = np.exp((scores - scores.max()) * self.config.attention_scale)
            out.append((scores / scores.sum()) @ np.array([v[head // groups] for _, _, _, v in seen]))
        return np.concatenate(out)

    def _turn(self, layer: int, head: np.ndarray, position: int) -> np.ndarray:
        frequencies = self.config.layer_ropes[layer].inv_freq()
        pairs = head[: len(frequencies)] + 1j * head[len(frequencies) :]
        pairs = pairs * np.exp(1j * position * frequencies)
        return np.concatenate([pairs.real, pairs.imag])

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.weights[name] @ x + self.biases.get(name, 0.0)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x) + self.config.rms_norm_eps) * self.weights[name]
