"""What was asked for and what was planned, as the child is told it. Pure."""

from __future__ import annotations

import os

from llmrun import codec
from llmrun.engine.protocol import Settings
from llmrun.options.load import LoadConfig
from llmrun.planning.layout import Layout


def settings_of(
    config: LoadConfig, layout: Layout, *, n_ctx: int | None, n_ctx_most: int | None, n_threads: int, repack: bool
) -> Settings:
    """Of `config` all fields that are called the same; the others are decided here."""
    offload = config.offload
    decided = {
        "n_ctx": n_ctx,
        "n_ctx_most": n_ctx_most,
        "n_threads": n_threads,
        "n_threads_batch": config.n_threads_batch or n_threads,
        "repack": repack,
        "n_gpu_layers": layout.n_gpu_layers,
        "devices": layout.devices,
        "tensor_split": layout.shares,
        "split_mode": offload.split_mode,
        "main_gpu": 0 if offload.split_mode == "none" else offload.main_gpu,  # `devices` is then that one alone
        "override_tensor": layout.overrides,
        "offload_kv": offload.kv,
        "override_kv": [*config.override_kv.items()],
        "rope": {name: value for name, value in vars(config.rope).items() if value is not None},
        "lora": [(os.fspath(adapter.path.absolute()), adapter.scale) for adapter in config.lora],
    }
    return codec.convert({**codec.plain(config), **decided}, Settings)
