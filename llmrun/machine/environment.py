"""What a record says of the machine, the build and the model. Nothing that names the machine or who it belongs to.

Asked once, when a bench begins. What the system does not tell is None; roots of /proc and /sys are arguments, for
tests.
"""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from llmrun import __version__
from llmrun.bench.record import Build, DeviceInfo, GpuInfo, Machine, ModelFile, ModelInfo
from llmrun.engine.protocol import Device
from llmrun.gguf.reader import Header
from llmrun.machine import doctor, gpus, hardware
from llmrun.machine.hardware import text_of
from llmrun.models import store
from llmrun.models.quants import split_parts

# What changes how llama.cpp computes. By name, for others of that kind hold keys and addresses.
_VARIABLES = re.compile(
    r"OMP_\w+|GOMP_\w+|KMP_\w+|GGML_\w+|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|HIP_VISIBLE_DEVICES|MALLOC_\w+"
)


def describe_machine(
    devices: Sequence[Device],
    environ: Mapping[str, str] = os.environ,
    proc: Path = Path("/proc"),
    sys_root: Path = Path("/sys"),
) -> Machine:
    """This machine, with the devices that llama.cpp sees on it (and on its workers)."""
    cpus = hardware.usable_cpus()
    logical = os.cpu_count()
    cpu_info = text_of(proc / "cpuinfo")
    governor = text_of(sys_root / f"devices/system/cpu/cpu{min(cpus)}/cpufreq/scaling_governor").strip()
    nodes = list((sys_root / "devices/system/node").glob("node[0-9]*"))
    driver = gpus.nvidia_driver(proc)
    return Machine(
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
        on_battery=on_battery(sys_root / "class/power_supply"),
        huge_pages=_chosen(text_of(sys_root / "kernel/mm/transparent_hugepage/enabled")),
        environment={name: value for name, value in sorted(environ.items()) if _VARIABLES.fullmatch(name)},
        devices=tuple(_device(device) for device in devices),
        gpus=tuple(
            GpuInfo(gpu.vendor, gpu.name, driver if gpu.vendor == "NVIDIA" else None)
            for gpu in gpus.find_gpus(proc=proc, pci=sys_root / "bus/pci/devices")
        ),
    )


def describe_build(system_info: str | None = None, versions: Mapping[str, str] | None = None) -> Build:
    """The versions at work; `system_info` and `versions` are what the engine's process says (`devices.Found`)."""
    said = versions or {}
    return Build(
        llmrun=__version__,
        llama_cpp_python=doctor.installed("llama-cpp-python"),
        ggml=said.get("ggml"),
        ggml_commit=said.get("ggml commit"),
        system_info=" | ".join(p.strip() for p in system_info.split("|") if p.strip()) if system_info else None,
        python=platform.python_version(),
    )


def describe_model(
    name: str,
    path: Path,
    header: Header,
    *,
    description: str | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> ModelInfo:
    """The model in the file `path` (the first of a split one) with its whole `header`; hashes what was not yet.

    `description` is llama.cpp's (`Loaded.description`). `on_bytes` gets the bytes hashed so far, and all of them.
    """
    n_bytes: Counter[str] = Counter()
    for tensor in header.tensors:
        n_bytes[tensor.type.name] += tensor.n_bytes
    paths = [path.with_name(part) for part in split_parts(path.name)]
    sizes = [_size(part) for part in paths]
    total, before, files = sum(size or 0 for size in sizes), 0, []
    for part, size in zip(paths, sizes, strict=True):

        def told(done: int, before: int = before) -> None:
            if on_bytes is not None:
                on_bytes(before + done, total)

        files.append(ModelFile(part.name, size, sha256_of(part, told)))
        before += size or 0
    return ModelInfo(
        name=name,
        files=tuple(files),
        description=description,
        architecture=header.architecture,
        quantization=header.quantization_label,
        n_params=header.n_params,
        weight_bytes=header.weight_bytes,
        n_layer=header.n_layer,
        tensor_types=dict(n_bytes.most_common()),
    )


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str | None:
    """The sha256 of a file; computed once, and remembered for as long as its size, mtime and inode are the same.

    Files of the hub are named by it in the cache: what was pulled was checked against that. None: it can't be read.
    """
    with suppress(OSError):
        target = Path(os.path.realpath(path))
        if target.parent.name == "blobs" and store.SHA256.fullmatch(target.name):
            return target.name
        state = store.State()
        known = state.verified_sha256(target)
        if known is None:
            before = _stamp(target)
            known = store.hash_file(target, on_bytes)
            if _stamp(target) != before:  # written to meanwhile: that is the hash of no file
                return None
            state.remember(target, sha256=known)
        return known
    return None


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _cpu_name(devices: Sequence[Device], cpu_info: str) -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", cpu_info, re.MULTILINE)
    if found:
        return found[1].strip()
    return next((device.description for device in devices if device.kind == "cpu"), None)


def _device(device: Device) -> DeviceInfo:
    # Behind an RPC device there is an address, which is nobody's business.
    is_remote = device.backend.startswith("RPC")
    return DeviceInfo(
        device.name,
        device.kind,
        "RPC" if is_remote else device.description,
        "RPC" if is_remote else device.backend,
        device.total_bytes,
        device.free_bytes,
    )


def _os_name() -> str | None:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    return platform.system() or None


def on_battery(supplies: Path = Path("/sys/class/power_supply")) -> bool | None:
    """None where the system does not tell; machines without a battery are on mains."""
    if not supplies.is_dir():
        return None
    return any(check.status == "warn" for check in doctor.power(supplies))


def _chosen(setting: str) -> str | None:
    """ "always [madvise] never" → "madvise"."""
    found = re.search(r"\[(\w+)\]", setting)
    return found[1] if found else None
