"""Loading for the reference backend: every weight becomes a float32 array."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from edgellm.backends.interface import MemoryPlan, Progress
from edgellm.backends.reference.runner import ReferenceRunner
from edgellm.backends.slots import CACHE_DTYPES, CacheGeometry
from edgellm.errors import OutOfMemoryError
from edgellm.formats import QuantizedTensor
from edgellm.model.program import Program, WeightSpec
from edgellm.model.weights import Weights


class ReferenceBackend:
    """See `interface.Backend`. numpy's BLAS decides about threads; `threads` changes nothing here."""

    name = "reference"
    devices = ("cpu",)
    prefill_chunk = 128
    finished = True
    options = MappingProxyType({})
    cache_dtypes = tuple(CACHE_DTYPES)

    def unavailable(self) -> str | None:
        """It always can."""
        return None

    def load(
        self,
        program: Program,
        weights: Weights,
        *,
        device: str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> ReferenceRunner:
        """Read and dequantize every weight, one tensor at a time. Raises `ModelError`, `OutOfMemoryError`."""
        arrays: dict[str, np.ndarray] = {}
        biases: dict[str, np.ndarray] = {}
        total = _weights_nbytes(program, weights)
        done = 0
        for name, spec in program.weights.items():
            try:
                array = _read(weights, name, spec, arrays)
            except MemoryError:
                raise OutOfMemoryError(f"no memory for {total:,} bytes of float32 weights", key=name) from None
            arrays[name] = array
            if spec.kind == "linear" and not _is_tied(weights, name):
                bias = weights.bias(name)
                if bias is not None:
                    biases[name] = bias
            done += 0 if _is_tied(weights, name) else array.nbytes
            if progress is not None:
                progress(done, total)
        return ReferenceRunner(program, arrays, biases)

    def plan_bytes(
        self,
        program: Program,
        weights: Weights,
        geometry: CacheGeometry,
        num_slots: int,
        *,
        device: str | None = None,
    ) -> MemoryPlan:
        """Bytes held at the peak, from headers alone."""
        config = program.config
        tokens = min(geometry.chunk, geometry.context)
        kept = max(geometry.rows(layer) for layer in range(len(geometry.windows)))
        buffers = 4 * tokens * sum(program.buffers.values())
        keys = 4 * kept * config.num_key_value_heads * config.head_dim
        scores = 4 * tokens * kept * config.num_attention_heads
        # the chunk's logits are one row a sequence; attention holds keys, turned keys and values, and three
        # score-sized arrays at once (masked, exponentials, and the one being made)
        scratch = buffers + 4 * keys + 3 * scores + 8 * config.vocab_size * num_slots
        return MemoryPlan(
            weights=_weights_nbytes(program, weights),
            cache=geometry.slot_nbytes * num_slots,
            scratch=scratch,
            loading=max(_loading_nbytes(weights, name, spec) for name, spec in program.weights.items()),
            notes=("the reference backend holds every weight as float32",),
        )


def _read(weights: Weights, name: str, spec: WeightSpec, arrays: dict[str, np.ndarray]) -> np.ndarray:
    if spec.kind == "embedding":
        return weights.embedding()
    if spec.kind == "vector":
        return weights.vector(name)
    if _is_tied(weights, name):
        return arrays["embed_tokens"] if "embed_tokens" in arrays else weights.embedding()
    weight = weights.linear(name)
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def _is_tied(weights: Weights, name: str) -> bool:
    return name == "lm_head" and weights.lm_head_is_embedding


def _size(spec: WeightSpec) -> int:
    return int(np.prod(spec.shape, dtype=object))


def _weights_nbytes(program: Program, weights: Weights) -> int:
    return sum(4 * _size(spec) for name, spec in program.weights.items() if not _is_tied(weights, name))


def _loading_nbytes(weights: Weights, name: str, spec: WeightSpec) -> int:
    """Bytes that reading a weight holds for a moment beside the float32 array that stays."""
    if _is_tied(weights, name):
        return 0
    size = _size(spec)
    kind = weights.describe(name)["kind"] if spec.kind == "linear" else weights.stored_dtype(name)
    if kind in ("gptq", "awq", "compressed-tensors"):
        return 4 * size + 3 * size  # the padded float32 copy; words, codes and their transpose
    return 0 if kind == "F32" else 2 * size
