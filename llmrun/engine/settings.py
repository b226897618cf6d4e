"""What was asked for and what was planned, as the child is told it. Pure."""

from __future__ import annotations

import os
from dataclasses import asdict

from llmrun.engine.protocol import Settings
from llmrun.options.load import LoadConfig
from llmrun.planning.layout import Layout
from llmrun.planning.load_plan import LoadPlan


def settings_of_plan(plan: LoadPlan) -> Settings:
    """To load the model as planned."""
    config = plan.config
    return settings_of(
        config,
        plan.layout,
        n_ctx=None if config.n_ctx is None else plan.n_ctx,
        n_ctx_most=plan.n_ctx_most,
        n_threads=plan.n_threads,
        repack=plan.repack,
    )


def settings_of(
    config: LoadConfig, layout: Layout, *, n_ctx: int | None, n_ctx_most: int | None, n_threads: int, repack: bool
) -> Settings:
    offload = config.offload
    return Settings(
        n_ctx=n_ctx,
        n_ctx_most=n_ctx_most,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        n_threads=n_threads,
        n_threads_batch=config.n_threads_batch or n_threads,
        flash_attn=config.flash_attn,
        repack=repack,
        type_k=config.type_k,
        type_v=config.type_v,
        load_mode=config.load_mode,
        numa=config.numa,
        n_gpu_layers=layout.n_gpu_layers,
        devices=list(layout.devices),
        tensor_split=list(layout.shares),
        split_mode=offload.split_mode,
        main_gpu=0 if offload.split_mode == "none" else offload.main_gpu,  # `devices` is then that one alone
        override_tensor=[[pattern, device] for pattern, device in layout.overrides],
        offload_kv=offload.kv,
        override_kv=[[key, value] for key, value in config.override_kv.items()],
        rope={name: value for name, value in asdict(config.rope).items() if value is not None},
        lora=[[os.fspath(adapter.path.absolute()), adapter.scale] for adapter in config.lora],
    )
