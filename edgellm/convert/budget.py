"""How a conversion keeps to a limit of memory: what the worst moment takes, and what is left for activations."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.convert.job import Job
from edgellm.convert.rows import product_threads
from edgellm.convert.units import Unit
from edgellm.errors import OutOfMemoryError
from edgellm.formats.dtypes import NUMPY_DTYPES

#: Interpreter, libraries and compiled kernels, where nobody measured them.
PROCESS_BYTES = 240 << 20
#: Rows of a forward step: what is taken where memory allows, and the least.
_STEP_TOKENS, _LEAST_STEP = 2048, 256
#: Rows of a step that keep one thread busy.
_THREAD_TOKENS = 512
#: Rows of float32 that a Hessian takes beside its sums: tokens that wait, and panels.
_HESSIAN_ROWS = 4096
#: Buffers as wide as a block's widest that a step holds at once: gate, up, their product and what it is made of.
_WIDE_BUFFERS = 6


@dataclass(frozen=True)
class Budget:
    """Memory of a conversion, in bytes.

    Attributes:
        fixed_bytes: what is held at the worst moment, activations that may go to a file left out.
        activation_bytes: of one kind of activations that may be held in memory; above this they go to a file.
        step_tokens: rows of a forward step.
        largest: what the worst moment is, for people.
        spilled_bytes: of activations that a file holds at a time, hidden states included.
    """

    fixed_bytes: int = 0
    activation_bytes: int = 1 << 60
    step_tokens: int = _STEP_TOKENS
    largest: str = ""
    spilled_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """What the process holds at its peak."""
        return self.fixed_bytes + self.activation_bytes


def plan(job: Job, tokens: int, limit: int | None, process_bytes: int = PROCESS_BYTES) -> Budget:
    """The budget of a job over so many calibration tokens.

    Args:
        limit: bytes the process may hold; None for no limit.
        process_bytes: held already.

    Raises:
        OutOfMemoryError: not even the smallest steps fit into `limit`.
    """
    widest = max((unit.in_features for unit in job.units if unit.layer is not None), default=1)
    hidden = 4 * tokens * job.opened.config.hidden_size
    wanted = 4 * tokens * widest
    step = max(_STEP_TOKENS, _THREAD_TOKENS * product_threads())
    while step >= _LEAST_STEP:
        parts = _moments(job, step, tokens)
        largest = max(parts, key=lambda name: parts[name])
        fixed = process_bytes + parts[largest]
        room = wanted if limit is None else min(limit - fixed, wanted)
        if room >= 0:
            spilled = 0 if job.recipe.method == "rtn" else 2 * hidden + (wanted if room < wanted else 0)
            activations = 0 if job.recipe.method == "rtn" else room if room >= wanted else 0
            return Budget(fixed, activations, step, largest, spilled)
        step //= 2
    raise OutOfMemoryError(
        f"the conversion needs {fixed:,} bytes ({largest})",
        key="max_ram",
        found=f"{limit:,}",
        hint="Allow more memory, or take --method rtn, which needs one linear at a time.",
    )


def _moments(job: Job, step: int, tokens: int) -> dict[str, int]:
    """Bytes held at each moment that could be the worst one."""
    checkpoint = job.opened.checkpoint
    tensors = (
        checkpoint.info(name).nbytes for piece in job.pieces for name in piece.copied if name in checkpoint.tensors
    )
    moments = {"copying the largest tensor": max(tensors, default=0)}
    for piece in job.pieces:
        codes = sum(unit.size for unit in piece.units)
        for unit in piece.units:
            moments[f"rounding {unit.leaf}"] = _reading(job, unit) + 2 * unit.size
            if job.recipe.method == "rtn":
                continue
            square = unit.in_features**2
            held = codes + _reading(job, unit) + 9 * unit.size  # the weight, its working copy, codes
            if job.recipe.method == "gptq":
                moments[f"the Hessian of {unit.leaf} and its factor"] = codes + 16 * square
                moments[f"quantizing {unit.leaf}"] = held + 8 * square
                summing = 4 * _HESSIAN_ROWS * unit.in_features
                moments[f"calibrating {unit.leaf}"] = codes + 8 * square + summing + _stepping(job, piece.units, step)
            else:
                moments[f"searching scales of {unit.leaf}"] = held + 8 * unit.size
                moments["a block's forward pass"] = codes + 4 * codes + _stepping(job, piece.units, step)
    if job.recipe.method != "rtn":
        table = job.opened.weights.file_name("embed_tokens") + ".weight"
        moments["embedding"] = checkpoint.info(table).nbytes + 4 * min(tokens, step * 8) * job.opened.config.hidden_size
    return moments


def _reading(job: Job, unit: Unit) -> int:
    """Float32 of a linear and the bytes it is read from; stacked parts are held twice."""
    stored = 4 if job.opened.quantization is not None else NUMPY_DTYPES["F16"].itemsize
    return unit.size * (4 + stored + (4 if len(unit.names) > 1 else 0))


def _stepping(job: Job, units: tuple[Unit, ...], step: int) -> int:
    """Buffers of a forward step, and the float32 weights of the largest stage."""
    config = job.opened.config
    widest = max(max(unit.in_features, *unit.rows) for unit in units)
    stage = max(4 * unit.size for unit in units) * 2
    scores = 3 * 4 * config.num_attention_heads * step * min(job.recipe.sequence_length, config.max_position_embeddings)
    return 4 * step * max(_WIDE_BUFFERS * widest, 10 * config.hidden_size) + stage + scores // 4
