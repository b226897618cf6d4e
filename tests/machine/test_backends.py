"""What a build needs of a machine: libraries, drivers, headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmrun.engine.devices import built, does_not_start
from llmrun.engine.process import Death
from llmrun.errors import EngineCrashed
from llmrun.machine import doctor
from llmrun.machine.backends import missing_library, vulkan_headers, why_no_devices
from llmrun.machine.device import Device
from llmrun.machine.gpus import LEAST_VULKAN, nvidia_driver

CLONE = Path("/clone")
CPU = Device("CPU", "a CPU", "cpu", "CPU", None, None)
LOADER = (
    "Traceback (most recent call last):\n"
    "RuntimeError: Failed to load shared library '/venv/llama_cpp/lib/libllama.so': "
    "libcuda.so.1: cannot open shared object file: No such file or directory\n"
)
"""What is left of a child whose llama.cpp was linked with a driver that is not here."""


def found(name: str, backend: str, kind: str = "gpu") -> Device:
    return Device(name, "", kind, backend, None, None)  # type: ignore[arg-type]


def test_a_driver_that_is_not_here() -> None:
    """No traceback and no word of the loader: whose library it is, how a container gets it, the build without."""
    error = does_not_start(Death("ended with status 1: OSError", False, 0, LOADER))
    assert isinstance(error, EngineCrashed) and error.log == LOADER
    assert error.message == ("llama.cpp does not start without NVIDIA's driver (libcuda.so.1), which is not here")
    container, build = map(str, error.remedies)
    assert "docker run --gpus all" in container and "-DGGML_CUDA_NO_VMM=on" in build
    check = doctor.llama_cpp(error, CLONE)
    assert (check.status, check.message, check.exit_code) == ("problem", error.message, 9)
    assert "cd /clone" in str(check.remedies[-1])


def test_another_death_is_told_as_it_is() -> None:
    """Only what was said last counts: a backend that is loaded if it can be may have said the same before."""
    assert does_not_start(Death("was ended by SIGSEGV", False, 11, f"{LOADER}loading the model\n")) is None
    assert does_not_start(Death("it said nothing", False, 11, "")) is None


@pytest.mark.parametrize(
    ("name", "told", "remedy"),
    [
        ("libcublas.so.13", "CUDA's cuBLAS (libcublas.so.13)", "LD_LIBRARY_PATH"),
        ("libcublasLt.so.13", "cuBLAS", "LD_LIBRARY_PATH"),
        ("libvulkan.so.1", "Vulkan's loader", "libvulkan1"),
        ("libamdhip64.so.6", "ROCm", "ROCm"),
        ("libgomp.so.1", "OpenMP", "libgomp1"),
        ("libfoo-bar.so.2.1", "without libfoo-bar.so.2.1, which", "setup"),
    ],
)
def test_other_libraries(name: str, told: str, remedy: str) -> None:
    """Whatever is missing has a name; of what is known, what brings it."""
    missing = missing_library(f"OSError: {name}: cannot open shared object file: No such file or directory")
    assert missing is not None and missing.name == name and told in missing.message
    assert remedy in missing.remedies(CLONE)[0] and "scripts/setup" in missing.remedies(CLONE)[-1]
    assert missing_library(f"OSError: {name}: undefined symbol: foo") is None


def test_built(tmp_path: Path) -> None:
    """By the libraries of the build, however they are versioned."""
    names = "libggml.so libggml-base.so.0 libggml-cpu-haswell.so libggml-vulkan.so.0.25.3 libggml-rpc.dylib libllama.so"
    for name in names.split():
        (tmp_path / name).touch()
    assert built([tmp_path]) == {"cpu-haswell", "vulkan", "rpc"}
    assert "cpu" in built()


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., str | None]:
    """Why there is no device, on a machine with or without NVIDIA's driver."""

    def why(*built_with: str, driver: bool = False, devices: tuple[Device, ...] = (CPU,), **environ: str) -> str | None:
        proc = tmp_path / str(driver)
        (proc / "driver/nvidia").mkdir(parents=True, exist_ok=True)
        if driver:
            version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue\n"
            (proc / "driver/nvidia/version").write_text(version)
        assert (nvidia_driver(proc) is not None) is driver
        return why_no_devices(built_with, devices, environ, proc, tmp_path / "dev")

    return why


def test_a_build_for_gpus_without_one(machine: Callable[..., str | None]) -> None:
    """One line says why the CPU computes; nothing is said of a build for CPUs, or where a GPU is used."""
    assert machine("cpu", "rpc") is None
    assert machine("cpu", "cuda") == "llama.cpp was built with CUDA, and NVIDIA's driver is not here"
    assert "CUDA finds no GPU, with CUDA_VISIBLE_DEVICES=-1" in str(
        machine("cuda", driver=True, CUDA_VISIBLE_DEVICES="-1")
    )
    assert machine("cuda", devices=(CPU, found("CUDA0", "CUDA"))) is None
    assert machine("vulkan", devices=(CPU, found("Vulkan0", "Vulkan", "igpu"))) is None
    assert "Vulkan finds no GPU" in str(machine("vulkan", devices=(CPU, found("RPC0", "RPC[a:1]"))))
    assert "GGML_VK_VISIBLE_DEVICES=7" in str(machine("vulkan", GGML_VK_VISIBLE_DEVICES="7"))
    assert doctor.without_devices(None) == []
    (check,) = doctor.without_devices(machine("cuda"))
    assert check.status == "warn" and "NVIDIA's driver is not here" in check.message


def test_headers_of_vulkan(tmp_path: Path) -> None:
    """Debian 12's are too old to build llama.cpp with, Debian 13's are not; without any there is nothing to say."""
    assert vulkan_headers(tmp_path) is None and doctor.vulkan_headers(None) == []
    (tmp_path / "vulkan").mkdir()
    for version, n_lines in (((1, 3, 239), 1), ((1, 4, 309), 0)):
        api = f"VK_MAKE_API_VERSION(0, {version[0]}, {version[1]}, VK_HEADER_VERSION)"
        lines = ("// a header", f"#define VK_HEADER_VERSION {version[2]}", f"#define VK_HEADER_VERSION_COMPLETE {api}")
        (tmp_path / "vulkan/vulkan_core.h").write_text("\n".join(lines))
        assert vulkan_headers(tmp_path) == version
        assert len(doctor.vulkan_headers(version)) == n_lines
    (check,) = doctor.vulkan_headers((1, 3, 239))
    assert check.status == "warn" and "1.3.239" in check.message and ".".join(map(str, LEAST_VULKAN)) in check.message
