"""`edgellm.estimate`: the memory a model takes, before it is loaded."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from edgellm.api import memory, planning, side_text

#: Bytes of this process with the runtime and a model's tokenizer in it, by the model's path.
_process: dict[str, int] = {}


@dataclass(frozen=True)
class Estimate:
    """Memory in bytes.

    Attributes:
        process_bytes: measured: this process with the runtime's modules and this model's tokenizer in it.
        code_bytes, weights_bytes, cache_bytes, scratch_bytes, loading_bytes: see `MemoryPlan`.
        peak_bytes: the process at its peak.
        available_bytes: what this process can still allocate, None where the system does not tell.
        fits: `load` will not refuse.
        gpu_weights_bytes, gpu_cache_bytes, gpu_scratch_bytes, gpu_available_bytes: on a GPU with its own memory.
        backend: what would run it.
        gpu_layers: decoder layers on the GPU, where they are split between it and the CPU.
        notes: what a person should know.
        lm_head, lm_head_bytes: what the lm_head will be stored as, "int4", "int8", "float16" ..., and its bytes, which
            `weights_bytes` counts and every token reads.
    """

    process_bytes: int
    code_bytes: int
    weights_bytes: int
    cache_bytes: int
    scratch_bytes: int
    loading_bytes: int
    peak_bytes: int
    available_bytes: int | None
    fits: bool
    notes: tuple[str, ...] = ()
    lm_head: str | None = None
    lm_head_bytes: int = 0
    gpu_weights_bytes: int = 0
    gpu_cache_bytes: int = 0
    gpu_scratch_bytes: int = 0
    gpu_available_bytes: int | None = None
    backend: str = ""
    gpu_layers: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return {**asdict(self), "notes": list(self.notes)}


def estimate(
    path: str | os.PathLike[str] | None = None,
    *,
    context: int | None = None,
    backend: str | None = None,
    device: str | None = None,
    cache_dtype: str | None = None,
    slots: int = 1,
    lm_head: str | None = None,
    activations: str | None = None,
    gpu_layers: int | str | None = None,
    kernels: str | None = None,
) -> Estimate:
    """What `load` with the same arguments will take; reads headers and the tokenizer, no weights.

    Raises:
        InputError, ModelError, UsageError, BackendUnavailable: as `load`.
    """
    with planning.open_path(path) as opened:
        options = {"lm_head": lm_head, "activations": activations, "kernels": kernels}
        chosen = planning.make_plan(
            opened,
            backend=backend,
            device=device,
            context=context,
            cache_dtype=cache_dtype,
            slots=slots,
            gpu_layers=gpu_layers,
            options=options,
        )
        plan, backend_name = chosen.memory, chosen.backend.name
        process = _process.get(opened.path)
        if process is None:
            kept = (_runtime(), side_text.load_text(opened))
            process = _process[opened.path] = memory.resident_bytes()
            del kept
    available, on_device = memory.available_bytes(), plan.on_device
    there = {}
    if on_device is not None:
        there = {f"gpu_{key}_bytes": getattr(on_device, key) for key in ("weights", "cache", "scratch", "available")}
    return Estimate(
        process_bytes=process,
        code_bytes=plan.code,
        weights_bytes=plan.weights,
        cache_bytes=plan.cache,
        scratch_bytes=plan.scratch,
        loading_bytes=plan.loading,
        peak_bytes=process + plan.peak,
        available_bytes=available,
        fits=fits(plan.peak, available) and (on_device is None or fits(on_device.peak, on_device.available)),
        notes=plan.notes,
        lm_head=plan.lm_head,
        lm_head_bytes=plan.lm_head_bytes,
        backend=backend_name,
        gpu_layers=getattr(chosen.backend, "layers", None),
        **there,
    )


def fits(needed: int, available: int | None) -> bool:
    """Whether `needed` bytes leave the reserve; True where nobody knows what is available."""
    return available is None or needed <= available - memory.reserve_bytes(available)


def _runtime() -> Any:
    """The modules that a loaded model needs, imported so that they are measured."""
    from edgellm.api import loading

    return loading
