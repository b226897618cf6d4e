"""Checks of what makes runs fail or slow on real machines: each is a function of what it is given.

A check says what it found in one line, and what helps where something should change. `problem` is what makes a run
fail, `warn` what makes it slow, or fail later. Roots of /proc and /sys and the environment are arguments, so that
tests can give them trees of their own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from llmrun import fs, paths
from llmrun.errors import Act, DiskError, EngineCrashed, LlmrunError, NetworkError, OutOfMemory, Remedy
from llmrun.fs import FREE_SPACE
from llmrun.machine import backends, gpus, hardware, packages
from llmrun.machine.gpus import Gpu
from llmrun.machine.proc import CpuTicks, Proc, line_of, text_of
from llmrun.text import printable
from llmrun.units import duration, fixed, significant, size

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "warn", "problem"]

GIB = 1 << 30
LITTLE_DISK_BYTES = 10 * GIB
"""Less than a usual model and its successor take."""
NO_DISK_BYTES = GIB
LITTLE_RAM_BYTES = 2 * GIB
LITTLE_ADDRESS_SPACE_BYTES = 4 * GIB
LITTLE_MEMLOCK_BYTES = GIB
BUSY_SHARE = 0.15
"""Of the cores, that others may take before it is worth a word."""


@dataclass(frozen=True)
class Check:
    """What one look has found.

    Attributes:
        name: what was looked at; stays the same, for scripts.
        message: what was found, with numbers; fields of options stand in backticks, as in an error.
        remedies: what helps, in this order; empty where nothing is to be done.
        exit_code: of a problem: that with which a run would end.
    """

    name: str
    status: Status
    message: str
    remedies: tuple[Remedy, ...] = ()
    exit_code: int = 0


class Leftover(Protocol):
    """Bytes in the store that are no model."""

    @property
    def kind(self) -> str:
        """ "partial", "damaged"…"""
        ...

    @property
    def size(self) -> int: ...


def _check(name: str, status: Status, message: str, *remedies: Remedy | None) -> Check:
    return Check(name, status, message, tuple(each for each in remedies if each is not None))


def _problem(name: str, message: str, kind: type[LlmrunError], *remedies: Remedy) -> Check:
    return Check(name, "problem", message, remedies, kind.exit_code)


def exit_code(checks: Sequence[Check]) -> int:
    """That of the first problem; 0 where there is none, whatever the warnings."""
    return next((check.exit_code for check in checks if check.status == "problem"), 0)


# -- llama.cpp and its devices ----------------------------------------------------------------------------------------


def llama_cpp(error: LlmrunError | None, clone: Path | None, unused: Sequence[str] = ()) -> Check:
    """Whether llama.cpp starts, and uses what this CPU can do.

    `error`: what came of trying; None: it starts. `unused`: instructions that it was built without.
    """
    name = "llama.cpp"
    if error is None:
        if unused:
            message = f"it was built without {', '.join(unused)}, which this CPU has: slower than it could be"
            if hardware.CRUCIAL_INSTRUCTIONS & set(unused):
                message += ", 2 to 5 times"
            return Check(name, "warn", message, (gpus.rebuild_command(clone=clone),))
        version = packages.installed("llama-cpp-python")
        return Check(name, "ok", f"starts (llama-cpp-python {version or 'of unknown version'})")
    again = gpus.rebuild_command(clone=clone)
    if isinstance(error, EngineCrashed) and (missing := backends.missing_library(error.log)) is not None:
        return _problem(name, missing.message, EngineCrashed, *missing.remedies(clone))
    if "SIGILL" in error.message:
        # Built with -march=native, so that a folder that was moved or an image made elsewhere ends like this.
        return _problem(name, "it was built for another CPU: illegal instruction (SIGILL)", EngineCrashed, again)
    if "ModuleNotFoundError" in error.message or "is not installed" in error.message:
        return _problem(name, "llama-cpp-python is not installed", EngineCrashed, again)
    return Check(name, "problem", f"it does not start: {error.message}", (again,), error.exit_code)


def unused_gpu(gpu: Gpu, clone: Path | None) -> tuple[str, str | None]:
    """What to say, and to type, of a GPU that llama.cpp has no backend for."""
    what = f"{gpu.vendor} GPU{f' {gpu.name}' if gpu.name else ''}{f' at {gpu.address}' if gpu.address else ''}"
    if not gpu.open:
        how = "docker run --gpus all" if gpu.vendor == "NVIDIA" else "docker run --device /dev/dri"
        return f"{what}: its driver is not loaded, or this container does not show it ({how})", None
    message = f"{what}: llama.cpp was built without a backend for it; building one needs {gpu.needs}"
    return message, gpus.rebuild_command(gpu.flag, clone=clone)


def gpu_checks(found: Sequence[Gpu], backends: Sequence[str] | None, clone: Path | None) -> list[Check]:
    """A line per GPU. `backends`: of llama.cpp, those that have devices; None: it did not start."""
    if not found:
        others = sorted({*(backends or ())} - {"CPU", "BLAS"})
        at = f"none on the bus; llama.cpp has a device by {', '.join(others)}" if others else None
        return [Check("GPU", "ok", at or "none found: the CPU computes")]
    lines = []
    for gpu in found:
        if backends is None or gpu.used_by(backends):
            what = gpu.name or f"{gpu.vendor} GPU"
            lines.append(Check("GPU", "ok", what if backends is None else f"{what}, in use"))
        else:
            # Intel's are mostly part of the CPU and read the same memory: not worth a warning on every laptop.
            lines.append(_check("GPU", "ok" if gpu.vendor == "Intel" else "warn", *unused_gpu(gpu, clone)))
    return lines


def without_devices(message: str | None) -> list[Check]:
    """Of a build for GPUs that finds none: why, by `backends.without_devices`."""
    return [] if message is None else [Check("backend", "warn", message)]


def vulkan_headers(version: tuple[int, int, int] | None) -> list[Check]:
    """Where they are too old for a build with Vulkan. Without them there is nothing to say."""
    if version is None or version >= gpus.LEAST_VULKAN:
        return []
    here, least = (".".join(map(str, each)) for each in (version, gpus.LEAST_VULKAN))
    message = f"{here}: llama.cpp can't be built with Vulkan here, which needs {least} or newer (Debian 13 has 1.4.309)"
    return [Check("Vulkan headers", "warn", message)]


def nvidia(driver: str | None, library: str | None) -> list[Check]:
    """Whether NVIDIA's kernel driver and its library are of one version. Without a driver there is nothing to say."""
    if driver is None:
        return []
    if library is None or library == driver:
        return [Check("NVIDIA driver", "ok", driver)]
    message = f"the kernel runs {driver}, the library is {library}: CUDA and NVML will refuse to work"
    return [_problem("NVIDIA driver", message, EngineCrashed, "restart the machine (sudo reboot)")]


# -- what is installed ------------------------------------------------------------------------------------------------


def python(version: tuple[int, int, int], is_64_bit: bool) -> Check:
    shown = ".".join(map(str, version))
    if version < (3, 10) or not is_64_bit:
        return _problem("Python", f"{shown}: llmrun needs 3.10 or newer, of 64 bits", EngineCrashed)
    return Check("Python", "ok", shown)


def required_packages(
    requirements: Sequence[Requirement], version_of: Callable[[str], str | None] = packages.installed
) -> Check:
    """Whether what is installed is what llmrun asks for."""
    there = {each: version_of(each.name) for each in requirements}
    wrong = {each: v for each, v in there.items() if v is None or not each.specifier.contains(v, prereleases=True)}
    if not wrong:
        return Check("packages", "ok", "the versions that llmrun asks for")
    said = [f"{each.name} is {f'{v}, not {each.specifier}' if v else 'missing'}" for each, v in wrong.items()]
    command = " ".join([sys.executable, "-m pip install", *(f"'{each.name}{each.specifier}'" for each in wrong)])
    return _problem("packages", "; ".join(said), EngineCrashed, command)


# -- the store and the hub --------------------------------------------------------------------------------------------


def cache_folder(folder: Path, free_bytes: int | None, writable: bool) -> Check:
    """The folder that models are pulled into."""
    name, where = "model folder", printable(str(folder), 200)
    move = "HF_HUB_CACHE=/another/disk/hub in your profile moves it"
    if not writable:
        return _problem(name, f"{where} can't be written to: nothing can be pulled", DiskError, move)
    if free_bytes is not None and free_bytes < NO_DISK_BYTES:
        return _problem(name, f"{where}: only {size(free_bytes)} free", DiskError, FREE_SPACE, move)
    if free_bytes is not None and free_bytes < LITTLE_DISK_BYTES:
        return _check(name, "warn", f"{where}: only {size(free_bytes)} free", FREE_SPACE, move)
    return Check(name, "ok", f"{where}: {size(free_bytes)} free")


def leftovers(found: Sequence[Leftover]) -> Check:
    """Bytes in the store that are no model."""
    if not found:
        return Check("store", "ok", "nothing unfinished or damaged")
    kinds = sorted({item.kind for item in found})
    message = f"{len(found)} files that are no models ({', '.join(kinds)}), {size(sum(item.size for item in found))}"
    damaged = any(item.kind == "damaged" for item in found)
    return _check("store", "warn" if damaged else "ok", message, Act("list"), Act("rm", fields={"partials": True}))


def hub(environ: Mapping[str, str], token_file: Path) -> list[Check]:
    """What the environment says to the hub's client. The token itself is never read."""
    lines = []
    said = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    if said.upper() in {"1", "ON", "YES", "TRUE"}:
        lines.append(_check("hub", "warn", "HF_HUB_OFFLINE is set: nothing can be pulled", "unset HF_HUB_OFFLINE"))
    if endpoint := environ.get("HF_ENDPOINT"):
        lines.append(Check("hub", "ok", f"HF_ENDPOINT is {printable(without_password(endpoint), 200)}"))
    named = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if environ.get(name)), None)
    stored = "stored by hf auth login" if token_file.exists() else "none: only gated and private models need one"
    return [*lines, Check("hub token", "ok", f"set by {named}" if named else stored)]


def without_password(url: str) -> str:
    """The URL without "user:password@"."""
    return re.sub(r"(?<=//)[^/@]*@", "", url)


def network(endpoint: str, ask: Callable[[str], float]) -> Check:
    """Whether the hub answers. `ask` returns seconds, or raises `OSError`."""
    shown = printable(without_password(endpoint), 200)
    try:
        return Check("network", "ok", f"{shown} answers in {duration(ask(endpoint))}")
    except OSError as error:
        reason = printable(str(getattr(error, "reason", error)), 200)
        remedy = "is a proxy needed? HTTPS_PROXY=http://proxy:port"
        return _problem("network", f"{shown} can't be reached: {reason}", NetworkError, remedy)


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(meminfo: Mapping[str, int], available_bytes: int | None) -> Check:
    """RAM and swap, from `Proc.meminfo`."""
    total, swap, swap_free = (meminfo.get(name) for name in ("MemTotal", "SwapTotal", "SwapFree"))
    swapped = swap - swap_free if swap is not None and swap_free is not None else None
    message = f"{size(total)}, {size(available_bytes)} available"
    message += "" if swap is None else "; no swap" if swap == 0 else f"; {size(swapped)} of {size(swap)} swap in use"
    if available_bytes is not None and available_bytes < LITTLE_RAM_BYTES:
        return _check("RAM", "warn", message, "end what takes the memory", Act("list", fields={"catalog": True}))
    return Check("RAM", "ok", message)


def container_memory(limit_bytes: int | None, physical_bytes: int | None) -> list[Check]:
    """The cgroup's limit, where it is one."""
    if limit_bytes is None or (physical_bytes is not None and limit_bytes >= physical_bytes):
        return []
    message = f"this container may use {size(limit_bytes)} of the machine's {size(physical_bytes)}"
    return [_check("container memory", "warn", message, "docker run --memory, or MemoryMax= of its systemd unit")]


def address_space(limit_bytes: int | None) -> list[Check]:
    """`ulimit -v`: a mapped model counts in full, resident or not."""
    if limit_bytes is None:
        return []
    message = f"ulimit -v leaves {size(limit_bytes)} of address space, weights that are only mapped included"
    if limit_bytes < LITTLE_ADDRESS_SPACE_BYTES:
        return [_problem("address space", message, OutOfMemory, "ulimit -v unlimited")]
    return [_check("address space", "warn", message, "ulimit -v unlimited")]


def locked_memory(limit_bytes: int | None) -> Check:
    """`ulimit -l`. Only `mlock` needs it."""
    if limit_bytes is None:
        return Check("locked memory", "ok", "no limit: `mlock` can hold a model in RAM")
    remedy = None if limit_bytes >= LITTLE_MEMLOCK_BYTES else "ulimit -l unlimited (limits.conf: memlock)"
    return _check("locked memory", "ok", f"`mlock` can hold {size(limit_bytes)} in RAM", remedy)


def huge_pages(setting: str) -> list[Check]:
    """Transparent huge pages, from "always [madvise] never". llama.cpp itself never asks for them."""
    match = re.search(r"\[(\w+)\]", setting)
    if match is None:
        return []
    words = {
        "always": "always: also for repacked weights and the KV cache",
        "madvise": "madvise: not for llama.cpp, which does not ask",
    }
    enable = "to try: echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    return [_check("huge pages", "ok", words.get(match[1], match[1]), None if match[1] == "always" else enable)]


# -- the CPU ----------------------------------------------------------------------------------------------------------


def cpus(usable: int, machine: int, physical: int, quota: float | None, threads: int) -> list[Check]:
    """Cores and what is left of them, and the threads that come of it."""
    name = "threads"
    found = f"{threads} by default: {physical} physical cores of {usable} logical CPUs"
    lines = [Check(name, "ok", found)]
    if usable < machine:
        message = f"this process may run on {usable} of the machine's {machine} CPUs"
        lines.append(_check("affinity", "ok", message, "taskset -p $$ shows it; cpuset of the container or the job"))
    if quota is not None and quota < physical:
        message = f"{significant(quota)} CPUs' worth of time for {physical} cores: more threads than that only wait"
        lines.append(_check("CPU quota", "warn", message, "docker run --cpus, or CPUQuota= of its systemd unit"))
    return lines


def openmp(environ: Mapping[str, str], threads: int) -> list[Check]:
    """Variables of OpenMP that change how llama.cpp computes, or seem to."""
    lines = []
    limit = environ.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) < threads:
        message = f"OMP_THREAD_LIMIT={limit} leaves fewer than the {threads} threads that there are cores for"
        lines.append(_check("OpenMP", "warn", message, "unset OMP_THREAD_LIMIT"))
    for variable in ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES"):
        if environ.get(variable, "false").lower() not in ("", "false", "disabled", "none"):
            message = f"{variable} ties threads to CPUs: right for one run alone, slow for two at a time"
            lines.append(_check("OpenMP", "warn", message, f"unset {variable}"))
    if environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        message = "OMP_WAIT_POLICY=PASSIVE: threads sleep at barriers, good on a busy machine, slower on an idle one"
        lines.append(_check("OpenMP", "ok", message, "unset OMP_WAIT_POLICY"))
    if environ.get("OMP_NUM_THREADS"):
        lines.append(Check("OpenMP", "ok", "OMP_NUM_THREADS is set, but llama.cpp overrides it: `n_threads` counts"))
    return lines


def governor(cpufreq: Path) -> list[Check]:
    """How the kernel chooses the CPU's frequency, from the first CPU's `cpufreq` folder."""
    chosen, driver = line_of(cpufreq / "scaling_governor"), line_of(cpufreq / "scaling_driver")
    if not chosen:
        return []
    preference = line_of(cpufreq / "energy_performance_preference")
    # These drivers call their dynamic mode "powersave"; there the preference says how much of it is meant.
    own = driver in ("intel_pstate", "amd-pstate-epp")
    slow = preference in ("power", "balance_power") if own else chosen == "powersave"
    message = f"{chosen}{f', preference {preference}' if preference else ''} ({driver or 'unknown driver'})"
    remedy = "sudo cpupower frequency-set -g performance" if slow else None
    return [_check("CPU frequency", "warn" if slow else "ok", message, remedy)]


def power(source: hardware.PowerSource | None) -> list[Check]:
    """Battery or mains. Machines without a battery are not worth a line."""
    if source == "battery":
        return [_check("power", "warn", "on battery: most machines compute slower then", "plug it in")]
    return [Check("power", "ok", source)] if source else []


def load(before: CpuTicks, after: CpuTicks, usable: set[int]) -> list[Check]:
    """How many cores others used between two looks at `Proc.cpu_ticks`."""
    if not before or not after:
        return []
    busy = 0.0
    for cpu in usable & before.keys() & after.keys():
        total, idle = (now - then for now, then in zip(after[cpu], before[cpu], strict=True))
        busy += max(0.0, 1 - idle / total) if total > 0 else 0.0
    message = f"others use {fixed(busy, 1)} of {len(usable)} CPUs right now"
    if busy > BUSY_SHARE * len(usable):
        return [_check("load", "warn", message, "end what computes (top shows it), or take fewer threads: `n_threads`")]
    return [Check("load", "ok", message)]


# -- the terminal -----------------------------------------------------------------------------------------------------


def terminal(environ: Mapping[str, str]) -> Check:
    """Whether the locale says UTF-8: what a model writes is sent as UTF-8 whatever it says."""
    # As the C library decides: the first that is set and not empty.
    locale = next((environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(name)), "")
    if re.search(r"utf-?8", locale, re.IGNORECASE) or sys.platform == "darwin":
        return Check("terminal", "ok", f"UTF-8 ({locale})" if locale else "UTF-8")
    message = f"the locale is {printable(locale, 60) or 'not set'}, not UTF-8: other letters than ASCII may look wrong"
    return _check("terminal", "warn", message, "export LANG=C.UTF-8")


# -- all of them ------------------------------------------------------------------------------------------------------


def of_this_machine(
    wait: Callable[[], None],
    list_leftovers: Callable[[], Sequence[Leftover]],
    environ: Mapping[str, str] = os.environ,
    proc: Path = Path("/proc"),
    sys_root: Path = Path("/sys"),
) -> list[Check]:
    """Every check that asks neither llama.cpp nor the network.

    `wait` is called between two looks at the load; `list_leftovers` tells what lies in the store and is no model.
    """
    kernel = Proc(proc)
    before = kernel.cpu_ticks()
    wait()
    after = kernel.cpu_ticks()
    folder = paths.hub_cache()
    free, writable = disk_of(folder)
    usable = hardware.usable_cpus()
    threads = hardware.default_threads()
    cores, quota = hardware.physical_cores(usable), hardware.cpu_quota()
    checks = [
        python((sys.version_info[0], sys.version_info[1], sys.version_info[2]), sys.maxsize > 1 << 32),
        required_packages(packages.requirements()),
        *nvidia(gpus.nvidia_driver(proc), gpus.nvidia_library()),
        *vulkan_headers(backends.vulkan_headers()),
        cache_folder(folder, free, writable),
    ]
    try:
        checks.append(leftovers(list_leftovers()))
    except (OSError, LlmrunError) as error:
        checks.append(Check("store", "warn", f"it can't be read: {printable(str(error), 200)}"))
    token_file = Path(environ.get("HF_TOKEN_PATH") or folder.parent / "token")
    physical = hardware.physical_memory()
    return [
        *checks,
        *hub(environ, token_file),
        memory(kernel.meminfo(), hardware.available_memory()),
        *container_memory(hardware.container_limit(), physical),
        *address_space(limit_of("RLIMIT_AS")),
        locked_memory(limit_of("RLIMIT_MEMLOCK")),
        *huge_pages(text_of(sys_root / "kernel/mm/transparent_hugepage/enabled")),
        *cpus(len(usable), os.cpu_count() or len(usable), cores, quota, threads),
        *openmp(environ, threads),
        *governor(sys_root / f"devices/system/cpu/cpu{min(usable)}/cpufreq"),
        *power(hardware.power_source(sys_root / "class/power_supply")),
        *load(before, after, usable),
        terminal(environ),
    ]


def disk_of(folder: Path) -> tuple[int | None, bool]:
    """Bytes that are free for us where the folder is or will be, and whether it can be written to."""
    existing = fs.nearest(folder)
    try:
        return fs.free_bytes(existing), existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:
        return None, False


def limit_of(name: str) -> int | None:
    """A soft limit of this process ("RLIMIT_AS"), or None for no limit."""
    import resource

    if not hasattr(resource, name):
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft
