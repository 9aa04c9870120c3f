"""The interpreter: walks the program, one op after the other, over a dictionary of buffers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.backends.interface import Batch, StepStopped, Stopped, Trace
from edgellm.backends.reference import ops
from edgellm.backends.reference.attention import attend
from edgellm.backends.reference.cache import ReferenceCache
from edgellm.backends.slots import CacheGeometry
from edgellm.errors import UsageError
from edgellm.model.program import Op, Program

Buffers = dict[str, np.ndarray]


class ReferenceRunner:
    """A program with its weights as float32 arrays.

    Args:
        program: plain or fused.
        arrays: by weight name: `[out, in]`, `[vocab_size, hidden_size]` or `[size]`.
        biases: by linear name, where there is one.
    """

    def __init__(self, program: Program, arrays: dict[str, np.ndarray], biases: dict[str, np.ndarray]) -> None:
        self.program = program
        self._arrays = arrays
        self._biases = biases
        distinct = {id(array): array.nbytes for array in [*arrays.values(), *biases.values()]}
        self.weight_nbytes = sum(distinct.values())

    def describe(self) -> Mapping[str, Any]:
        """What runs where."""
        return {
            "backend": "reference",
            "device": "cpu",
            "isa": f"numpy {np.__version__}",
            "threads": "BLAS",
            "weights": "float32",
        }

    def new_cache(self, geometry: CacheGeometry, num_slots: int) -> ReferenceCache:
        """A cache with all slots empty. Raises `OutOfMemoryError`."""
        return ReferenceCache(geometry, num_slots)

    def close(self) -> None:
        """Free the weights."""
        self._arrays.clear()
        self._biases.clear()

    def run(
        self, cache: ReferenceCache, batch: Batch, trace: Trace | None = None, stopped: Stopped | None = None
    ) -> np.ndarray:
        """One step; see `interface.Runner`. Returns logits float32 [R, V]."""
        buffers: Buffers = {}
        step = _Step(self, cache, batch, buffers)
        with np.errstate(all="ignore"):  # NaN and infinity travel to the logits, where the caller judges them
            for index, op in enumerate(self.program.ops):
                if stopped is not None and stopped():
                    raise StepStopped
                step.run(op)
                if trace is not None:
                    trace(index, buffers)
        return buffers[self.program.result]


class _Step:
    """One pass over the ops: the meaning of each kind, in terms of `ops`."""

    def __init__(self, runner: ReferenceRunner, cache: ReferenceCache, batch: Batch, buffers: Buffers) -> None:
        self.arrays, self.biases = runner._arrays, runner._biases
        self.config, self.widths = runner.program.config, runner.program.buffers
        self.cache, self.batch, self.buffers = cache, batch, buffers
        starts = batch.seq_starts
        self.spans = [slice(int(a), int(b)) for a, b in itertools.pairwise(starts)]
        positions = [
            np.arange(state.length, state.length + span.stop - span.start)
            for state, span in zip(batch.states, self.spans, strict=True)
        ]
        self.positions = np.concatenate(positions)  # (T,)

    def run(self, op: Op) -> None:
        getattr(self, op.kind)(op)

    def _heads(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1, self.config.head_dim)

    def inputs(self, op: Op) -> None:
        tokens = len(self.positions)
        for name in op.outputs:
            given, shape = self.batch.inputs.get(name), (tokens, self.widths[name])
            if given is None or given.dtype != np.float32 or given.shape != shape:
                found = "nothing" if given is None else f"{given.dtype} {list(given.shape)}"
                raise UsageError("does not fit the program", key=name, found=found, allowed=f"float32 {list(shape)}")
            self.buffers[name] = given

    def embed(self, op: Op) -> None:
        table = self.arrays[op.weights[0]]
        self.buffers[op.outputs[0]] = ops.embed(table, self.batch.token_ids, op.attributes["multiplier"])

    def rms_norm(self, op: Op) -> None:
        self.buffers[op.outputs[0]] = ops.rms_norm(
            self.buffers[op.inputs[0]],
            self.arrays[op.weights[0]],
            op.attributes["eps"],
            op.attributes["offset"],
            op.attributes.get("group"),
        )

    def linear(self, op: Op) -> None:
        x = self.buffers[op.inputs[0]]
        for output, name in zip(op.outputs, op.weights, strict=True):
            y = ops.linear(x, self.arrays[name], self.biases.get(name))
            if op.attributes.get("add"):
                y = self.buffers[output] + np.float32(op.attributes["multiplier"]) * y
            self.buffers[output] = y

    def rope(self, op: Op) -> None:
        cos, sin = op.attributes["rope"].cos_sin(self.positions)
        x = self.buffers[op.inputs[0]]
        self.buffers[op.outputs[0]] = ops.rope(self._heads(x), cos, sin).reshape(x.shape)

    def store_kv(self, op: Op) -> None:
        keys, values = (self._heads(self.buffers[name]) for name in op.inputs)
        for state, span in zip(self.batch.states, self.spans, strict=True):
            self.cache.write(op.layer, state, keys[span], values[span])

    def attention(self, op: Op) -> None:
        q = self._heads(self.buffers[op.inputs[0]])
        parts = [
            attend(q[span], self.cache, state, op) for state, span in zip(self.batch.states, self.spans, strict=True)
        ]
        self.buffers[op.outputs[0]] = np.concatenate(parts)

    def act_mul(self, op: Op) -> None:
        gate, up = (self.buffers[name] for name in op.inputs)
        self.buffers[op.outputs[0]] = ops.act_mul(gate, up, op.attributes["act"])

    def add(self, op: Op) -> None:
        x, y = (self.buffers[name] for name in op.inputs)
        self.buffers[op.outputs[0]] = x + np.float32(op.attributes["multiplier"]) * y

    def logits(self, op: Op) -> None:
        rows = self.buffers[op.inputs[0]][self.batch.logits_rows]
        raw = ops.linear(rows, self.arrays[op.weights[0]], self.biases.get(op.weights[0]))
        scaled = raw * np.float32(op.attributes["multiplier"])
        self.buffers["logits"] = ops.softcap(scaled, op.attributes["softcap"])
