"""What the driver's error codes mean to the person at the machine, and what helps."""

from __future__ import annotations

from typing import NamedTuple

from edgellm.errors import BackendUnavailable

#: Codes that the runtime itself acts on (cuda.h, CUresult).
SUCCESS = 0
OUT_OF_MEMORY = 2
NOT_READY = 600


class Meaning(NamedTuple):
    """What a code says, a sentence's beginning without a full stop, and the fix, a sentence."""

    what: str
    hint: str


class CudaError(BackendUnavailable):
    """The driver refused a call or the device failed.

    Attributes:
        code: the driver's number, 0 where the driver itself is missing.
        name: the driver's name of it, such as CUDA_ERROR_NO_DEVICE.
    """

    def __init__(self, code: int, name: str, call: str, detail: str = "") -> None:
        meaning = MEANINGS.get(code, _UNKNOWN)
        self.code, self.name = code, name
        what = f"{meaning.what} ({call}: {name})" + (f": {detail}" if detail else "")
        super().__init__(what, key="device", hint=meaning.hint)


INSTALL_DRIVER = (
    "Install NVIDIA's driver (Ubuntu: sudo ubuntu-drivers install; Windows: nvidia.com/drivers; a Jetson's comes with "
    "JetPack; a container needs --gpus all), or leave --device out to run on the CPU."
)
_RESTART = "Start the program anew; if it happens again, run `edgellm doctor` and report what it prints."
_UPDATE = "Update NVIDIA's driver (12.x or newer; on a Jetson install a newer JetPack)."
_UNKNOWN = Meaning("the NVIDIA driver reports an error", _RESTART)

MEANINGS: dict[int, Meaning] = {
    1: Meaning("the driver refuses an argument", _RESTART),
    2: Meaning(
        "the GPU's memory is full",
        "Close what else uses the GPU, lower --context, store the cache as int8, or put fewer layers on it "
        "(--gpu-layers).",
    ),
    3: Meaning("the driver is not initialized", _RESTART),
    34: Meaning("a stub of the driver library was loaded, not the driver", "Take the stub out of LD_LIBRARY_PATH."),
    46: Meaning("the GPU is in use by a process that has it for itself", "End that process (nvidia-smi shows it)."),
    100: Meaning("the driver finds no GPU", "See whether nvidia-smi lists one; a container needs --gpus all."),
    101: Meaning("there is no GPU of that number", "`edgellm doctor` lists the GPUs; cuda is the first, cuda:1 ..."),
    200: Meaning("the driver cannot read the kernels", _UPDATE),
    209: Meaning("the kernels were not built for this GPU", "`edgellm doctor` says which GPUs this version serves."),
    214: Meaning("the GPU's memory has an error that could not be corrected", "Restart the machine."),
    218: Meaning("the driver cannot compile the kernels", _UPDATE),
    221: Meaning("the driver's compiler for PTX is missing", "Install the driver anew, its PTX compiler included."),
    222: Meaning("the driver is too old for the kernels", _UPDATE),
    304: Meaning("the operating system refused the driver a call", "See the system's log (dmesg)."),
    500: Meaning("the kernels lack one that is needed", "Install edgellm anew."),
    700: Meaning("a kernel touched memory that is not its own", _RESTART),
    701: Meaning("a kernel needs more than this GPU has", _RESTART),
    702: Meaning("a kernel was stopped by the system's time limit", "Lower --prefill-chunk, or end the desktop."),
    716: Meaning("a kernel touched memory out of its alignment", _RESTART),
    719: Meaning("a kernel failed", _RESTART),
    802: Meaning("the GPU is not ready yet", "Wait until the system's GPU services have started."),
    803: Meaning("driver library and kernel module are of different versions", "Restart the machine."),
    804: Meaning("the CUDA compatibility package does not serve this GPU", "Remove the compat package."),
    999: Meaning("the driver fails for a reason it does not know", "Restart the machine."),
}
