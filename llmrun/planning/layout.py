"""What llama.cpp is told of where things go, and the devices that there are to choose from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def usable_devices(config: LoadConfig, devices: Sequence[Device]) -> tuple[DeviceBudget, ...]:
    """The devices that layers may lie on, in the order in which llama.cpp fills them: workers, GPUs, then an integrated
    GPU where there is no other. Raises `UsageError` for a name that is none of them."""
    usable = [device for device in devices if device.kind in ("gpu", "igpu")]
    named, listed = config.offload.devices, _list_of(config)
    if named is not None:
        by_name = {device.name: device for device in usable}
        for name in named:
            if name not in by_name:
                raise UsageError(
                    f"there is no device '{name}' among {_names(usable)}", field="devices", value=name, hint=listed
                )
        chosen = [by_name[name] for name in named]
    else:
        remote = [device for device in usable if device.backend.startswith("RPC")]
        own = [device for device in usable if device.kind == "gpu" and device not in remote]
        chosen = remote + (own or [device for device in usable if device.kind == "igpu"])
    if len(chosen) > MAX_DEVICES:
        raise UsageError(
            f"{len(chosen)} devices, llama.cpp takes at most {MAX_DEVICES}: choose by `devices`", hint=listed
        )
    known = {device.name for device in devices}
    for _, name in config.offload.override_tensor:
        if name not in known:
            raise UsageError(
                f"there is no device '{name}' among {', '.join(sorted(known))}",
                field="override_tensor",
                value=name,
                hint=listed,
            )
    n_layers = config.offload.n_gpu_layers
    if not chosen and (n_layers == "all" or (n_layers != "auto" and n_layers > 0)):
        # llama.cpp would take any number here and put everything into RAM without a word.
        raise UsageError(
            f"{n_layers} layers, and there is no device to put them on: RAM alone",
            field="n_gpu_layers",
            value=n_layers,
            remedies=(listed, Change({"n_gpu_layers": 0})),
        )
    return tuple(DeviceBudget(device.name, device.free_bytes) for device in chosen)


def _names(devices: Iterable[Device]) -> str:
    return ", ".join(device.name for device in devices) or "none at all"


def _list_of(config: LoadConfig) -> Remedy:
    return Act("devices", fields={"rpc": config.rpc} if config.rpc else None)
