"""Loading for the CPU backend: weights packed for this processor's vectors, threads that stay."""

from __future__ import annotations

from types import MappingProxyType

from edgellm.backends.cpu.attention_plan import most_partials
from edgellm.backends.cpu.cache import cache_nbytes
from edgellm.backends.cpu.cores import choose_threads, detect
from edgellm.backends.cpu.kept import load_packed
from edgellm.backends.cpu.linear_tiles import padded_columns
from edgellm.backends.cpu.lower import check_ops
from edgellm.backends.cpu.packed_plan import HEAD_BITS, plan_packing
from edgellm.backends.cpu.runner import CpuRunner
from edgellm.backends.cpu.scratch import attention_scratch, partial_width
from edgellm.backends.cpu.team import Team
from edgellm.backends.interface import MemoryPlan, Progress
from edgellm.backends.slots import CACHE_DTYPES, CacheGeometry
from edgellm.errors import UsageError
from edgellm.model.program import Program
from edgellm.model.weights import Weights

_FLOAT_BYTES = 4
#: All kernels read from their cache, and LLVM's own memory; measured: 6 to 10 MB (Linux, llvmlite 0.50).
_CODE_BYTES = 8 << 20
#: Steps of up to so many tokens give activations two planes of 8 bits.
TWO_PLANES_UP_TO = {"auto": 4, "int8": 0, "int16": 1 << 30}


class CpuBackend:
    """See `interface.Backend`."""

    name = "cpu"
    devices = ("cpu",)
    prefill_chunk = 128
    finished = True
    cache_dtypes = tuple(CACHE_DTYPES)
    options = MappingProxyType({"lm_head": tuple(HEAD_BITS), "activations": tuple(TWO_PLANES_UP_TO)})

    def unavailable(self) -> str | None:
        """numba compiles for every processor that it runs on."""
        return None

    def load(
        self,
        program: Program,
        weights: Weights,
        *,
        device: str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        lm_head: str = "int8",
        activations: str = "auto",
    ) -> CpuRunner:
        """Pack every weight or read what was packed before, start the threads and compile what is not compiled yet.

        Args:
            lm_head: how an unquantized lm_head and the embedding are stored: "int8" in groups of 128, "int4" in groups
                of 32 (an embedding that is not the head: "int8"), or "keep" for float16. Of a large one of 8 or 4
                bits a step that only draws a token reads the first bits, and all of the rows that may win
                (`linear_refine.py`); with "int8-whole" and "int4-whole" always all.
            activations: precision of what meets quantized weights: "int8", "int16", or "auto", which is 16 bits in
                steps of a few tokens, where arithmetic is free, and 8 in longer ones.

        Raises:
            BackendUnavailable: the program has an op that this backend does not know, such as `inputs`.
            ModelError: a tensor is damaged.
            OutOfMemoryError: there is no memory for the weights.
            UsageError: an argument out of range.
        """
        for key, value in (("lm_head", lm_head), ("activations", activations)):
            if value not in self.options[key]:
                raise UsageError("no such choice", key=key, found=value, allowed=", ".join(self.options[key]))
        check_ops(program)
        packed = load_packed(program, weights, lm_head, progress, choose_threads(threads, detect())[0])
        planes, precision = TWO_PLANES_UP_TO[activations], {"activations": activations}
        runner = CpuRunner(program, packed, Team(threads), self.prefill_chunk, planes, precision)
        runner.warm_up()
        return runner

    def plan_bytes(
        self,
        program: Program,
        weights: Weights,
        geometry: CacheGeometry,
        num_slots: int,
        *,
        device: str | None = None,
        lm_head: str = "int8",
        activations: str = "auto",
    ) -> MemoryPlan:
        """Bytes held at the peak, from headers alone; the options are those of `load`.

        Raises:
            BackendUnavailable: as `load`.
        """
        check_ops(program)
        packing = plan_packing(program, weights, lm_head)
        config = program.config
        tokens = min(geometry.chunk, geometry.context)
        widest = max(config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
        groups = config.num_attention_heads // config.num_key_value_heads
        work, wide = attention_scratch(config.head_dim, groups)
        buffers = _FLOAT_BYTES * tokens * (sum(program.buffers.values()) + config.hidden_size)
        arranged = 2 * _FLOAT_BYTES * padded_columns(tokens) * widest
        logits = 2 * _FLOAT_BYTES * config.vocab_size * num_slots
        partials = most_partials(geometry, num_slots) * config.num_attention_heads * partial_width(config.head_dim)
        return MemoryPlan(
            weights=packing.nbytes,
            cache=cache_nbytes(geometry, num_slots),
            scratch=buffers + arranged + logits + _FLOAT_BYTES * (partials + 2 * work) + 2 * wide,
            loading=packing.loading_bytes(choose_threads(None, detect())[0]),
            code=_CODE_BYTES,
            lm_head=packing.layouts["lm_head"].stored_name,
            lm_head_bytes=packing.layouts["lm_head"].nbytes,
            notes=("the first run on a machine compiles kernels, which takes up to 350 MB for that time",),
        )
