"""Where a step's time goes on the device: a clock on either side of every launch, and what each reads of memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.backends.cuda.calls import Call, KernelSet
from edgellm.backends.cuda.kernels.cache_layout import STORAGE_BYTES, depth_of
from edgellm.backends.cuda.stream import Event, Stream
from edgellm.backends.cuda.upload import DeviceWeights, Matrix
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.program import Program

#: Kernels whose names end in storage and shape.
_SHAPED = re.compile("gemv|gemm|embed|attention|store_kv")


@dataclass(frozen=True)
class LaunchTime:
    """What a launch took.

    Attributes:
        program_op: index in the program of the first op that it does.
        kind: the kernel's family, "gemv", "attention_decode" ...
        layer: decoder layer, None outside of the layers.
        seconds: on the device, the gap before the launch included.
        nbytes: weights and cache that it reads.
    """

    program_op: int
    kind: str
    layer: int | None
    seconds: float
    nbytes: int


def timed(stream: Stream, kernels: KernelSet, calls: Sequence[Call]) -> list[float]:
    """Seconds of each launch. The device's context must be current."""
    launches = kernels.prepare(calls)
    events = [Event(stream.device) for _ in range(len(launches) + 1)]
    events[0].record(stream)
    for launch, event in zip(launches, events[1:], strict=True):
        launch.run(stream)
        event.record(stream)
    stream.wait()
    return [before.seconds_to(after) for before, after in itertools.pairwise(events)]


def launch_times(
    program: Program,
    weights: DeviceWeights,
    geometry: CacheGeometry,
    states: Sequence[SlotState],
    calls: Sequence[Call],
    seconds: Sequence[float],
) -> list[LaunchTime]:
    """The times with what they belong to."""
    by_tiles = {matrix.tiles: matrix for matrix in weights.matrices.values()}
    found = []
    for call, took in zip(calls, seconds, strict=True):
        op = program.ops[call.op]
        nbytes = 0
        if call.kernel.startswith(("gemv", "gemm")):
            nbytes = by_tiles[call.arguments["tiles"]].layout.nbytes
        elif call.kernel.startswith("attention"):
            nbytes = sum(_read_bytes(geometry, op.layer, state) for state in states)
        found.append(LaunchTime(call.op, family(call.kernel), op.layer, took, nbytes))
    return found


def weight_bytes(matrices: dict[str, Matrix]) -> int:
    """Bytes of the matrices that a decode step of one token reads; of an embedding that is not the head, nothing."""
    embedding = None if matrices.get("lm_head") is matrices.get("embed_tokens") else matrices.get("embed_tokens")
    return sum(matrix.layout.nbytes for matrix in set(matrices.values()) - {embedding})


def _read_bytes(geometry: CacheGeometry, layer: int | None, state: SlotState) -> int:
    window = geometry.windows[layer or 0]
    rows = min(state.length + 1, window or state.length + 1)
    scale = 4 if geometry.dtype == "int8" else 0
    row = depth_of(geometry.head_dim) * STORAGE_BYTES[geometry.dtype] + scale
    return 2 * geometry.num_key_value_heads * rows * row


def family(kernel: str) -> str:
    """A kernel's name without storage and shape: gemv_w4g128_b4 is a gemv."""
    return re.sub(r"(_(float16|int8))?(_[a-z]\d\w*)?$", "", kernel) if _SHAPED.match(kernel) else kernel
