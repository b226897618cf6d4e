"""Which devices there are: of this machine, of workers, and of machines that exist as folders only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunLlmrun
from waiting import HANGS_S

from llmrun.engine.devices import find_devices
from llmrun.machine import gpus, hardware
from llmrun.machine.device import free_of
from llmrun.machine.doctor import unused_gpu
from llmrun.machine.gpus import Gpu, find_gpus, nvidia_driver, nvidia_library, rebuild_command

VERSION = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (builder)  Thu Jan 23
GCC version:  gcc version 12.2.0
"""


def pci(root: Path, *devices: tuple[str, str, str]) -> Path:
    """A PCI bus of (address, class, vendor)."""
    for address, kind, vendor in devices:
        (root / address).mkdir(parents=True)
        (root / address / "class").write_text(f"{kind}\n")
        (root / address / "vendor").write_text(f"{vendor}\n")
    return root


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(tmp_path: Path, *devices: tuple[str, str, str], open_: tuple[str, ...] = ()) -> list[Gpu]:
    bus, dev = pci(tmp_path / "pci", *devices), touched(tmp_path / "dev", *open_)
    return find_gpus(bus, tmp_path / "proc", dev, system="Linux", machine="x86_64")


def test_gpus_on_the_bus(tmp_path: Path) -> None:
    """Of all PCI devices the display controllers of three vendors; what a virtual machine draws with is none."""
    gpus = found(
        tmp_path,
        ("0000:00:02.0", "0x030000", "0x8086"),
        ("0000:01:00.0", "0x030200", "0x10de"),
        ("0000:02:00.0", "0x038000", "0x1002"),
        ("0000:03:00.0", "0x030000", "0x1234"),  # QEMU's
        ("0000:04:00.0", "0x020000", "0x8086"),  # a network card
    )
    assert [(gpu.vendor, gpu.address) for gpu in gpus] == [
        ("Intel", "0000:00:02.0"),
        ("NVIDIA", "0000:01:00.0"),
        ("AMD", "0000:02:00.0"),
    ]
    assert not any(gpu.open for gpu in gpus)


def test_nvidia_by_name(tmp_path: Path) -> None:
    """The driver knows the product; addresses differ in case only."""
    information = tmp_path / "proc/driver/nvidia/gpus/0000:ab:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t 32\n")
    (gpu,) = found(tmp_path, ("0000:AB:00.0", "0x030200", "0x10de"), open_=("nvidia0",))
    assert gpu == Gpu("NVIDIA", "NVIDIA H200", "0000:AB:00.0", open=True)


@pytest.mark.parametrize("with_driver", [True, False])
def test_nvidia_without_a_bus(tmp_path: Path, with_driver: bool) -> None:
    """Where the bus is hidden, the driver or the device file still tells, and each GPU counts once."""
    if with_driver:
        information = tmp_path / "proc/driver/nvidia/gpus/0000:ab:00.0/information"
        information.parent.mkdir(parents=True)
        information.write_text("Model: NVIDIA H200\n")
    (gpu,) = found(tmp_path, open_=("nvidia0",))
    assert gpu.vendor == "NVIDIA" and gpu.open and gpu.name == ("NVIDIA H200" if with_driver else None)


def test_apple() -> None:
    nowhere = Path("/nowhere")
    assert [gpu.vendor for gpu in find_gpus(nowhere, nowhere, nowhere, "Darwin", "arm64")] == ["Apple"]
    assert find_gpus(nowhere, nowhere, nowhere, "Darwin", "x86_64") == []
    assert find_gpus(nowhere, nowhere, nowhere, "Linux", "aarch64") == []


@pytest.mark.parametrize(
    ("vendor", "backends", "used"),
    [
        ("NVIDIA", ["CPU"], False),
        ("NVIDIA", ["CUDA", "CPU"], True),
        ("NVIDIA", ["RPC", "CPU"], False),
        ("AMD", ["ROCm"], True),
        ("AMD", ["CUDA"], False),
        ("Intel", ["Vulkan"], True),
        ("Apple", ["MTL"], True),
    ],
)
def test_used(vendor: gpus.Vendor, backends: list[str], used: bool) -> None:
    assert Gpu(vendor, None, "", open=True).used_by(backends) is used


def test_versions_of_nvidia(tmp_path: Path) -> None:
    """The kernel's driver and the library's file name."""
    assert nvidia_driver(tmp_path) is None and nvidia_library([tmp_path]) is None
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/version").write_text(VERSION)
    touched(tmp_path, "libnvidia-ml.so", "libnvidia-ml.so.1", "libnvidia-ml.so.570.133.20")
    assert nvidia_driver(tmp_path) == "570.86.15" and nvidia_library([tmp_path]) == "570.133.20"
    (tmp_path / "driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue\n")
    assert nvidia_driver(tmp_path) == "535.54.03"


def test_the_command_that_rebuilds() -> None:
    """In a clone the set-up, with the clone's path made safe; else pip, which must not take an old wheel."""
    assert rebuild_command("-DGGML_HIP=on", clone=Path("/my clone")) == (
        "cd '/my clone' && LLMRUN_CMAKE_ARGS=\"-DGGML_HIP=on\" scripts/setup"
    )
    command = rebuild_command("-DGGML_CUDA=on")
    assert command.startswith('CMAKE_ARGS="-DGGML_CUDA=on -DGGML_RPC=on" ')
    assert "--force-reinstall --no-cache-dir" in command and command.endswith("llama-cpp-python==0.3.36")


def test_what_is_said_of_an_unused_gpu() -> None:
    """Shown to us it wants another build; hidden by a container it wants another container."""
    message, command = unused_gpu(Gpu("AMD", None, "0000:03:00.0", open=True), Path("/clone"))
    assert "AMD GPU at 0000:03:00.0" in message and "ROCm" in message and command and "-DGGML_HIP=on" in command
    message, command = unused_gpu(Gpu("NVIDIA", "NVIDIA H200", "", open=False), None)
    assert "docker run --gpus all" in message and command is None


def test_this_machine() -> None:
    """The CPU is always there; of its memory, what ggml calls free is not what is free."""
    everything = find_devices()
    cpu = next(device for device in everything.devices if device.kind == "cpu")
    free = hardware.available_memory()
    assert cpu.total_bytes == hardware.physical_memory()
    assert free and cpu.free_bytes and abs(cpu.free_bytes - free) < 1 << 29
    assert cpu.features and "CPU" in everything.system_info and everything.versions["ggml"]


def test_less_than_nothing_is_free() -> None:
    """Of a budget of 3 GiB with 4 in use nothing is left, and not 16 EiB."""
    gib = 1 << 30
    assert free_of((3 - 4) * gib % (1 << 64), 8 * gib) == 0 and free_of(2 * gib, 8 * gib) == 2 * gib


def test_table_and_document(llmrun: RunLlmrun, rpc_worker: Callable[..., str]) -> None:
    """`--json` has bytes, the table what people read; a worker's device is in both."""
    endpoint = rpc_worker(memory=0.125)
    done = llmrun("devices", "--rpc", endpoint, "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert [item["name"] for item in facts["devices"]][-1] == "RPC0"
    assert facts["devices"][-1]["total_bytes"] == facts["devices"][-1]["free_bytes"] == 128 << 20
    assert facts["threads"]["default"] == hardware.default_threads()
    assert facts["versions"]["llama-cpp-python"] == "0.3.36"
    lines = llmrun("devices", "--rpc", endpoint).stdout.splitlines()
    assert lines[0].split()[:3] == ["DEVICE", "KIND", "BACKEND"]
    assert ["RPC0", "gpu", "RPC", *"128 MiB 128 MiB".split(), endpoint] in [line.split() for line in lines]


def test_errors(llmrun: RunLlmrun) -> None:
    """What can't be an endpoint: 2. Nobody there: 9, with the command that changes it."""
    done = llmrun("devices", "--rpc", "nonsense")
    assert done.returncode == 2 and "is not host:port" in done.stderr
    done = llmrun("devices", "--rpc", "127.0.0.1:1")
    assert done.returncode == 5
    assert "no worker answers at 127.0.0.1:1: connection refused" in done.stderr
    assert "llmrun worker --port 1" in done.stderr


def test_connections_to_workers_are_looked_after() -> None:
    """A worker's machine that vanishes ends the connection within 15 s; other connections are left as they are.

    In a process of its own: the module loads llama.cpp.
    """
    code = (
        "import socket, sys\n"
        "from llmrun.engine.child import ggml\n"
        "listener, other = socket.create_server(('127.0.0.1', 0)), socket.create_server(('127.0.0.1', 0))\n"
        "a, b = (socket.create_connection(each.getsockname()) for each in (listener, other))\n"
        "assert ggml.keep_alive(listener.getsockname()[1]) == 1\n"
        "get = lambda one: one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)\n"
        "assert get(a) and not get(b)\n"
        "assert a.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
