"""Loading for the CUDA backend: weights packed for the tensor cores in the GPU's memory, kernels from shipped PTX."""

from __future__ import annotations

from types import MappingProxyType

from edgellm.backends.cuda.attention import check_heads, prefill_kernel_of, scratch_nbytes
from edgellm.backends.cuda.cache import cache_nbytes
from edgellm.backends.cuda.calls import Code, KernelSet
from edgellm.backends.cuda.device import Device, count_devices, device_index, open_device
from edgellm.backends.cuda.kernels.cache_layout import STORAGE_BYTES
from edgellm.backends.cuda.kernels.record import MAX_BATCH
from edgellm.backends.cuda.lower import Model
from edgellm.backends.cuda.matrices import HEAD_BITS, STORED_NAMES, plan_matrices
from edgellm.backends.cuda.runner import CudaRunner
from edgellm.backends.cuda.shipped import CODE, INDEX
from edgellm.backends.cuda.space import Space, space_nbytes
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.cuda.upload import DeviceWeights, loading_nbytes, vectors_nbytes
from edgellm.backends.interface import DeviceMemoryPlan, MemoryPlan, Progress
from edgellm.backends.slots import CacheGeometry
from edgellm.errors import BackendUnavailable, EdgeLLMError, UsageError
from edgellm.model.program import Program
from edgellm.model.weights import Weights

#: What the driver keeps in this process beside a context: an estimate, to be measured on a device.
_CODE_BYTES = 200 << 20
#: Ops that are launched.
OPS = ("embed", "inputs", "rms_norm", "linear", "store_kv", "rope", "attention", "act_mul", "add", "logits")


class CudaBackend:
    """See `interface.Backend`. `threads` changes nothing here."""

    name = "cuda"
    devices = ("cuda",)
    prefill_chunk = 512
    finished = False
    cache_dtypes = tuple(STORAGE_BYTES)
    options = MappingProxyType({"lm_head": tuple(HEAD_BITS), "kernels": ("shipped", "jit")})

    def unavailable(self) -> str | None:
        """Why no GPU can be used here, a sentence that says what to install; None where one can."""
        if not (CODE / INDEX).is_file():
            return "its kernels are missing from this installation: install edgellm anew"
        try:
            return None if count_devices() else "the driver finds no GPU: see whether nvidia-smi lists one"
        except EdgeLLMError as error:
            return str(error)

    def load(
        self,
        program: Program,
        weights: Weights,
        *,
        device: str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        lm_head: str = "int8",
        kernels: str = "shipped",
    ) -> CudaRunner:
        """Read, pack and upload every weight, and have the driver compile the kernels.

        Args:
            device: "cuda" or "cuda:N".
            lm_head: how an unquantized lm_head and the embedding are stored: "int8" in groups of 128, "int4" in groups
                of 32 (an embedding that is not the head: "int8"), or "keep" for float16.
            kernels: "shipped", or "jit" to compile them from their sources, which needs numba-cuda.

        Raises:
            BackendUnavailable: there is no such GPU, or the driver or the program is not served.
            ModelError: a tensor is damaged.
            OutOfMemoryError: the GPU has no memory for the model.
            UsageError: an argument out of range.
        """
        _check(program, lm_head)
        gpu = open_device(device_index(device))
        matrices = plan_matrices(program, weights, lm_head)
        known = KernelSet(gpu, _code(kernels))
        held = DeviceWeights(known, program, weights, matrices, progress)
        space = Space(gpu, program, matrices, self._most_rows(program, gpu))
        model = Model(program, held, space, known, gpu.properties)
        return CudaRunner(gpu, Stream(gpu), model, held.describe_head())

    def plan_bytes(
        self,
        program: Program,
        weights: Weights,
        geometry: CacheGeometry,
        num_slots: int,
        *,
        device: str | None = None,
        lm_head: str = "int8",
        kernels: str = "shipped",
    ) -> MemoryPlan:
        """Bytes held at the peak, from headers alone; the options are those of `load`.

        Raises:
            BackendUnavailable: as `load`.
        """
        _check(program, lm_head)
        gpu = open_device(device_index(device))
        matrices = plan_matrices(program, weights, lm_head)
        scratch, pinned = space_nbytes(program, matrices, self._most_rows(program, gpu))
        scratch += scratch_nbytes(gpu, program.config, geometry)
        on_device = DeviceMemoryPlan(
            device=f"cuda:{gpu.properties.index}",
            available=gpu.free_bytes(),
            weights=sum(plan.layout.nbytes for plan in matrices) + vectors_nbytes(program),
            cache=cache_nbytes(geometry, num_slots),
            scratch=scratch,
        )
        head = next((plan for plan in matrices if "lm_head" in plan.names), matrices[0])
        shared = gpu.properties.integrated  # then it is this machine's own memory, and counts there
        return MemoryPlan(
            weights=on_device.weights if shared else 0,
            cache=on_device.cache if shared else 0,
            scratch=pinned + (scratch if shared else 0),
            loading=loading_nbytes(matrices),
            code=_CODE_BYTES,
            lm_head=STORED_NAMES[head.layout.bits],
            lm_head_bytes=head.layout.nbytes,
            on_device=None if shared else on_device,
        )

    def _most_rows(self, program: Program, gpu: Device) -> int:
        """Tokens of a step."""
        prefill = prefill_kernel_of(program.config, self.cache_dtypes[0], gpu.properties.capability)
        return MAX_BATCH if prefill is None else self.prefill_chunk


def _code(kernels: str) -> Code | None:
    """Where kernels come from; None for what the package carries."""
    if kernels == "shipped":
        return None
    if kernels != "jit":
        raise UsageError("no such choice", key="kernels", found=kernels, allowed="shipped, jit")
    from edgellm.backends.cuda.jit import jit_code

    return jit_code()


def _check(program: Program, lm_head: str) -> None:
    """What no GPU can do, said before a weight is read."""
    if lm_head not in HEAD_BITS:
        raise UsageError("no such choice", key="lm_head", found=lm_head, allowed=", ".join(HEAD_BITS))
    unknown = next((op.kind for op in program.ops if op.kind not in OPS), None)
    if unknown is not None:
        hint = "Take the backend reference for this program."
        what, allowed = "the CUDA backend has no such op", ", ".join(OPS)
        raise BackendUnavailable(what, key="op", found=unknown, allowed=allowed, hint=hint)
    check_heads(program)
