"""Small machines by name: how much memory they have and how fast they read it, which is how fast they answer."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import UsageError


@dataclass(frozen=True)
class Device:
    """A machine.

    Attributes:
        name: as `--target` takes it.
        memory_gb: of the whole machine, shared by CPU and GPU where there is one; as its maker counts.
        bandwidth_gb_s: peak of its memory.
    """

    name: str
    memory_gb: float
    bandwidth_gb_s: float


#: Figures of the makers: NVIDIA's module data sheets and comparison table ("Jetson Modules"), Raspberry Pi's product
#: briefs (bus width times LPDDR4/4X rate), Apple's technical specifications; laptops are two channels of DDR4-3200
#: (51.2 GB/s) or DDR5-5600 (89.6 GB/s).
DEVICES = (
    Device("jetson-nano-4gb", 4, 25.6),
    Device("jetson-orin-nano-4gb", 4, 51),  # with the "Super" clocks of JetPack 6.1 on; 34 before
    Device("jetson-orin-nano-8gb", 8, 102),  # with the "Super" clocks; 68 before
    Device("jetson-orin-nx-8gb", 8, 102.4),
    Device("jetson-orin-nx-16gb", 16, 102.4),
    Device("jetson-xavier-nx", 8, 59.7),
    Device("jetson-xavier-nx-16gb", 16, 59.7),
    Device("jetson-agx-xavier-32gb", 32, 136.5),
    Device("jetson-agx-orin-32gb", 32, 204.8),
    Device("jetson-agx-orin-64gb", 64, 204.8),
    Device("jetson-thor", 128, 273),  # T5000
    Device("raspberry-pi-4-4gb", 4, 12.8),
    Device("raspberry-pi-4-8gb", 8, 12.8),
    Device("raspberry-pi-5-4gb", 4, 17.1),
    Device("raspberry-pi-5-8gb", 8, 17.1),
    Device("raspberry-pi-5-16gb", 16, 17.1),
    Device("laptop-8gb", 8, 51.2),
    Device("laptop-16gb", 16, 51.2),
    Device("laptop-32gb", 32, 89.6),
    Device("macbook-air-m1-8gb", 8, 68.3),
    Device("macbook-air-m2-16gb", 16, 100),
)


def find_device(name: str) -> Device:
    """The device called `name`. Raises `UsageError`."""
    for device in DEVICES:
        if device.name == name.lower():
            return device
    allowed = ", ".join(device.name for device in DEVICES)
    raise UsageError("no such device", key="target", found=name, hint=f"There are: {allowed}.")
