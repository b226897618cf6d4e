"""GPUs that this machine has, whether or not llama.cpp was built to use them, and the command that builds it so.

Reads what the system shows to everybody; asks no driver. Every root can be another folder, for tests.
"""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmrun.machine.proc import line_of, text_of

Vendor = Literal["NVIDIA", "AMD", "Intel", "Apple"]

_VENDORS: dict[str, Vendor] = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
# PCI classes: VGA controller, 3D controller, other display controller. The last two digits are its interface.
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")
_BINDING = "llama-cpp-python"
LEAST_VULKAN = (1, 3, 272)
"""Of Vulkan's headers: llama.cpp sets layers by VK_EXT_layer_settings, which came with these."""
_VULKAN = f"glslc, SPIR-V's headers and Vulkan's {'.'.join(map(str, LEAST_VULKAN))} or newer (Debian 12's are too old)"
# What llama.cpp has to be built with, what that needs, and how llama.cpp names the backends that can use such a GPU.
# Vulkan's one device may be another vendor's: taken for used.
_BUILDS: dict[Vendor, tuple[str, str, set[str]]] = {
    "NVIDIA": ("-DGGML_CUDA=on", "the CUDA toolkit (nvcc)", {"CUDA", "Vulkan"}),
    "AMD": ("-DGGML_HIP=on", f"ROCm; or -DGGML_VULKAN=on and {_VULKAN}", {"ROCm", "HIP", "Vulkan"}),
    "Intel": ("-DGGML_VULKAN=on", _VULKAN, {"SYCL", "Vulkan", "OpenVINO"}),
    "Apple": ("-DGGML_METAL=on", "Xcode's command line tools", {"MTL", "Metal"}),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU that is there.

    Attributes:
        name: None where the system doesn't tell without a driver.
        address: on the PCI bus, "0000:01:00.0"; "" where it is on none.
        open: whether this process is shown the device files that its driver works through. In a container, that is
            decided when it is started.
    """

    vendor: Vendor
    name: str | None
    address: str
    open: bool

    @property
    def flag(self) -> str:
        """What llama.cpp has to be built with."""
        return _BUILDS[self.vendor][0]

    @property
    def needs(self) -> str:
        """What has to be installed to build it so."""
        return _BUILDS[self.vendor][1]

    def used_by(self, backends: Iterable[str]) -> bool:
        """Whether one of llama.cpp's backends, of those that have devices, can be using it."""
        return bool(_BUILDS[self.vendor][2] & set(backends))


def find_gpus(
    pci: Path = Path("/sys/bus/pci/devices"),
    proc: Path = Path("/proc"),
    dev: Path = Path("/dev"),
    system: str | None = None,
    machine: str | None = None,
) -> list[Gpu]:
    """The GPUs of this machine, those that virtual machines only draw with left out."""
    if (system or platform.system()) == "Darwin":
        return [Gpu("Apple", None, "", open=True)] if (machine or platform.machine()) == "arm64" else []
    names = _nvidia_names(proc)
    nvidia_open = any((dev / name).exists() for name in ("nvidia0", "nvidiactl", "dxg"))
    render_nodes = list(dev.glob("dri/renderD*"))
    found = []
    for device in sorted(pci.glob("*")):
        vendor = _VENDORS.get(line_of(device / "vendor"))
        if vendor is None or not line_of(device / "class").startswith(_DISPLAY_CLASSES):
            continue
        shown = nvidia_open if vendor == "NVIDIA" else bool(render_nodes)
        found.append(Gpu(vendor, names.pop(device.name.lower(), None), device.name, shown))
    # Where the bus is hidden, as in some containers and in WSL, the driver still tells.
    if not any(gpu.vendor == "NVIDIA" for gpu in found):
        found += [Gpu("NVIDIA", name, address, nvidia_open) for address, name in names.items()]
        if not names and (dev / "nvidia0").exists():
            found.append(Gpu("NVIDIA", None, "", open=True))
    return found


def _nvidia_names(proc: Path) -> dict[str, str]:
    """PCI addresses to names of products, from NVIDIA's driver."""
    paths = sorted(proc.glob("driver/nvidia/gpus/*/information"))
    models = {path: re.search(r"^Model:\s*(.+?)\s*$", text_of(path), re.MULTILINE) for path in paths}
    return {path.parent.name.lower(): model[1] for path, model in models.items() if model}


def nvidia_driver(proc: Path = Path("/proc")) -> str | None:
    """The version of NVIDIA's kernel driver, "570.86.15"; None where it is not loaded."""
    match = re.search(r"Kernel Module(?: for \S+)?\s+([0-9]+(?:\.[0-9]+)+)", text_of(proc / "driver/nvidia/version"))
    return match[1] if match else None


def nvidia_library(folders: Sequence[Path] | None = None) -> str | None:
    """The version of NVIDIA's user-space library (libnvidia-ml), by its file's name; None where none is found.

    It must be that of the kernel driver: they differ after an update until the machine is started again.
    """
    usual = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib")
    for folder in folders if folders is not None else [Path(name) for name in usual]:
        for path in sorted(folder.glob("libnvidia-ml.so.*")):
            if match := re.fullmatch(r"libnvidia-ml\.so\.([0-9]+\.[0-9.]+)", path.name):
                return match[1]
    return None


def clone_folder() -> Path | None:
    """The clone that this llmrun runs from; None where it was installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "scripts" / "setup").exists() else None


def rebuild_command(*flags: str, clone: Path | None = None) -> str:
    """The shell command that builds llama.cpp with more flags: in `clone`, or else where llmrun is installed."""
    if clone is not None:
        return f'cd {shlex.quote(str(clone))} && LLMRUN_CMAKE_ARGS="{" ".join(flags)}" scripts/setup'
    wanted = " ".join(dict.fromkeys([*flags, "-DGGML_RPC=on"]))
    # pip's cache of wheels does not know CMAKE_ARGS: it would hand out the build that is to be replaced.
    install = f"{shlex.quote(sys.executable)} -m pip install --force-reinstall --no-cache-dir --no-deps"
    return f'CMAKE_ARGS="{wanted}" {install} {shlex.quote(pinned_binding())}'


def pinned_binding() -> str:
    """The requirement that llmrun has for llama-cpp-python: "llama-cpp-python==0.3.36"."""
    from llmrun.machine import packages

    needed = next((each for each in packages.requirements() if each.name == _BINDING), None)
    return f"{_BINDING}{needed.specifier}" if needed else _BINDING
