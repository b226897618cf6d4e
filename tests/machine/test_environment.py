"""What is told of a machine: what the system says, and nothing that names it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from llmrun import codec
from llmrun.machine import environment
from llmrun.machine.device import Device
from llmrun.machine.environment import DeviceInfo, MachineInfo


def test_machine(tmp_path: Path) -> None:
    """What the system tells, and None for the rest; no addresses and no keys."""
    proc, sys_root = tmp_path / "proc", tmp_path / "sys"
    (proc / "driver/nvidia").mkdir(parents=True)
    (proc / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 3 GHz\nflags : fpu hypervisor avx2\n")
    for cpu in os.sched_getaffinity(0):
        (sys_root / f"devices/system/cpu/cpu{cpu}/cpufreq").mkdir(parents=True)
        (sys_root / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor").write_text("powersave\n")
    (sys_root / "devices/system/node/node0").mkdir(parents=True)
    (sys_root / "class/power_supply/BAT0").mkdir(parents=True)
    (sys_root / "class/power_supply/BAT0/type").write_text("Battery\n")
    (sys_root / "kernel/mm/transparent_hugepage").mkdir(parents=True)
    (sys_root / "kernel/mm/transparent_hugepage/enabled").write_text("always [madvise] never\n")
    devices = [
        Device("RPC0", "10.1.2.3:50052", "gpu", "RPC[10.1.2.3:50052]", 4, 2),
        Device("CPU", "Some CPU", "cpu", "CPU", 8, None),
    ]
    environ = {"OMP_WAIT_POLICY": "PASSIVE", "LLAMA_API_KEY": "secret", "HOSTNAME": "here"}
    machine = environment.describe_machine(devices, environ, proc, sys_root)
    assert (machine.cpu, machine.virtual, machine.governor) == ("Some CPU @ 3 GHz", True, "powersave")
    assert (machine.on_battery, machine.numa_nodes, machine.huge_pages) == (True, 1, "madvise")
    assert machine.environment == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert machine.backends == "RPC" and "10.1.2.3" not in json.dumps(codec.plain(machine))
    nowhere = environment.describe_machine([], {}, tmp_path / "none", tmp_path / "none")
    assert (nowhere.cpu, nowhere.virtual, nowhere.governor, nowhere.on_battery) == (None, None, None, None)
    assert nowhere.backends == "CPU" and nowhere.usable_cpus == len(os.sched_getaffinity(0))


def test_backends_are_named_as_llama_bench_names_them() -> None:
    """All but the CPU's, RPC last."""
    kinds = [("RPC0", "gpu", "RPC"), ("CUDA0", "gpu", "CUDA"), ("CUDA1", "gpu", "CUDA"), ("BLAS", "accel", "BLAS")]
    devices = tuple(DeviceInfo(name, kind, "", backend) for name, kind, backend in kinds)  # type: ignore[arg-type]
    assert MachineInfo(devices=devices).backends == "CUDA,BLAS,RPC"
