"""Every check with what it must find, from trees and texts made for the test; then the real command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import RunLlmrun
from packaging.requirements import Requirement

from llmrun.errors import EngineCrashed, OutOfMemory, Remedy
from llmrun.machine import doctor, hardware, packages
from llmrun.machine.device import Device
from llmrun.machine.doctor import GIB, Check
from llmrun.machine.gpus import Gpu
from llmrun.machine.hardware import power_source
from llmrun.models.store.listing import Leftover

CLONE = Path("/clone")


def only(found: list[Check]) -> Check:
    (check,) = found
    return check


def only_remedy(check: Check) -> Remedy:
    (remedy,) = check.remedies
    return remedy


def test_exit_code() -> None:
    """Warnings are no failure; of several problems the first one counts."""
    warning = Check("a", "warn", "")
    assert doctor.exit_code([warning]) == 0
    assert doctor.exit_code([warning, Check("b", "problem", "", (), 7), Check("c", "problem", "", (), 9)]) == 7


@pytest.mark.parametrize(
    ("said", "told", "code"),
    [
        ("the engine was ended by SIGILL: it said nothing", "built for another CPU", 9),
        ("the engine ended with status 1: ImportError: llama-cpp-python is not installed", "not installed", 9),
        ("the engine ended with status 1: OSError: libfoo.so: cannot open", "libfoo.so", 9),
    ],
)
def test_llama_cpp_does_not_start(said: str, told: str, code: int) -> None:
    """Why, as far as it can be known, and the command that builds it anew."""
    check = doctor.llama_cpp(EngineCrashed(said), CLONE)
    assert check.status == "problem" and told in check.message and check.exit_code == code
    assert "scripts/setup" in str(only_remedy(check))


def test_llama_cpp() -> None:
    assert doctor.llama_cpp(None, CLONE).status == "ok"
    assert doctor.llama_cpp(OutOfMemory("no memory"), None).exit_code == 10


def cpu(*features: str) -> list[Device]:
    return [Device("CPU", "a CPU", "cpu", "CPU", None, None, dict.fromkeys(features, "1"))]


def test_a_build_that_is_slower_than_the_cpu(tmp_path: Path) -> None:
    """Instructions that the CPU has and the build lacks are a warning with the command that builds it anew."""
    (tmp_path / "cpuinfo").write_text("model name\t: x\nflags\t\t: fpu avx avx2 fma f16c avx512f avx512_vnni\n")
    assert hardware.unused_instructions(cpu("AVX"), tmp_path) == ["AVX2", "FMA", "F16C", "AVX512", "AVX512_VNNI"]
    assert hardware.slow_instructions(cpu("AVX"), tmp_path) == ["AVX2", "FMA", "F16C"]
    modern = cpu("AVX2", "FMA", "F16C")
    assert hardware.slow_instructions(modern, tmp_path) == []
    assert hardware.unused_instructions(modern, tmp_path) == ["AVX512", "AVX512_VNNI"]
    assert (
        hardware.unused_instructions(cpu(), tmp_path) == [] == hardware.unused_instructions(modern, tmp_path / "none")
    )
    (tmp_path / "cpuinfo").write_text("Features\t: fp asimd asimddp\n")
    assert hardware.unused_instructions(cpu("NEON"), tmp_path) == ["DOTPROD"]
    slow, slower = doctor.llama_cpp(None, CLONE, ["AVX512"]), doctor.llama_cpp(None, CLONE, ["AVX2", "AVX512"])
    assert slow.status == slower.status == "warn" and "without AVX2, AVX512" in slower.message
    assert "2 to 5 times" in slower.message and "times" not in slow.message
    assert "scripts/setup" in str(only_remedy(slow))


def test_gpus() -> None:
    """One line each; a GPU that is not used is a warning with a command, unless llama.cpp did not start at all."""
    gpu = Gpu("NVIDIA", "NVIDIA H200", "", open=True)
    assert only(doctor.gpu_checks([], ["CPU"], None)).message == "none found: the CPU computes"
    assert only(doctor.gpu_checks([], ["CPU", "Vulkan"], None)).message.endswith("llama.cpp has a device by Vulkan")
    assert only(doctor.gpu_checks([gpu], ["CUDA", "CPU"], None)).message == "NVIDIA H200, in use"
    unused = only(doctor.gpu_checks([gpu], ["CPU"], CLONE))
    assert unused.status == "warn" and "-DGGML_CUDA=on" in str(only_remedy(unused))
    assert only(doctor.gpu_checks([gpu], None, None)).status == "ok"


def test_nvidia() -> None:
    """After an update without a restart, the kernel has the old version and the disk the new one."""
    assert doctor.nvidia(None, "570.86.15") == []
    assert only(doctor.nvidia("570.86.15", "570.86.15")).status == "ok"
    assert only(doctor.nvidia("570.86.15", None)).status == "ok"
    assert only(doctor.nvidia("570.86.15", "570.133.20")).status == "problem"


def test_python() -> None:
    assert doctor.python((3, 10, 0), True).status == "ok"
    assert doctor.python((3, 9, 19), True).status == "problem"
    assert doctor.python((3, 12, 1), False).status == "problem"


@pytest.mark.parametrize(
    ("requirement", "there", "status"),
    [
        ("llama-cpp-python==0.3.36", "0.3.36", "ok"),
        ("llama-cpp-python==0.3.36", "0.3.35", "problem"),
        ("huggingface-hub<3,>=1.0", "2.4.0", "ok"),
        ("huggingface-hub<3,>=1.0", "3", "problem"),
        ("rich>=14", "14.1.0rc1", "ok"),
        ("rich>=14", "14.0.0rc1", "problem"),
        ("rich>=14", None, "problem"),
        ("rich~=14.1", "14.2", "ok"),
        ("rich!=14.2", "14.2.0", "problem"),
        ("tomli>=2; python_version < '3'", None, "ok"),
        ("tomli>=2; python_version >= '3'", None, "problem"),
        ("nvidia-ml-py>=13; extra == 'nvidia'", None, "ok"),
    ],
)
def test_packages(requirement: str, there: str | None, status: str) -> None:
    """Versions are compared as Python's packaging standard has it; what only some need is left out."""
    needed = packages.applicable([Requirement(requirement)])
    assert doctor.required_packages(needed, lambda _: there).status == status


@pytest.mark.parametrize(
    ("free", "writable", "status", "code"),
    [
        (100 * GIB, True, "ok", 0),
        (5 * GIB, True, "warn", 0),
        (GIB // 2, True, "problem", 7),
        (GIB, False, "problem", 7),
    ],
)
def test_cache_folder(free: int, writable: bool, status: str, code: int) -> None:
    check = doctor.cache_folder(Path("/cache"), free, writable)
    assert (check.status, check.exit_code) == (status, code) and "/cache" in check.message


def test_disk_of_a_folder_to_be(tmp_path: Path) -> None:
    """The disk is that of the nearest folder that exists; a file in the way can't be written into."""
    free, writable = doctor.disk_of(tmp_path / "not" / "yet")
    assert free and writable
    (tmp_path / "file").touch()
    assert doctor.disk_of(tmp_path / "file" / "hub")[1] is False


def test_leftovers() -> None:
    partial = Leftover("partial", "user/repo", Path("/x"), 3 << 20)
    damaged = Leftover("damaged", "user/repo", Path("/y"), 1 << 20)
    assert doctor.leftovers([]).status == doctor.leftovers([partial]).status == "ok"
    both = doctor.leftovers([partial, damaged])
    assert both.status == "warn" and "2 files" in both.message and "4.00 MiB" in both.message


def test_hub_never_shows_a_secret(tmp_path: Path) -> None:
    """Neither the token nor the password in an endpoint."""
    environ = {"HF_TOKEN": "hf_secret", "HF_ENDPOINT": "https://me:secret@mirror.example/x", "HF_HUB_OFFLINE": "1"}
    found = doctor.hub(environ, tmp_path / "token")
    assert "secret" not in repr(found) and "mirror.example" in repr(found)
    assert [check.status for check in found] == ["warn", "ok", "ok"]
    (tmp_path / "token").write_text("hf_secret")
    (tmp_path / "token").chmod(0)
    assert "stored" in only(doctor.hub({}, tmp_path / "token")).message
    assert "none" in only(doctor.hub({}, tmp_path / "nothing")).message


def test_network() -> None:
    """An answer of any kind is one; none is exit 5, and a password is not shown either."""
    assert "0.25" not in doctor.network("https://hub", lambda _: 0.25).message  # 250 ms
    assert doctor.network("https://hub", lambda _: 0.25).status == "ok"

    def refuse(_: str) -> float:
        raise OSError("refused")

    broken = doctor.network("https://me:secret@hub", refuse)
    assert broken.exit_code == 5 and "refused" in broken.message and "secret" not in broken.message


def test_memory() -> None:
    """16 GiB of RAM, 4 of swap of which 1 is used; less than 2 GiB available is a warning."""
    meminfo = {"MemTotal": 16 * GIB, "SwapTotal": 4 * GIB, "SwapFree": 3 * GIB}
    check = doctor.memory(meminfo, 8 * GIB)
    assert check.status == "ok"
    assert check.message == "16.0 GiB, 8.00 GiB available; 1.00 GiB of 4.00 GiB swap in use"
    assert doctor.memory(meminfo, GIB).status == "warn"
    assert doctor.memory({}, None).message == "–, – available"


def test_limits() -> None:
    """A limit that is none is not worth a line."""
    assert doctor.container_memory(None, 16 * GIB) == doctor.container_memory(32 * GIB, 16 * GIB) == []
    assert only(doctor.container_memory(8 * GIB, 16 * GIB)).status == "warn"
    assert doctor.address_space(None) == []
    assert only(doctor.address_space(8 * GIB)).status == "warn"
    assert only(doctor.address_space(GIB)).exit_code == 10
    assert doctor.locked_memory(None).remedies == ()
    assert doctor.locked_memory(8 << 20).remedies


def test_huge_pages() -> None:
    assert doctor.huge_pages("") == []
    assert only(doctor.huge_pages("[always] madvise never")).remedies == ()
    assert "madvise" in only(doctor.huge_pages("always [madvise] never\n")).message


def test_cpus() -> None:
    """What is less than the machine has gets a line; a quota below the cores a warning."""
    assert [check.status for check in doctor.cpus(8, 8, 4, None, 4)] == ["ok"]
    assert [check.name for check in doctor.cpus(4, 8, 2, 1.5, 2)] == ["threads", "affinity", "CPU quota"]
    assert doctor.cpus(8, 8, 4, 4.0, 4) == doctor.cpus(8, 8, 4, None, 4)


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("OMP_THREAD_LIMIT", "2", "warn"),
        ("OMP_THREAD_LIMIT", "4", None),
        ("OMP_PROC_BIND", "true", "warn"),
        ("OMP_PROC_BIND", "false", None),
        ("OMP_WAIT_POLICY", "passive", "ok"),
        ("OMP_NUM_THREADS", "1", "ok"),
        ("HOME", "x", None),
    ],
)
def test_openmp(variable: str, value: str, status: str | None) -> None:
    assert [check.status for check in doctor.openmp({variable: value}, 4)] == ([status] if status else [])


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"scaling_governor": "performance", "scaling_driver": "acpi-cpufreq"}, "ok"),
        ({"scaling_governor": "powersave", "scaling_driver": "acpi-cpufreq"}, "warn"),
        ({"scaling_governor": "powersave", "scaling_driver": "intel_pstate"}, "ok"),
        (
            {
                "scaling_governor": "powersave",
                "scaling_driver": "amd-pstate-epp",
                "energy_performance_preference": "balance_power",
            },
            "warn",
        ),
    ],
)
def test_governor(tmp_path: Path, files: dict[str, str], status: str) -> None:
    """ "powersave" is slow with some drivers, and just the name of the usual mode with others."""
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert only(doctor.governor(tmp_path)).status == status
    assert doctor.governor(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("supplies", "statuses"),
    [
        ({}, []),
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": {"type": "Battery"}}, ["warn"]),
        ({"AC": {"type": "Mains", "online": "1"}, "BAT0": {"type": "Battery"}}, ["ok"]),
        ({"mouse": {"type": "Battery", "scope": "Device"}}, []),
    ],
)
def test_power(tmp_path: Path, supplies: dict[str, dict[str, str]], statuses: list[str]) -> None:
    for name, files in supplies.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text + "\n")
    assert [check.status for check in doctor.power(power_source(tmp_path))] == statuses


def test_load() -> None:
    """Of 100 ticks CPU 0 had nothing to do in 60: 0.4 busy. CPU 1 in none: 1. CPU 2 is not ours."""
    before = {0: (900, 100), 1: (900, 100), 2: (900, 100)}
    after = {0: (1000, 160), 1: (1000, 100), 2: (1000, 100)}
    check = only(doctor.load(before, after, {0, 1}))
    assert check.status == "warn" and check.message == "others use 1.4 of 2 CPUs right now"
    assert only(doctor.load(before, before, {0, 1})).status == "ok"
    assert doctor.load({}, {}, {0}) == []


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({"LANG": "en_GB.UTF-8"}, "ok"),
        ({"LANG": "C.utf8"}, "ok"),
        ({"LANG": "en_GB.UTF-8", "LC_ALL": "C"}, "warn"),
        ({"LANG": "en_GB.UTF-8", "LC_ALL": ""}, "ok"),
        ({}, "warn"),
    ],
)
def test_terminal(environ: dict[str, str], status: str) -> None:
    assert doctor.terminal(environ).status == status


def test_the_command(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """One line a check; no token in it; with a folder that can't be one, exit 7 and what to do."""
    home = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN": "hf_secret", "LLMRUN_HOME": str(tmp_path)}
    done = llmrun("doctor", "--json", env=home)
    document = json.loads(done.stdout)
    names = {check["name"] for check in document["checks"]}
    assert {"llama.cpp", "GPU", "Python", "packages", "model folder", "store", "RAM", "threads", "load"} <= names
    assert document["checks"][0]["status"] in ("ok", "warn")  # it starts; a build for another CPU is slower
    assert done.returncode == document["exit_code"] and "hf_secret" not in done.stdout
    (tmp_path / "hub").touch()
    done = llmrun("doctor", env=home)
    assert done.returncode == 7 and "model folder   problem" in done.stdout and "try: HF_HUB_CACHE" in done.stdout


def test_network_only_when_asked(llmrun: RunLlmrun) -> None:
    """With an endpoint that nobody serves, only --network finds out."""
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1", "HF_HUB_CACHE": os.fspath(Path.cwd())}
    assert llmrun("doctor", env=nobody).returncode == 0
    done = llmrun("doctor", "--network", env=nobody)
    assert done.returncode == 5 and "can't be reached: " in done.stdout and "refused" in done.stdout
