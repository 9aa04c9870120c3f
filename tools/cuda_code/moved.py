"""What a launch of a decode step moves between chip and memory, from shapes alone.

Counted as the emulator counts (`Statistics.touched`): each byte once a launch, whoever reads it how often, since the L2
cache has it from then on. Tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgellm.backends.cuda.calls import Call
from edgellm.backends.cuda.kernels.cache_layout import STORAGE_BYTES, depth_of
from edgellm.backends.cuda.kernels.linear_flags import RESIDUAL
from edgellm.backends.cuda.kernels.partials import SPLIT_KEYS, STATS
from edgellm.backends.cuda.profile import family
from edgellm.backends.cuda.upload import Matrix
from edgellm.backends.slots import CacheGeometry
from edgellm.errors import UsageError

_FLOAT_BYTES = _WORD_BYTES = 4
_TURN_BYTES = 8
_SECTOR = 32


@dataclass(frozen=True)
class Moved:
    """Bytes of a launch.

    Attributes:
        streamed: weights and rows of the cache, which nobody has read before in the step.
        read: activations, norms' weights and the like.
        written: activations, and the rows of the cache that are new.
    """

    streamed: int
    read: int
    written: int


@dataclass(frozen=True)
class Held:
    """What a step finds: matrices by the address of their tiles, the cache, and tokens that each slot keeps."""

    matrices: Mapping[int, Matrix]
    geometry: CacheGeometry
    depth: int


def moved(call: Call, held: Held) -> Moved:
    """Bytes of a launch of a decode step. Raises `UsageError` for a kernel that is not counted here."""
    kind = family(call.kernel)
    if kind not in _COUNTED:
        allowed = ", ".join(_COUNTED)
        raise UsageError("no bytes are counted for a kernel", key="kernel", found=call.kernel, allowed=allowed)
    return _COUNTED[kind](call, held)


def _product(call: Call, held: Held) -> Moved:
    given, layout = call.arguments, held.matrices[call.arguments["tiles"]].layout
    batch, outputs = given["batch"], given["rows"]
    words = batch * layout.inputs
    words += layout.inputs if given["norm"] else 0
    words += layout.inputs if given["order"] else 0
    words += layout.rows if given["bias"] else 0
    words += batch * outputs if given["flags"] & RESIDUAL else 0
    streamed = layout.tiles_bytes + layout.scales_bytes + layout.zeros_bytes
    return Moved(streamed, _FLOAT_BYTES * words, _FLOAT_BYTES * batch * outputs)


def _attention(call: Call, held: Held) -> Moved:
    """With the token's own row, which the launch has from the linears and stores."""
    given, batch = call.arguments, call.grid[2]
    heads, head_dim, window = given["kv_heads"] * given["group"], given["head_dim"], given["window"]
    keys = min(held.depth, window - 1) if window else held.depth
    dtype = held.geometry.dtype
    row = depth_of(head_dim) * STORAGE_BYTES[dtype] + (_FLOAT_BYTES if dtype == "int8" else 0)
    cache = 2 * batch * given["kv_heads"] * row
    span = max(-(-keys // given["splits"]), SPLIT_KEYS)
    active = max(-(-keys // span), 1)
    left = _FLOAT_BYTES * batch * heads * active * (head_dim + STATS) if active > 1 else 0
    queries = _FLOAT_BYTES * batch * heads * head_dim
    own = _FLOAT_BYTES * 2 * batch * given["kv_heads"] * head_dim
    read = queries + own + _TURN_BYTES * given["half"] + _SECTOR * batch + left
    return Moved(cache * keys, read, queries + cache + left)


def _embedding(call: Call, held: Held) -> Moved:
    """A row shares its 16 bytes with the row that is eight below it, and its scales' sectors with seven pairs."""
    layout, tokens = held.matrices[call.arguments["tiles"]].layout, call.grid[1]
    scales = _SECTOR * layout.groups if layout.bits < 16 else 0
    row = 2 * layout.padded_inputs * layout.bits // 8 + scales
    return Moved(tokens * row, _SECTOR * tokens, _FLOAT_BYTES * tokens * layout.inputs)


_COUNTED: dict[str, Callable[[Call, Held], Moved]] = {
    "embed": _embedding,
    "gemv": _product,
    "gemv_dp4a": _product,
    "gemv_fma": _product,
    "attention_decode": _attention,
}
