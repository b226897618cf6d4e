"""What a record says of the machine and the build. Nothing in it names the machine or its owner.

Asked once, when a bench begins. What the system does not tell is None; roots of /proc and /sys are arguments, for
tests.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llmrun import __version__
from llmrun.machine import gpus, hardware, packages
from llmrun.machine.device import Device, DeviceKind
from llmrun.machine.proc import text_of

# What changes how llama.cpp computes. By name, for others of that kind hold keys and addresses.
_VARIABLES = re.compile(
    r"OMP_\w+|GOMP_\w+|KMP_\w+|GGML_\w+|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|HIP_VISIBLE_DEVICES|MALLOC_\w+"
)


@dataclass(frozen=True)
class DeviceInfo:
    """Something that llama.cpp can compute on.

    Attributes:
        name: as `--device` takes it: "CPU", "CUDA0", "RPC0".
        kind: as ggml has it.
        description: the product's name.
        backend: "CPU", "CUDA", "RPC" (whose address is left out).
        total_bytes, free_bytes: of its memory, when the bench began.
    """

    name: str
    kind: DeviceKind
    description: str
    backend: str
    total_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True)
class GpuInfo:
    """A GPU that the system shows, whether or not llama.cpp can use it.

    Attributes:
        vendor: "NVIDIA", "AMD", "Intel", "Apple".
        name: of the product.
        driver: its version.
    """

    vendor: str
    name: str | None = None
    driver: str | None = None


@dataclass(frozen=True)
class MachineInfo:
    """Where it was measured. Nothing in it names the machine or its owner.

    Attributes:
        cpu: the product's name.
        architecture: of the CPU: "x86_64", "arm64".
        physical_cores, logical_cores: of the machine.
        usable_cpus: logical CPUs that the process was allowed to run on.
        cpu_quota: CPUs' worth of time that the container grants; null: no limit.
        default_threads: what llmrun takes without `-t`.
        numa_nodes: of memory.
        ram_bytes: that the machine has.
        available_bytes: of it, what could be taken without swapping when the bench began.
        container_limit_bytes: memory that the container may use; null: no limit.
        virtual: whether this is a virtual machine.
        os: "Debian GNU/Linux 12 (bookworm)", "macOS 15.1".
        kernel: its release.
        governor: how the kernel chooses the CPU's frequency.
        on_battery: most machines compute slower then.
        huge_pages: the kernel's choice for transparent huge pages: "always", "madvise", "never".
        environment: variables that change how llama.cpp computes (OMP_…, GGML_…, CUDA_VISIBLE_DEVICES).
        devices: in ggml's order.
        gpus: that the system shows.
    """

    cpu: str | None = None
    architecture: str | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    usable_cpus: int | None = None
    cpu_quota: float | None = None
    default_threads: int | None = None
    numa_nodes: int | None = None
    ram_bytes: int | None = None
    available_bytes: int | None = None
    container_limit_bytes: int | None = None
    virtual: bool | None = None
    os: str | None = None
    kernel: str | None = None
    governor: str | None = None
    on_battery: bool | None = None
    huge_pages: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[DeviceInfo, ...] = ()
    gpus: tuple[GpuInfo, ...] = ()

    @property
    def backends(self) -> str:
        """As llama-bench's column has it: all but the CPU's, RPC last; "CPU" where there are no others."""
        names = [device.backend for device in self.devices if device.backend != "CPU"]
        names = list(dict.fromkeys(name for name in names if name != "RPC")) + ["RPC"] * ("RPC" in names)
        return ",".join(names) or "CPU"


@dataclass(frozen=True)
class BuildInfo:
    """With what it was measured.

    Attributes:
        llmrun, llama_cpp_python, ggml, python: versions.
        ggml_commit: what ggml says it was built from.
        system_info: the CPU features and options that llama.cpp was built with, in its own words.
    """

    llmrun: str | None = None
    llama_cpp_python: str | None = None
    ggml: str | None = None
    ggml_commit: str | None = None
    system_info: str | None = None
    python: str | None = None


def describe_machine(
    devices: Sequence[Device],
    environ: Mapping[str, str] = os.environ,
    proc: Path = Path("/proc"),
    sys_root: Path = Path("/sys"),
) -> MachineInfo:
    """This machine, with the devices that llama.cpp sees on it (and on its workers)."""
    cpus = hardware.usable_cpus()
    logical = os.cpu_count()
    cpu_info = text_of(proc / "cpuinfo")
    governor = text_of(sys_root / f"devices/system/cpu/cpu{min(cpus)}/cpufreq/scaling_governor").strip()
    nodes = list((sys_root / "devices/system/node").glob("node[0-9]*"))
    driver = gpus.nvidia_driver(proc)
    return MachineInfo(
        cpu=_cpu_name(devices, cpu_info),
        architecture=platform.machine() or None,
        physical_cores=hardware.physical_cores(set(range(logical))) if logical else None,
        logical_cores=logical,
        usable_cpus=len(cpus),
        cpu_quota=hardware.cpu_quota(),
        default_threads=hardware.default_threads(),
        numa_nodes=len(nodes) or None,
        ram_bytes=hardware.physical_memory(),
        available_bytes=hardware.available_memory(),
        container_limit_bytes=hardware.container_limit(),
        virtual=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpu_info, re.MULTILINE)) if "flags" in cpu_info else None,
        os=_os_name(),
        kernel=platform.release() or None,
        governor=governor or None,
        on_battery=hardware.on_battery(sys_root / "class/power_supply"),
        huge_pages=_chosen(text_of(sys_root / "kernel/mm/transparent_hugepage/enabled")),
        environment={name: value for name, value in sorted(environ.items()) if _VARIABLES.fullmatch(name)},
        devices=tuple(_device(device) for device in devices),
        gpus=tuple(
            GpuInfo(gpu.vendor, gpu.name, driver if gpu.vendor == "NVIDIA" else None)
            for gpu in gpus.find_gpus(proc=proc, pci=sys_root / "bus/pci/devices")
        ),
    )


def describe_build(system_info: str | None = None, versions: Mapping[str, str] | None = None) -> BuildInfo:
    """The versions at work; `system_info` and `versions` are what the engine's process says (`devices.Found`)."""
    said = versions or {}
    return BuildInfo(
        llmrun=__version__,
        llama_cpp_python=packages.installed("llama-cpp-python"),
        ggml=said.get("ggml"),
        ggml_commit=said.get("ggml commit"),
        system_info=" | ".join(p.strip() for p in system_info.split("|") if p.strip()) if system_info else None,
        python=platform.python_version(),
    )


def _cpu_name(devices: Sequence[Device], cpu_info: str) -> str | None:
    if found := re.search(r"^model name\s*:\s*(.+)$", cpu_info, re.MULTILINE):
        return found[1].strip()
    return next((device.description for device in devices if device.kind == "cpu"), None)


def _device(device: Device) -> DeviceInfo:
    # Behind an RPC device there is an address, which is nobody's business.
    named = ("RPC", "RPC") if device.backend.startswith("RPC") else (device.description, device.backend)
    return DeviceInfo(device.name, device.kind, *named, device.total_bytes, device.free_bytes)


def _os_name() -> str | None:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    return platform.system() or None


def _chosen(setting: str) -> str | None:
    """ "always [madvise] never" → "madvise"."""
    found = re.search(r"\[(\w+)\]", setting)
    return found[1] if found else None
