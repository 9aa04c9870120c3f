"""One model on two backends: the first decoder layers on one, the rest on the other, hidden states between them.

Neither backend knows of it: each loads a program that was cut out of the whole (`model/cut.py`) and has a cache of its
own layers. The embedding goes with the first layers, the last norm and the lm_head with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgellm.backends.interface import Backend, Batch, Cache, MemoryPlan, Progress, Runner, Stopped, Trace
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import UsageError
from edgellm.model.cut import cut_ops, layer_span, live_before
from edgellm.model.program import Program
from edgellm.model.weights import Weights

_NO_ROWS = np.zeros(0, np.int32)


class SplitBackend:
    """See `interface.Backend`. `device` and its options go to the first, `threads` to the second.

    Args:
        first, second: the backends.
        layers: decoder layers of the first, at least one and not all.
    """

    finished = True

    def __init__(self, first: Backend, second: Backend, layers: int) -> None:
        self._first, self._second, self.layers = first, second, layers
        self.name = f"{first.name}+{second.name}"
        self.devices = first.devices
        self.prefill_chunk = min(first.prefill_chunk, second.prefill_chunk)
        self.options = {**first.options, **second.options}
        self.cache_dtypes = tuple(dtype for dtype in second.cache_dtypes if dtype in first.cache_dtypes)

    def unavailable(self) -> str | None:
        """What either lacks."""
        return self._first.unavailable() or self._second.unavailable()

    def load(
        self,
        program: Program,
        weights: Weights,
        *,
        device: str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        **options: str,
    ) -> SplitRunner:
        """Load both parts, one after the other. Raises what either raises, and `UsageError` for no such layers."""
        head, tail = cut_in_two(program, self.layers)
        share = self.layers / program.config.num_hidden_layers
        first = self._first.load(
            head,
            weights,
            device=device,
            progress=_part_of(progress, 0.0, share),
            **_known(self._first, options),
        )
        try:
            second = self._second.load(
                tail,
                weights,
                threads=threads,
                progress=_part_of(progress, share, 1.0),
                **_known(self._second, options),
            )
        except BaseException:
            first.close()
            raise
        return SplitRunner(program, first, second, self.layers)

    def plan_bytes(
        self,
        program: Program,
        weights: Weights,
        geometry: CacheGeometry,
        num_slots: int,
        *,
        device: str | None = None,
        **options: str,
    ) -> MemoryPlan:
        """What both hold; they load one after the other."""
        head, tail = cut_in_two(program, self.layers)
        parts = geometries(geometry, self.layers)
        one = self._first.plan_bytes(head, weights, parts[0], num_slots, device=device, **_known(self._first, options))
        two = self._second.plan_bytes(tail, weights, parts[1], num_slots, **_known(self._second, options))
        return MemoryPlan(
            weights=one.weights + two.weights,
            cache=one.cache + two.cache,
            scratch=one.scratch + two.scratch,
            loading=max(one.loading, two.loading),
            code=one.code + two.code,
            lm_head=two.lm_head,
            lm_head_bytes=two.lm_head_bytes,
            notes=(*one.notes, *two.notes),
            on_device=one.on_device,
        )


class SplitRunner:
    """Two runners as one, see `interface.Runner`."""

    def __init__(self, program: Program, first: Runner, second: Runner, layers: int) -> None:
        self.program = program
        self.weight_nbytes = first.weight_nbytes + second.weight_nbytes
        self._first, self._second, self._layers = first, second, layers
        self._cut = len(first.program.ops)
        self._between = first.program.result

    def describe(self) -> Mapping[str, Any]:
        """What runs where; of the two in their order."""
        one, two = self._first.describe(), self._second.describe()
        count = self.program.config.num_hidden_layers
        return {
            **{key: value for key, value in two.items() if key != "work"},
            "backend": f"{one['backend']}+{two['backend']}",
            "device": f"{one['device']} (layers 1 to {self._layers} of {count}) and {two['device']}",
            "isa": f"{one['isa']} and {two['isa']}",
        }

    def new_cache(self, geometry: CacheGeometry, num_slots: int) -> SplitCache:
        """A cache on each. Raises `OutOfMemoryError`."""
        parts = geometries(geometry, self._layers)
        first = self._first.new_cache(parts[0], num_slots)
        return SplitCache(geometry, first, self._second.new_cache(parts[1], num_slots), self._layers)

    def run(
        self, cache: SplitCache, batch: Batch, trace: Trace | None = None, stopped: Stopped | None = None
    ) -> np.ndarray:
        """One step; see `interface.Runner`."""
        hidden = self._first.run(cache.first, replace(batch, logits_rows=_NO_ROWS), trace, stopped)
        behind = replace(batch, inputs={self._between: hidden})
        return self._second.run(cache.second, behind, self._trace_behind(trace), stopped)

    def close(self) -> None:
        """Free both."""
        self._first.close()
        self._second.close()

    def _trace_behind(self, trace: Trace | None) -> Trace | None:
        """The ops of the second part, its `inputs` left out, by their numbers in the whole."""
        if trace is None:
            return None

        def renumbered(index: int, buffers: Mapping[str, np.ndarray]) -> None:
            if index:
                trace(self._cut + index - 1, buffers)

        return renumbered


class SplitCache:
    """Two caches as one, see `interface.Cache`.

    Attributes:
        geometry: of the whole.
        first, second: the parts, layers counted from 0 in each.
    """

    def __init__(self, geometry: CacheGeometry, first: Cache, second: Cache, layers: int) -> None:
        self.geometry, self.first, self.second = geometry, first, second
        self.nbytes = first.nbytes + second.nbytes
        self._layers = layers

    def copy_slot(self, source: SlotState, target: int) -> None:
        """Copy what `source` holds into slot `target`."""
        self.first.copy_slot(source, target)
        self.second.copy_slot(source, target)

    def export_slot(self, state: SlotState) -> dict[str, np.ndarray]:
        """What the slot holds, layers numbered as in the whole."""
        behind = self.second.export_slot(state)
        return {**self.first.export_slot(state), **{_moved(name, self._layers): behind[name] for name in behind}}

    def import_slot(self, state: SlotState, tensors: Mapping[str, np.ndarray]) -> None:
        """Fill slot `state.slot` with what `export_slot` gave. Raises `ModelError` where shapes or dtypes differ."""
        self.first.import_slot(state, tensors)
        behind = {name: tensors[name] for name in tensors if _layer_of(name) >= self._layers}
        self.second.import_slot(state, {_moved(name, -self._layers): behind[name] for name in behind})


def cut_in_two(program: Program, layers: int) -> tuple[Program, Program]:
    """The program up to and with the first `layers` decoder layers, and the rest.

    Raises:
        UsageError: the first part would have no layer or all of them.
    """
    count = program.config.num_hidden_layers
    if not 0 < layers < count:
        raise UsageError("no such split", key="gpu_layers", found=layers, allowed=f"1 to {count - 1} of {count} layers")
    end = layer_span(program, 0, layers)[1]
    (between,) = live_before(program, end)
    return cut_ops(program, 0, end, between), cut_ops(program, end, len(program.ops))


def geometries(geometry: CacheGeometry, layers: int) -> tuple[CacheGeometry, CacheGeometry]:
    """Of the caches of both parts."""
    windows = geometry.windows
    return replace(geometry, windows=windows[:layers]), replace(geometry, windows=windows[layers:])


def most_layers(layers: int, fits: Callable[[int], bool]) -> int:
    """The most decoder layers, of `layers`, for which `fits` holds, which then holds for fewer too."""
    low, high = 0, layers + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _known(backend: Backend, options: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if key in backend.options}


def _part_of(progress: Progress | None, begin: float, end: float) -> Progress | None:
    """Progress of a part that is the share from `begin` to `end` of the whole, in bytes of that part's size."""
    if progress is None:
        return None

    def scaled(done: int, total: int) -> None:
        whole = total / (end - begin)
        progress(int(begin * whole) + done, int(whole))

    return scaled


def _layer_of(name: str) -> int:
    number = name.split(".")[1:2]
    return int(number[0]) if number and number[0].isdecimal() else -1


def _moved(name: str, by: int) -> str:
    """`layers.N.keys` with another number."""
    head, _, rest = name.partition(".")
    number, _, kind = rest.partition(".")
    return f"{head}.{int(number) + by}.{kind}"
