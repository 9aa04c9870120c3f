"""A program run forward on whole sequences, keeping what is needed, and in reverse for the gradients.

The interpreter knows no architecture: it walks the ops. In reverse, a buffer's gradient is what the ops behind have
added under its name; an op that writes a buffer takes that gradient and adds those of what it read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.convert.distill.ops import act_mul, add, attention, embed, linear, logits, rms_norm, rope
from edgellm.convert.distill.parameters import BIAS, Parameters
from edgellm.model.program import Op, Program
from edgellm.model.rope import Rope

Arrays = dict[str, np.ndarray]
#: Called with (op, the buffers before it): the inputs of linears are seen here.
Tap = Callable[[Op, Arrays], None]
#: Keys that `store_kv` keeps for `attention`, which names only its queries.
_STORED = ("stored k", "stored v")


@dataclass
class Step:
    """What a reverse needs of one op that was run."""

    op: Op
    saved: Any


class Network:
    """A program over `parameters`.

    Args:
        program: plain or fused.
        parameters: its weights; written to by whoever trains them.
        tokens: T, the length of every sequence.
    """

    def __init__(self, program: Program, parameters: Parameters, tokens: int) -> None:
        self.program = program
        self.parameters = parameters
        self.tokens = tokens
        self.config = program.config
        self._turns: dict[Rope, tuple[np.ndarray, np.ndarray]] = {}
        self.first = tuple(op for op in program.ops if op.kind == "embed")
        self.last = tuple(op for op in program.ops if op.layer is None and op.kind == "rms_norm")
        self.head = next(op for op in program.ops if op.kind == "logits")

    def layer_ops(self, layer: int) -> tuple[Op, ...]:
        """The ops of a decoder layer: x to x."""
        return tuple(op for op in self.program.ops if op.layer == layer)

    @property
    def body(self) -> tuple[Op, ...]:
        """All ops but the logits: token_ids to h."""
        return tuple(op for op in self.program.ops if op is not self.head)

    def forward(
        self, ops: Iterable[Op], buffers: Arrays, tape: list[Step] | None = None, tap: Tap | None = None
    ) -> Arrays:
        """Run `ops` on `buffers`, which are replaced, never written into.

        Args:
            ops: a part of the program without its logits, in order.
            buffers: what they read: `token_ids` int [B * T], or `x` [B * T, hidden_size].
            tape: gets the steps for `backward`; None keeps nothing.
            tap: called before each op.

        Returns:
            `buffers`.
        """
        for op in ops:
            if tap is not None:
                tap(op, buffers)
            saved = getattr(self, f"_{op.kind}")(op, buffers)
            if tape is not None:
                tape.append(Step(op, saved))
        return buffers

    def backward(self, tape: list[Step], grads: Arrays, into: Arrays) -> Arrays:
        """Walk `tape` in reverse, emptying it.

        Args:
            tape: of `forward`.
            grads: gradients of the loss by the buffers as the last op left them; is used up.
            into: arrays that get the gradients of the weights of these names added; other weights are left out.

        Returns:
            `grads`, now of what the first op read.
        """
        while tape:
            step = tape.pop()
            getattr(self, f"_{step.op.kind}_back")(step.op, step.saved, grads, into)
        return grads

    def logits(self, h: np.ndarray) -> np.ndarray:
        """Logits [R, V] of rows `h` [R, hidden_size]."""
        op = self.head
        weight, bias = self.parameters[op.weights[0]], self.parameters.bias(op.weights[0])
        return logits.forward(h, weight, bias, op.attributes["multiplier"], op.attributes["softcap"])

    def logits_back(self, g: np.ndarray, h: np.ndarray, found: np.ndarray, into: Arrays) -> np.ndarray:
        """The gradient of `h` from `g`, that of the logits `found` [R, V] made from it."""
        op = self.head
        name = self.parameters.name(op.weights[0])
        return logits.backward(
            g,
            h,
            found,
            self.parameters[name],
            op.attributes["multiplier"],
            op.attributes["softcap"],
            into.get(name),
            into.get(op.weights[0] + BIAS),
        )

    def _heads(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, self.tokens, x.shape[1] // self.config.head_dim, self.config.head_dim)

    def _cos_sin(self, turn: Rope, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        if turn not in self._turns:
            self._turns[turn] = turn.cos_sin(np.arange(self.tokens))
        cos, sin = self._turns[turn]
        return cos.astype(dtype, copy=False), sin.astype(dtype, copy=False)

    def _embed(self, op: Op, buffers: Arrays) -> np.ndarray:
        ids = buffers["token_ids"]
        buffers[op.outputs[0]] = embed.forward(self.parameters[op.weights[0]], ids, op.attributes["multiplier"])
        return ids

    def _embed_back(self, op: Op, saved: np.ndarray, grads: Arrays, into: Arrays) -> None:
        g = grads.pop(op.outputs[0])
        if op.weights[0] in into:
            embed.backward(g, saved, op.attributes["multiplier"], into[op.weights[0]])

    def _rms_norm(self, op: Op, buffers: Arrays) -> rms_norm.Saved:
        facts = op.attributes
        buffers[op.outputs[0]], saved = rms_norm.forward(
            buffers[op.inputs[0]], self.parameters[op.weights[0]], facts["eps"], facts["offset"], facts.get("group")
        )
        return saved

    def _rms_norm_back(self, op: Op, saved: rms_norm.Saved, grads: Arrays, into: Arrays) -> None:
        weight, g = self.parameters[op.weights[0]], grads.pop(op.outputs[0])
        grad = rms_norm.backward(g, weight, op.attributes["offset"], saved, into.get(op.weights[0]))
        _accumulate(grads, op.inputs[0], grad)

    def _linear(self, op: Op, buffers: Arrays) -> np.ndarray:
        x = buffers[op.inputs[0]]
        for output, name in zip(op.outputs, op.weights, strict=True):
            residual = buffers[output] if op.attributes.get("add") else None
            weight, bias = self.parameters[name], self.parameters.bias(name)
            buffers[output] = linear.forward(x, weight, bias, residual, op.attributes.get("multiplier", 1.0))
        return x

    def _linear_back(self, op: Op, saved: np.ndarray, grads: Arrays, into: Arrays) -> None:
        for output, name in zip(op.outputs, op.weights, strict=True):
            g = grads.pop(output)
            if op.attributes.get("add"):
                _accumulate(grads, output, g)  # the residual's
                if op.attributes["multiplier"] != 1.0:
                    g = g * float(op.attributes["multiplier"])
            grad = linear.backward(g, saved, self.parameters[name], into.get(name), into.get(name + BIAS))
            _accumulate(grads, op.inputs[0], grad)

    def _rope(self, op: Op, buffers: Arrays) -> None:
        x = buffers[op.inputs[0]]
        cos, sin = self._cos_sin(op.attributes["rope"], x.dtype)
        buffers[op.outputs[0]] = rope.forward(self._heads(x), cos, sin).reshape(x.shape)

    def _rope_back(self, op: Op, saved: None, grads: Arrays, into: Arrays) -> None:
        g = grads.pop(op.outputs[0])
        cos, sin = self._cos_sin(op.attributes["rope"], g.dtype)
        _accumulate(grads, op.inputs[0], rope.backward(self._heads(g), cos, sin).reshape(g.shape))

    def _store_kv(self, op: Op, buffers: Arrays) -> None:
        for key, name in zip(_STORED, op.inputs, strict=True):
            buffers[key] = buffers[name]

    def _store_kv_back(self, op: Op, saved: None, grads: Arrays, into: Arrays) -> None:
        for key, name in zip(_STORED, op.inputs, strict=True):
            _accumulate(grads, name, grads.pop(key))

    def _attention(self, op: Op, buffers: Arrays) -> attention.Saved:
        q, k, v = (self._heads(buffers[name]) for name in (op.inputs[0], *_STORED))
        facts = op.attributes
        if facts["rope"] is not None:
            k = rope.forward(k, *self._cos_sin(facts["rope"], k.dtype))
        buffers[op.outputs[0]], saved = attention.forward(q, k, v, facts["scale"], facts["window"], facts["softcap"])
        return saved

    def _attention_back(self, op: Op, saved: attention.Saved, grads: Arrays, into: Arrays) -> None:
        facts, g = op.attributes, grads.pop(op.outputs[0])
        q, k, v = attention.backward(g, saved, facts["scale"], facts["softcap"])
        if facts["rope"] is not None:
            k = rope.backward(k, *self._cos_sin(facts["rope"], k.dtype))
        for name, grad in zip((op.inputs[0], *_STORED), (q, k, v), strict=True):
            _accumulate(grads, name, grad.reshape(len(g), -1))

    def _act_mul(self, op: Op, buffers: Arrays) -> tuple[np.ndarray, np.ndarray]:
        gate, up = (buffers[name] for name in op.inputs)
        buffers[op.outputs[0]] = act_mul.forward(gate, up, op.attributes["act"])
        return gate, up

    def _act_mul_back(self, op: Op, saved: tuple[np.ndarray, np.ndarray], grads: Arrays, into: Arrays) -> None:
        found = act_mul.backward(grads.pop(op.outputs[0]), *saved, op.attributes["act"])
        for name, grad in zip(op.inputs, found, strict=True):
            _accumulate(grads, name, grad)

    def _add(self, op: Op, buffers: Arrays) -> None:
        x, y = (buffers[name] for name in op.inputs)
        buffers[op.outputs[0]] = add.forward(x, y, op.attributes["multiplier"])

    def _add_back(self, op: Op, saved: None, grads: Arrays, into: Arrays) -> None:
        found = add.backward(grads.pop(op.outputs[0]), op.attributes["multiplier"])
        for name, grad in zip(op.inputs, found, strict=True):
            _accumulate(grads, name, grad)


def _accumulate(grads: Arrays, name: str, grad: np.ndarray) -> None:
    """Add to a buffer's gradient; never in place, since one array may be the gradient of two buffers."""
    grads[name] = grads[name] + grad if name in grads else grad


def sequences(token_ids: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Rows of equal length, [B, T], as the `token_ids` buffer: int64 [B * T]."""
    return np.ascontiguousarray(token_ids, np.int64).reshape(-1)
