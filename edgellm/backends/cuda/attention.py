"""Launches of attention and of what stands before it: head norms, rotations, the rows that enter the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.cache import CachePlaces
from edgellm.backends.cuda.calls import Call
from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.kernels.cache_layout import MAX_HEAD_DIM
from edgellm.backends.cuda.kernels.partials import STATS, PrefillKernel, decode_kernel, decode_splits, prefill_kernel
from edgellm.backends.cuda.kernels.record import MAX_BATCH
from edgellm.backends.cuda.memory import Pool
from edgellm.backends.cuda.space import Space
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.cuda.upload import DeviceWeights
from edgellm.backends.slots import CacheGeometry
from edgellm.errors import BackendUnavailable
from edgellm.model.config import ModelConfig
from edgellm.model.program import Op, Program
from edgellm.model.rope import Rope

_HEAD_WARPS = 4
_FLOAT_BYTES = 4


def check_heads(program: Program) -> None:
    """Raises `BackendUnavailable` for heads wider than the kernels take."""
    found = program.config.head_dim
    if found > MAX_HEAD_DIM:
        what, hint = "the CUDA backend has no attention for such heads", "Take backend cpu for this model."
        raise BackendUnavailable(what, key="head_dim", found=found, allowed=f"up to {MAX_HEAD_DIM}", hint=hint)


def decode_kernel_of(config: ModelConfig, dtype: str) -> tuple[str, int]:
    """The decode kernel for a model's heads, and how many blocks the query heads of a KV head take."""
    group = config.num_attention_heads // config.num_key_value_heads
    return decode_kernel(dtype, config.head_dim, group)


def prefill_kernel_of(config: ModelConfig, dtype: str, capability: int) -> PrefillKernel | None:
    """The kernel for prompts; None where prompts go through the decode kernel, `MAX_BATCH` tokens at a time."""
    group = config.num_attention_heads // config.num_key_value_heads
    return prefill_kernel(dtype, config.head_dim, group, capability)


class AttentionScratch:
    """Partial results of split attention, for steps of up to `MAX_BATCH` rows.

    Attributes:
        sums, stats, counters: addresses, see `kernels/partials.py`.
        splits: of each layer, by the rows it holds.
    """

    def __init__(self, device: Device, stream: Stream, config: ModelConfig, geometry: CacheGeometry) -> None:
        self.splits, sizes = _plan_scratch(device, config, geometry)
        self._pool = Pool(device, "attention's scratch")
        self.sums, self.stats, self.counters = (self._pool.allocate(nbytes) for nbytes in sizes)
        with device:
            stream.fill(self.counters, sizes[-1])
            stream.wait()


def scratch_nbytes(device: Device, config: ModelConfig, geometry: CacheGeometry) -> int:
    """Bytes that an `AttentionScratch` takes, but for the rest of the last block."""
    return sum(_plan_scratch(device, config, geometry)[1])


def _plan_scratch(
    device: Device, config: ModelConfig, geometry: CacheGeometry
) -> tuple[dict[int, int], tuple[int, int, int]]:
    """Splits by the rows of a layer, and the bytes of sums, stats and counters."""
    blocks = config.num_key_value_heads * decode_kernel_of(config, geometry.dtype)[1]
    kinds = {geometry.rows(layer) for layer in range(len(geometry.windows))}
    splits = {kind: decode_splits(kind, blocks, device.properties.multiprocessors) for kind in kinds}
    places = MAX_BATCH * config.num_attention_heads * max(splits.values(), default=1)
    return splits, (
        _FLOAT_BYTES * places * config.head_dim,
        _FLOAT_BYTES * places * STATS,
        _FLOAT_BYTES * MAX_BATCH * blocks,
    )


@dataclass(frozen=True)
class Taken:
    """A launch that does the work of `ops` ops."""

    call: Call
    ops: int


class Attention:
    """Launches of one kind of step. `rows` and `decode` are those of a `StepShape`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DeviceWeights,
        space: Space,
        cache: CachePlaces,
        scratch: AttentionScratch,
        rows: int,
        decode: bool,
        capability: int,
    ) -> None:
        self._config, self._weights, self._space = config, weights, space
        self._cache, self._scratch = cache, scratch
        self._rows, self._decode = rows, decode
        self._prefill = prefill_kernel_of(config, cache.geometry.dtype, capability)

    def fused(self, ops: tuple[Op, ...], index: int) -> Taken | None:
        """Head norms, rotation, store and attention from op `index` on as one launch of a decode step, where they
        stand one behind the other."""
        norms: dict[str, Op] = {}
        at = index
        while ops[at].kind == "rms_norm" and "group" in ops[at].attributes and ops[at].inputs == ops[at].outputs:
            norms[ops[at].inputs[0]] = ops[at]
            at += 1
        store = ops[at]
        turn = ops[at + 1] if ops[at + 1].kind == "rope" else None
        attend = ops[at + 1 if turn is None else at + 2]
        if not self._decode or store.kind != "store_kv" or attend.kind != "attention":
            return None
        q, (k, v) = attend.inputs[0], store.inputs
        if norms and norms.keys() != {q, k}:
            return None
        rope = self._config.layer_ropes[store.layer]
        if (None if turn is None else turn.attributes["rope"]) != rope:
            return None
        call = self._attend(attend, index, fused=True, k=k, v=v, norms=(norms.get(q), norms.get(k)), rope=rope)
        return Taken(call, at - index + (2 if turn is None else 3))

    def store(self, op: Op, index: int) -> Call:
        """Keys, turned by their numbers, and values enter the cache."""
        k, v = (self._space.buffers[name] for name in op.inputs)
        heads = self._config.num_key_value_heads
        arguments = {
            **self._layer(op.layer),
            **self._turns(self._config.layer_ropes[op.layer]),
            "k": k.address,
            "v": v.address,
            "weight": 0,
            "record": self._space.record,
            "stride": k.stride,
            "kv_heads": heads,
            "head_dim": self._config.head_dim,
            "step": int(self._decode),
            **_norm_numbers(None),
        }
        name = f"store_kv_{self._cache.geometry.dtype}"
        return Call(name, (-(-heads // _HEAD_WARPS), self._rows), arguments, index)

    def rope(self, op: Op, index: int) -> Call:
        """Queries turned to their positions, in place, and to their numbers, beside."""
        x, heads = self._space.buffers[op.inputs[0]], self._config.num_attention_heads
        arguments = {
            **self._turns(op.attributes["rope"]),
            "x": x.address,
            "positioned": x.address,
            "numbered": self._space.numbered.address,
            "weight": 0,
            "record": self._space.record,
            "stride": x.stride,
            "target_stride": x.stride,
            "heads": heads,
            "head_dim": self._config.head_dim,
            "step": int(self._decode),
            **_norm_numbers(None),
        }
        return Call("rope", (-(-heads // _HEAD_WARPS), self._rows), arguments, index)

    def attend(self, op: Op, index: int) -> list[Call]:
        """Attention over what is in the cache, this step's tokens included."""
        config, space = self._config, self._space
        kernel = self._prefill
        if self._rows <= MAX_BATCH or kernel is None:
            return [self._attend(op, index, fused=False, rope=None)]
        q, out = space.buffers[op.inputs[0]], space.buffers[op.outputs[0]]
        arguments = {
            **self._layer(op.layer),
            "q": q.address,
            "numbered": space.numbered.address if op.attributes["rope"] is not None else q.address,
            "record": space.record,
            "out": out.address,
            "q_stride": q.stride,
            "out_stride": out.stride,
            "kv_heads": config.num_key_value_heads,
            "group": config.num_attention_heads // config.num_key_value_heads,
            "head_dim": config.head_dim,
            "window": op.attributes["window"] or 0,
            "scale": op.attributes["scale"],
            "softcap": op.attributes["softcap"] or 0.0,
        }
        grid = (-(-self._rows // kernel.tokens), config.num_key_value_heads * kernel.parts)
        return [Call(kernel.name, grid, arguments, index)]

    def _attend(
        self,
        op: Op,
        index: int,
        *,
        fused: bool,
        rope: Rope | None,
        k: str | None = None,
        v: str | None = None,
        norms: tuple[Op | None, Op | None] = (None, None),
    ) -> Call:
        config, cache, space = self._config, self._cache, self._space
        (kernel, tiles), layer = decode_kernel_of(config, cache.geometry.dtype), cache.layers[op.layer]
        q, out = space.buffers[op.inputs[0]], space.buffers[op.outputs[0]]
        key = space.buffers[k] if k is not None else q
        value = space.buffers[v] if v is not None else q
        splits = self._scratch.splits[layer.rows]
        turned = op.attributes["rope"] is not None
        arguments: dict[str, Any] = {
            **self._layer(op.layer),
            **self._turns(rope),
            "q": q.address,
            "numbered": space.numbered.address if turned else q.address,
            "k": key.address,
            "v": value.address,
            "q_weight": self._vector(norms[0]),
            "k_weight": self._vector(norms[1]),
            "record": space.record,
            "sums": self._scratch.sums,
            "stats": self._scratch.stats,
            "counters": self._scratch.counters,
            "out": out.address,
            "q_stride": q.stride,
            "kv_stride": key.stride,
            "out_stride": out.stride,
            "kv_heads": config.num_key_value_heads,
            "group": config.num_attention_heads // config.num_key_value_heads,
            "head_dim": config.head_dim,
            "window": op.attributes["window"] or 0,
            "splits": splits,
            "step": int(self._decode),
            "fused": int(fused),
            "combine": 1,
            "scale": op.attributes["scale"],
            "softcap": op.attributes["softcap"] or 0.0,
            **_norm_numbers(norms[0]),
        }
        return Call(kernel, (splits, config.num_key_value_heads * tiles, self._rows), arguments, index)

    def _layer(self, layer: int) -> dict[str, int]:
        """A layer's arrays, and whether it keeps only its window."""
        place = self._cache.layers[layer]
        return {
            "keys": place.keys,
            "values": place.values,
            "key_scales": place.key_scales,
            "value_scales": place.value_scales,
            "rows": place.rows,
            "ring": int(self._cache.geometry.ring_window(layer) is not None),
        }

    def _turns(self, rope: Rope | None) -> dict[str, int]:
        if rope is None:
            return {"turns": 0, "half": 0}
        return {"turns": self._weights.turns(rope), "half": rope.rotary_dim // 2}

    def _vector(self, norm: Op | None) -> int:
        return 0 if norm is None else self._weights.vectors[norm.weights[0]]


def _norm_numbers(norm: Op | None) -> dict[str, float]:
    if norm is None:
        return {"norm": 0, "eps": 0.0, "offset": 0.0}
    return {"norm": 1, "eps": norm.attributes["eps"], "offset": norm.attributes["offset"]}
