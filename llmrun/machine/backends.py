"""What a build of llama.cpp needs of the machine that it runs on, or is made on: drivers, libraries, headers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmrun.machine.device import Device
from llmrun.machine.gpus import nvidia_driver, rebuild_command
from llmrun.machine.proc import text_of
from llmrun.text import printable

_MISSING = re.compile(r"\b(lib[\w+-]+\.so[.\d]*): cannot open shared object file")
_WITHOUT_DRIVER = ("-DGGML_CUDA=on", "-DGGML_CUDA_NO_VMM=on")
"""A build so does not ask for the driver's library when it starts."""
# What a library is part of, and what brings it; of the first whose name it begins with.
_PARTS = {
    "libcuda.so": ("NVIDIA's driver", "in a container: docker run --gpus all"),
    "libcudart.so": ("CUDA's runtime", "install the CUDA toolkit, or name its folder in LD_LIBRARY_PATH"),
    "libcublas": ("CUDA's cuBLAS", "install the CUDA toolkit, or name its folder in LD_LIBRARY_PATH"),
    "libvulkan.so": ("Vulkan's loader", "install libvulkan1 (Fedora: vulkan-loader, Arch: vulkan-icd-loader)"),
    "libamdhip": ("AMD's ROCm", "install ROCm, or name its folder in LD_LIBRARY_PATH"),
    "librocblas": ("AMD's ROCm", "install ROCm, or name its folder in LD_LIBRARY_PATH"),
    "libhipblas": ("AMD's ROCm", "install ROCm, or name its folder in LD_LIBRARY_PATH"),
    "libgomp.so": ("GCC's OpenMP", "install libgomp1 (Fedora: libgomp)"),
}
# ggml's backends for GPUs: by the name of their library, what they are called and what chooses among their devices.
_FOR_GPUS = {
    "cuda": ("CUDA", "CUDA_VISIBLE_DEVICES"),
    "hip": ("ROCm", "HIP_VISIBLE_DEVICES"),
    "vulkan": ("Vulkan", "GGML_VK_VISIBLE_DEVICES"),
    "sycl": ("SYCL", "ONEAPI_DEVICE_SELECTOR"),
    "metal": ("Metal", ""),
}


@dataclass(frozen=True)
class MissingLibrary:
    """A shared library that llama.cpp was linked with, and that is not here."""

    name: str

    @property
    def message(self) -> str:
        part = next((part for begin, (part, _) in _PARTS.items() if self.name.startswith(begin)), None)
        return f"llama.cpp does not start without {f'{part} ({self.name})' if part else self.name}, which is not here"

    def remedies(self, clone: Path | None) -> tuple[str, ...]:
        """What brings it, and the build that does without."""
        brings = next((how for begin, (_, how) in _PARTS.items() if self.name.startswith(begin)), None)
        flags = _WITHOUT_DRIVER if self.name.startswith("libcuda.so") else ()
        return (*((brings,) if brings else ()), rebuild_command(*flags, clone=clone))


def missing_library(said: str) -> MissingLibrary | None:
    """The library that the loader did not find, by what it said last; None where it says no such thing."""
    found = _MISSING.findall(said)
    return MissingLibrary(found[-1]) if found else None


def without_devices(built: Iterable[str], devices: Iterable[Device]) -> str | None:
    """Why the CPU computes, with a build that is for GPUs, in a line; None where it has one, or is for none. As
    `why_no_devices`."""
    why = why_no_devices(built, devices)
    return None if why is None else f"{why}: the CPU computes"


def why_no_devices(
    built: Iterable[str],
    devices: Iterable[Device],
    environ: Mapping[str, str] = os.environ,
    proc: Path = Path("/proc"),
    dev: Path = Path("/dev"),
) -> str | None:
    """Why a build for GPUs has none here; None where it has one, or is for none.

    `built`: ggml's backends in the build, by the names of their libraries ("cuda", "rpc").
    """
    theirs = [_FOR_GPUS[name] for name in built if name in _FOR_GPUS]
    local = (device for device in devices if not device.backend.startswith("RPC"))
    if not theirs or any(device.kind in ("gpu", "igpu") for device in local):
        return None
    reasons = []
    for name, chooser in theirs:
        if name == "CUDA" and nvidia_driver(proc) is None and not (dev / "dxg").exists():  # WSL has it there
            reasons.append("NVIDIA's driver is not here")
        else:
            reasons.append(f"{name} finds no GPU")
        if chosen := environ.get(chooser):
            reasons[-1] += f", with {chooser}={printable(chosen, 40)}"
    names = " and ".join(name for name, _ in theirs)
    return f"llama.cpp was built with {names}, and {'; '.join(reasons)}"


def vulkan_headers(include: Path = Path("/usr/include")) -> tuple[int, int, int] | None:
    """The version of Vulkan's headers, (1, 3, 239); None where there are none."""
    text = text_of(include / "vulkan/vulkan_core.h")
    patch = re.search(r"^#define VK_HEADER_VERSION (\d+)", text, re.MULTILINE)
    api = re.search(r"^#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(0, (\d+), (\d+),", text, re.MULTILINE)
    return (int(api[1]), int(api[2]), int(patch[1])) if patch and api else None
