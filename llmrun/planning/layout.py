"""What llama.cpp is told of where things go, and the devices that there are to choose from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llmrun.errors import Act, Change, Remedy, UsageError
from llmrun.machine.device import Device
from llmrun.options.load import MAX_DEVICES, LoadConfig


@dataclass(frozen=True)
class DeviceBudget:
    """A device that layers can lie on.

    Attributes:
        free_bytes: of its memory; None where it doesn't tell: nothing is placed there unasked.
    """

    name: str
    free_bytes: int | None


@dataclass(frozen=True)
class Layout:
    """What llama.cpp is told about where things go; `Placement` is what follows from it.

    Attributes:
        n_gpu_layers: of the last layers and the output, so many go to `devices`.
        shares: of these layers, by device; as many as there are devices.
        n_cpu_moe: the experts of so many of the first layers stay in RAM.
        overrides: (pattern, device), those of `n_cpu_moe` included.
    """

    n_gpu_layers: int
    devices: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    n_cpu_moe: int = 0
    overrides: tuple[tuple[str, str], ...] = ()


def usable_devices(
    config: LoadConfig, devices: Sequence[Device], why_none: str = "RAM alone"
) -> tuple[DeviceBudget, ...]:
    """The devices that layers may lie on, in the order in which llama.cpp fills them: workers, GPUs, then an integrated
    GPU where there is no other. Raises `UsageError` for a name that is none of them, and for layers where there is none
    at all, with why."""
    usable = [device for device in devices if device.kind in ("gpu", "igpu")]
    named, listed = config.offload.devices, Act("devices", fields={"rpc": config.rpc} if config.rpc else None)
    if named is not None:
        by_name = {device.name: device for device in usable}
        chosen = [by_name[_known(name, "devices", by_name, listed)] for name in named]
    else:
        remote = [device for device in usable if device.backend.startswith("RPC")]
        own = [device for device in usable if device.kind == "gpu" and device not in remote]
        chosen = remote + (own or [device for device in usable if device.kind == "igpu"])
    if len(chosen) > MAX_DEVICES:
        problem = f"{len(chosen)} devices, llama.cpp takes at most {MAX_DEVICES}: choose by `devices`"
        raise UsageError(problem, hint=listed)
    for _, name in config.offload.override_tensor:
        _known(name, "override_tensor", sorted(device.name for device in devices), listed)
    n_layers = config.offload.n_gpu_layers
    if not chosen and n_layers not in ("auto", 0):
        # llama.cpp would take any number here and put everything into RAM without a word.
        problem = f"{n_layers} layers, and there is no device to put them on: {why_none}"
        ways = (listed, Change({"n_gpu_layers": 0}))
        raise UsageError(problem, field="n_gpu_layers", value=n_layers, remedies=ways)
    return tuple(DeviceBudget(device.name, device.free_bytes) for device in chosen)


def _known(name: str, field: str, names: Collection[str], listed: Remedy) -> str:
    """The name, if it is one of these. Raises `UsageError`."""
    if name in names:
        return name
    among = ", ".join(names) or "none at all"
    raise UsageError(f"there is no device '{name}' among {among}", field=field, value=name, hint=listed)
