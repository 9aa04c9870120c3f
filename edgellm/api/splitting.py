"""How many layers go on the GPU, when a person says a number or leaves it to what the GPU's memory holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.api import memory
from edgellm.backends import find
from edgellm.backends.split import SplitBackend, most_layers
from edgellm.errors import OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from edgellm.backends.interface import Backend

AUTO = "auto"
_GPU, _REST = "cuda", "cpu"


def plan_split(
    plan_for: Callable[[Backend], Any], layers: int, asked: int | str, backend: str | None, device: str | None
) -> Any:
    """The plan with the first `asked` of `layers` decoder layers on the GPU and the rest on the CPU.

    With all of them the lm_head is there too, and with 0 nothing is. "auto" takes as many as fit into what is free.

    Raises:
        UsageError: no such number, or a backend or device is asked for that this cannot be.
        BackendUnavailable: there is no GPU that can be used.
        OutOfMemoryError: "auto", and not one layer fits.
    """
    check_layers(asked, layers)
    if backend not in (None, _GPU) or (device or AUTO).split(":")[0] not in (AUTO, _GPU):
        found = backend if backend not in (None, _GPU) else device
        what, allowed = "layers go on a GPU with backend cuda alone", "--device cuda, cuda:1 ..., and no --backend"
        raise UsageError(what, key="gpu_layers", found=found, allowed=allowed)
    if asked == 0:
        return plan_for(find(_REST))
    gpu, rest = find(_GPU, device), find(_REST)
    if asked == AUTO:
        asked = most_layers(layers, lambda count: count == 0 or _fits(plan_for(_placed(gpu, rest, count, layers))))
        if asked == 0:
            what, hint = "the GPU's free memory does not hold a single layer", "Lower context, or leave out gpu_layers."
            raise OutOfMemoryError(what, key="gpu_layers", found=AUTO, hint=hint)
    return plan_for(_placed(gpu, rest, int(asked), layers))


def check_layers(asked: int | str, layers: int) -> None:
    """Raises `UsageError` where `asked` is neither "auto" nor a number of layers."""
    known = isinstance(asked, int) and not isinstance(asked, bool) and 0 <= asked <= layers
    if asked != AUTO and not known:
        allowed = f"{AUTO}, or 0 to {layers}, the layers of the model"
        raise UsageError("not a number of layers", key="gpu_layers", found=repr(asked), allowed=allowed)


def _placed(gpu: Backend, rest: Backend, count: int, layers: int) -> Backend:
    if count == layers:
        return gpu
    return rest if count == 0 else SplitBackend(gpu, rest, count)


def _fits(plan: Any) -> bool:
    there = plan.memory.on_device
    return there is None or there.peak <= there.available - memory.reserve_bytes(there.available)
