"""One attention layer or several, without the rest of a model: random queries, keys and values through the CPU kernels,
through the reference backend, and through float64 arithmetic on what the cache holds."""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.attention import op_attention, op_attention_merge
from edgellm.backends.cpu.attention_plan import most_partials, plan_step, rope_tables, windows_of
from edgellm.backends.cpu.cache import CpuCache
from edgellm.backends.cpu.cache_store import op_store_kv
from edgellm.backends.cpu.rope import op_rope
from edgellm.backends.cpu.scratch import attention_scratch, partial_width, store_scratch
from edgellm.backends.interface import Batch
from edgellm.backends.reference import ops
from edgellm.backends.reference.attention import attend
from edgellm.backends.reference.cache import ReferenceCache
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.program import Op
from edgellm.model.rope import Rope
from tests.backends.cpu.kernels import run_parts

_FILLER = 3.0


class Layers:
    """The attention of every layer of a cache.

    Args:
        geometry: of the cache.
        heads: query heads.
        slots: of the cache.
        rope: None for none.
        softcap: of the scores, None for none.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        heads: int,
        slots: int = 1,
        rope: Rope | None = None,
        softcap: float | None = None,
        seed: int = 0,
    ) -> None:
        self.geometry, self.heads, self.rope, self.softcap = geometry, heads, rope, softcap
        self.scale = geometry.head_dim**-0.5
        self.cache = CpuCache(geometry, slots)
        self.reference = ReferenceCache(geometry, slots)
        self.rng = np.random.default_rng(seed)

    def draw(self, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q [L, T, H, Hd], k and v [L, T, KvH, Hd], float32."""
        geometry = self.geometry
        shapes = [(self.heads,), (geometry.num_key_value_heads,), (geometry.num_key_value_heads,)]
        layers = len(geometry.windows)
        return tuple(self.rng.standard_normal((layers, tokens, *s, geometry.head_dim), np.float32) for s in shapes)

    def run(self, parts: list[tuple[SlotState, int]], drawn: tuple[np.ndarray, ...], nth: int = 1) -> np.ndarray:
        """A step on the CPU kernels: outputs [L, T, H * Hd]. `parts` are (state before, tokens)."""
        geometry, cache, (q, k, v) = self.geometry, self.cache, drawn
        batch = Batch.of([(state, [0] * count, "none") for state, count in parts])
        plan = plan_step(geometry, batch, self.heads // geometry.num_key_value_heads)
        assert plan.partials <= most_partials(geometry, cache.num_slots)
        tables = rope_tables(self.rope, plan)
        windows, tokens, width = windows_of(geometry), q.shape[1], self.heads * geometry.head_dim
        outputs = []
        for layer, window in enumerate(geometry.windows):
            kind = windows.index(window)
            buffers = [x[layer].reshape(tokens, -1) for x in (q, k, v)]
            stride = sum(x.shape[1] for x in buffers) + 1  # one buffer of [q|k|v|filler], as a fused linear leaves it
            act = np.full(tokens * (stride + width + 1), _FILLER, np.float32)
            rows = act[: tokens * stride].reshape(tokens, stride)
            rows[:, :-1] = np.concatenate(buffers, axis=1)
            k_offset, v_offset = buffers[0].shape[1], buffers[0].shape[1] + buffers[1].shape[1]
            self._store(layer, kind, plan, tables, act, (k_offset, stride, v_offset, stride), nth)
            angles = (tables.cos, tables.sin, tables.by_position, tables.half)
            run_parts(op_rope, act, 0, stride, *angles, tokens, self.heads, geometry.head_dim, nth=nth)
            out = (tokens * stride, width + 1)
            self._attend(layer, plan.kinds[kind], plan.tokens, tables, act, (*out, 0, stride), window, nth)
            assert (rows[:, -1] == _FILLER).all()
            found = act[tokens * stride :].reshape(tokens, width + 1)
            assert (found[:, -1] == _FILLER).all()
            outputs.append(found[:, :-1])
        assert cache.data.size == cache.nbytes
        return np.stack(outputs)

    def _store(self, layer, kind, plan, tables, act, places, nth) -> None:
        cache, geometry = self.cache, self.geometry
        floats, nbytes = store_scratch(geometry.head_dim)
        angles = (tables.cos, tables.sin, tables.by_number, tables.half)
        scratch = (np.full(nth * floats, np.nan, np.float32), floats, np.full(nth * nbytes, 255, np.uint8), nbytes)
        where = (cache.data, cache.layout, layer, cache.storage, plan.tokens, kind)
        sizes = (geometry.num_key_value_heads, geometry.head_dim)
        run_parts(op_store_kv, *where, act, *places, *angles, *sizes, *scratch, nth=nth)

    def _attend(self, layer, kind, tokens, tables, act, places, window, nth) -> None:
        cache, geometry, heads = self.cache, self.geometry, self.heads
        floats, nbytes = attention_scratch(geometry.head_dim, heads // geometry.num_key_value_heads)
        scratch = (np.full(nth * floats, np.nan, np.float32), floats, np.full(nth * nbytes, 255, np.uint8), nbytes)
        partials = np.full(max(kind.partials, 1) * heads * partial_width(geometry.head_dim), np.nan, np.float32)
        where = (cache.data, cache.layout, layer, cache.storage, tokens, kind.runs, kind.items, kind.tiles)
        angles = (tables.cos, tables.sin, tables.by_turn, tables.half)
        numbers = (self.scale, self.softcap or 0.0, window or 0, heads, geometry.num_key_value_heads, geometry.head_dim)
        run_parts(op_attention, act, *places, partials, *where, *angles, *numbers, *scratch, nth=nth)
        if len(kind.merges):
            run_parts(op_attention_merge, act, *places[:2], partials, kind.merges, heads, geometry.head_dim, nth=nth)

    def run_reference(self, parts: list[tuple[SlotState, int]], drawn: tuple[np.ndarray, ...]) -> np.ndarray:
        """The same step on the reference: outputs [L, T, H * Hd]."""
        q, k, v = drawn
        outputs = []
        for layer, window in enumerate(self.geometry.windows):
            attributes = {"scale": self.scale, "window": window, "softcap": self.softcap, "rope": self.rope}
            op = Op("attention", (), (), (), layer, attributes)
            start, out = 0, []
            for state, count in parts:
                span = slice(start, start + count)
                self.reference.write(layer, state, k[layer, span], v[layer, span])
                turned = q[layer, span]
                if self.rope is not None:
                    turned = ops.rope(turned, *self.rope.cos_sin(np.arange(state.length, state.length + count)))
                out.append(attend(turned, self.reference, state, op))
                start += count
            outputs.append(np.concatenate(out))
        return np.stack(outputs)

    def run_exactly(self, state: SlotState, count: int, q: np.ndarray, layer: int) -> np.ndarray:
        """float64 attention of one sequence over what the CPU cache holds after the step: [T, H * Hd]."""
        geometry = self.geometry
        after = state.extended(count)
        stored = self.cache.export_slot(after)
        held = after.numbers(oldest=geometry.oldest_held(layer, after))
        keys, values = (self._floats(stored, layer, name) for name in ("keys", "values"))
        new = np.arange(state.end, after.end)
        window = geometry.windows[layer] or after.end + 1
        visible = (held[None] <= new[:, None]) & (held[None] > new[:, None] - window)
        groups = self.heads // geometry.num_key_value_heads
        out = np.zeros((count, self.heads, geometry.head_dim))
        for t, number in enumerate(new):
            for head in range(self.heads):
                k, v = keys[:, head // groups], values[:, head // groups]
                scores = np.where(
                    held < state.sinks if state.evicted else held < 0,
                    k @ self._turned(q[layer, t, head], number - state.evicted),
                    k @ self._turned(q[layer, t, head], number),
                )
                scores = scores * self.scale
                scores = self.softcap * np.tanh(scores / self.softcap) if self.softcap else scores
                scores = np.where(visible[t], scores, -np.inf)
                weights = np.exp(scores - scores.max())
                out[t, head] = weights / weights.sum() @ v
        return out.reshape(count, -1)

    def _floats(self, stored: dict[str, np.ndarray], layer: int, name: str) -> np.ndarray:
        found = stored[f"layers.{layer}.{name}"].astype(np.float64)
        scales = stored.get(f"layers.{layer}.{name}_scales")
        return found if scales is None else found * scales[..., None]

    def _turned(self, head: np.ndarray, angle: int) -> np.ndarray:
        if self.rope is None:
            return head.astype(np.float64)
        angles = angle * self.rope.inv_freq()
        return ops.rope(head[None, None].astype(np.float64), np.cos(angles)[None], np.sin(angles)[None])[0, 0]
