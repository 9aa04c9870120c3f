"""Loading for the CPU backend: weights packed for this processor's vectors, threads that stay."""

from __future__ import annotations

from edgellm.backends.cpu.attention import attention_scratch, partial_width
from edgellm.backends.cpu.attention_plan import most_partials
from edgellm.backends.cpu.cache import cache_nbytes
from edgellm.backends.cpu.linear_tiles import padded_columns
from edgellm.backends.cpu.packed import PackedWeights, planned_bytes
from edgellm.backends.cpu.runner import CpuRunner
from edgellm.backends.cpu.team import Team
from edgellm.backends.interface import MemoryPlan, Progress
from edgellm.backends.slots import CacheGeometry
from edgellm.errors import UsageError
from edgellm.model.program import Program, WeightSpec
from edgellm.model.weights import Weights

_FLOAT_BYTES = 4
#: All kernels read from their cache, and LLVM's own memory; measured: 41 MB (Linux, numba 0.68).
_CODE_BYTES = 41 << 20
#: Bits of an unquantized lm_head and the embedding.
HEAD_BITS = {"int8": 8, "keep": 16}
#: Steps of up to so many tokens give activations two planes of 8 bits.
TWO_PLANES_UP_TO = {"int8": 0, "auto": 4, "int16": 1 << 30}


class CpuBackend:
    """See `interface.Backend`."""

    name = "cpu"
    devices = ("cpu",)
    prefill_chunk = 128
    finished = True

    def unavailable(self) -> str | None:
        """numba compiles for every processor that it runs on."""
        return None

    def load(
        self,
        program: Program,
        weights: Weights,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
        lm_head: str = "int8",
        activations: str = "auto",
    ) -> CpuRunner:
        """Read and pack every weight, one tensor at a time, start the threads and compile what is not compiled yet.

        Args:
            lm_head: how an unquantized lm_head and the embedding are stored: "int8", or "keep" for float16.
            activations: precision of what meets quantized weights: "int8", "int16", or "auto", which is 16 bits in
                steps of a few tokens, where arithmetic is free, and 8 in longer ones.

        Raises:
            ModelError: a tensor is damaged.
            OutOfMemoryError: there is no memory for the weights.
            UsageError: an argument out of range.
        """
        for key, value, choices in (("lm_head", lm_head, HEAD_BITS), ("activations", activations, TWO_PLANES_UP_TO)):
            if value not in choices:
                raise UsageError("no such choice", key=key, found=value, allowed=", ".join(choices))
        packed = PackedWeights(program, weights, HEAD_BITS[lm_head], progress)
        runner = CpuRunner(program, packed, Team(threads), self.prefill_chunk, TWO_PLANES_UP_TO[activations])
        runner.warm_up()
        return runner

    def plan_bytes(self, program: Program, weights: Weights, geometry: CacheGeometry, num_slots: int) -> MemoryPlan:
        """Bytes held at the peak, from headers alone."""
        config = program.config
        tokens = min(geometry.chunk, geometry.context)
        widest = max(config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
        groups = config.num_attention_heads // config.num_key_value_heads
        work, wide = attention_scratch(config.head_dim, groups)
        activations = _FLOAT_BYTES * tokens * (sum(program.buffers.values()) + config.hidden_size)
        arranged = 2 * _FLOAT_BYTES * padded_columns(tokens) * widest
        logits = 2 * _FLOAT_BYTES * config.vocab_size * num_slots
        partials = most_partials(geometry, num_slots) * config.num_attention_heads * partial_width(config.head_dim)
        return MemoryPlan(
            weights=planned_bytes(program, weights, HEAD_BITS["int8"]),
            cache=cache_nbytes(geometry, num_slots),
            scratch=activations + arranged + logits + _FLOAT_BYTES * (partials + 2 * work) + 2 * wide,
            loading=max(_loading_bytes(weights, name, spec) for name, spec in program.weights.items()),
            code=_CODE_BYTES,
            notes=("the first run on a machine compiles kernels, which takes up to 350 MB for that time",),
        )


def _loading_bytes(weights: Weights, name: str, spec: WeightSpec) -> int:
    """Bytes that reading and packing a weight holds for a moment beside its place in the arena."""
    size = 1
    for length in spec.shape:
        size *= length
    if spec.kind != "linear" or (name == "lm_head" and weights.lm_head_is_embedding):
        return _FLOAT_BYTES * size
    stored = weights.describe(name)
    if "group_size" in stored:
        return stored["nbytes"] + 2 * size  # words, then codes of a byte and their transpose
    return _FLOAT_BYTES * size + (0 if stored["kind"] == "F32" else 2 * size)
