"""The options of `LoadConfig`, for every command that loads a model. Names are llama.cpp's, defaults `config.py`'s."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmrun.cli.framework.help import MODEL, OFFLOAD, SPEED
from llmrun.cli.framework.option_groups import gathered
from llmrun.errors import UsageError
from llmrun.options import parse
from llmrun.options.config import LoadConfig, Offload, Rope
from llmrun.options.endpoints import parse_endpoints

_DEFAULT = LoadConfig()
_OFFLOAD = _DEFAULT.offload


def _panel(panel: str | None, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _config(
    ctx_size: Annotated[
        int | None,
        _panel(
            None,
            "-c",
            "--ctx-size",
            help="Context in tokens, prompt and answer together; 0: what the model was trained on, or as much of it as"
            " fits.  [default: as much as they need]",
        ),
    ] = None,
    n_gpu_layers: Annotated[
        str,
        _panel(
            None,
            "-ngl",
            "--n-gpu-layers",
            "--gpu-layers",
            metavar="auto|all|N",
            help="Layers to put on GPUs; auto: as many as fit.",
        ),
    ] = "auto",
    device: Annotated[
        str | None,
        _panel(
            OFFLOAD,
            "-dev",
            "--device",
            metavar="NAME,...",
            help="Devices to put layers on, or none; `llmrun devices` lists them.  [default: every GPU]",
        ),
    ] = None,
    rpc: Annotated[
        str,
        _panel(
            OFFLOAD, "--rpc", metavar="HOST:PORT,...", help="Workers (`llmrun worker`) whose devices to use as well."
        ),
    ] = "",
    tensor_split: Annotated[
        str | None,
        _panel(
            OFFLOAD,
            "-ts",
            "--tensor-split",
            metavar="N,...",
            help="Each device's share of the layers, as in 3,1.  [default: by free memory]",
        ),
    ] = None,
    split_mode: Annotated[
        str,
        _panel(
            OFFLOAD,
            "-sm",
            "--split-mode",
            metavar="none|layer|row",
            help="none: one GPU only; layer: whole layers; row: rows of each matrix, where the backend can.",
        ),
    ] = _OFFLOAD.split_mode,
    main_gpu: Annotated[
        int, _panel(OFFLOAD, "-mg", "--main-gpu", help="The one GPU of -sm none, counted from 0.")
    ] = _OFFLOAD.main_gpu,
    n_cpu_moe: Annotated[
        str,
        _panel(OFFLOAD, "-ncmoe", "--n-cpu-moe", metavar="N", help="Keep the experts of the first N layers in RAM."),
    ] = "0",
    cpu_moe: Annotated[bool, _panel(OFFLOAD, "-cmoe", "--cpu-moe", help="Keep all experts in RAM.")] = False,
    override_tensor: Annotated[
        list[str] | None,
        _panel(
            OFFLOAD,
            "-ot",
            "--override-tensor",
            metavar="PATTERN=DEVICE",
            help="Put tensors whose name matches on this device. Repeatable; the first match counts.",
        ),
    ] = None,
    no_kv_offload: Annotated[
        bool, _panel(OFFLOAD, "-nkvo", "--no-kv-offload", help="Keep the KV cache in RAM.")
    ] = False,
    fit_target: Annotated[
        str,
        _panel(OFFLOAD, "-fitt", "--fit-target", metavar="MiB", help="What -ngl auto leaves free on each device."),
    ] = str(_OFFLOAD.fit_target >> 20),
    threads: Annotated[
        int | None, _panel(SPEED, "-t", "--threads", help="Threads for decoding.  [default: physical cores]")
    ] = None,
    threads_batch: Annotated[
        int | None, _panel(SPEED, "-tb", "--threads-batch", help="Threads for prefill.  [default: as -t]")
    ] = None,
    batch_size: Annotated[
        int, _panel(SPEED, "-b", "--batch-size", help="Prompt tokens handed over at once.")
    ] = _DEFAULT.n_batch,
    ubatch_size: Annotated[
        int, _panel(SPEED, "-ub", "--ubatch-size", help="Prompt tokens computed at once.")
    ] = _DEFAULT.n_ubatch,
    flash_attn: Annotated[
        str, _panel(SPEED, "-fa", "--flash-attn", metavar="auto|on|off", help="Flash attention.")
    ] = _DEFAULT.flash_attn,
    cache_type_k: Annotated[
        str,
        _panel(SPEED, "-ctk", "--cache-type-k", metavar="TYPE", help="Type of the cached keys: f16, q8_0, q4_0, ..."),
    ] = _DEFAULT.type_k,
    cache_type_v: Annotated[
        str,
        _panel(
            SPEED,
            "-ctv",
            "--cache-type-v",
            metavar="TYPE",
            help="Of the cached values; a quantized one needs flash attention.",
        ),
    ] = _DEFAULT.type_v,
    repack: Annotated[
        str,
        _panel(
            SPEED,
            "--repack",
            metavar="auto|on|off",
            help="Rearrange the weights for this CPU at load; auto: where it is known to pay.",
        ),
    ] = _DEFAULT.repack,
    load_mode: Annotated[
        str,
        _panel(
            SPEED,
            "-lm",
            "--load-mode",
            metavar="MODE",
            help="How the file is read: auto, none, mmap, mlock, mmap+mlock, dio.",
        ),
    ] = _DEFAULT.load_mode,
    mlock: Annotated[bool, _panel(SPEED, "--mlock", help="Keep the model in RAM: --load-mode mmap+mlock.")] = False,
    numa: Annotated[
        str | None,
        _panel(SPEED, "--numa", metavar="TYPE", help="With several memory nodes: distribute, isolate, numactl."),
    ] = None,
    lora: Annotated[
        list[str] | None, _panel(MODEL, "--lora", metavar="FILE", help="Apply a LoRA adapter. Repeatable.")
    ] = None,
    lora_scaled: Annotated[
        list[str] | None,
        _panel(MODEL, "--lora-scaled", metavar="FILE:SCALE", help="The same, at a strength. Repeatable."),
    ] = None,
    rope_scaling: Annotated[
        str | None,
        _panel(MODEL, "--rope-scaling", metavar="none|linear|yarn", help="Beyond the trained context."),
    ] = None,
    rope_scale: Annotated[
        float | None, _panel(MODEL, "--rope-scale", help="Context longer by this factor: 1 / --rope-freq-scale.")
    ] = None,
    rope_freq_base: Annotated[
        float | None, _panel(MODEL, "--rope-freq-base", help="Base of the rotations' frequencies.")
    ] = None,
    rope_freq_scale: Annotated[
        float | None, _panel(MODEL, "--rope-freq-scale", help="What positions are multiplied by.")
    ] = None,
    yarn_orig_ctx: Annotated[
        int | None, _panel(MODEL, "--yarn-orig-ctx", help="YaRN: the context that the model was trained on.")
    ] = None,
    yarn_ext_factor: Annotated[
        float | None, _panel(MODEL, "--yarn-ext-factor", help="YaRN: mix of extrapolation; 0: interpolation alone.")
    ] = None,
    yarn_attn_factor: Annotated[
        float | None, _panel(MODEL, "--yarn-attn-factor", help="YaRN: scale of attention.")
    ] = None,
    yarn_beta_slow: Annotated[float | None, _panel(MODEL, "--yarn-beta-slow", help="YaRN: high correction.")] = None,
    yarn_beta_fast: Annotated[float | None, _panel(MODEL, "--yarn-beta-fast", help="YaRN: low correction.")] = None,
    override_kv: Annotated[
        list[str] | None,
        _panel(
            MODEL,
            "--override-kv",
            metavar="KEY=TYPE:VALUE",
            help="Metadata to count instead of the model's own; TYPE: int, float, bool, str. Repeatable.",
        ),
    ] = None,
) -> LoadConfig:
    if cpu_moe and n_cpu_moe != "0":
        raise UsageError(
            f"-cmoe/--cpu-moe means all layers, -ncmoe/--n-cpu-moe {n_cpu_moe} some of them: one of the two"
        )
    if mlock and load_mode not in ("auto", "mmap", "mmap+mlock"):
        raise UsageError(f"--mlock is --load-mode mmap+mlock, and not {load_mode}")
    if rope_scale is not None and rope_freq_scale is not None:
        raise UsageError("--rope-scale is 1 / --rope-freq-scale: one of the two")
    if rope_scale is not None and not rope_scale > 0:
        raise UsageError(f"--rope-scale: {rope_scale} is not above 0", hint="llmrun run --help-all")
    return LoadConfig(
        n_ctx=ctx_size,
        n_batch=batch_size,
        n_ubatch=ubatch_size,
        n_threads=threads,
        n_threads_batch=threads_batch,
        flash_attn=flash_attn,  # type: ignore[arg-type]  # these are checked when it is made
        repack=repack,  # type: ignore[arg-type]
        type_k=cache_type_k,  # type: ignore[arg-type]
        type_v=cache_type_v,  # type: ignore[arg-type]
        load_mode="mmap+mlock" if mlock else load_mode,  # type: ignore[arg-type]
        numa=numa,  # type: ignore[arg-type]
        rpc=parse_endpoints(rpc),
        offload=Offload(
            n_gpu_layers=parse.n_gpu_layers(n_gpu_layers),
            devices=parse.devices(device),
            tensor_split=parse.tensor_split(tensor_split),
            split_mode=split_mode,  # type: ignore[arg-type]
            main_gpu=main_gpu,
            override_tensor=parse.override_tensor(override_tensor or []),
            n_cpu_moe="all" if cpu_moe else parse.n_cpu_moe(n_cpu_moe),
            kv=not no_kv_offload,
            fit_target=parse.mebibytes("-fitt/--fit-target", fit_target),
        ),
        rope=Rope(
            scaling=rope_scaling,  # type: ignore[arg-type]
            freq_base=rope_freq_base,
            freq_scale=rope_freq_scale if rope_scale is None else 1 / rope_scale,
            yarn_orig_ctx=yarn_orig_ctx,
            yarn_ext_factor=yarn_ext_factor,
            yarn_attn_factor=yarn_attn_factor,
            yarn_beta_slow=yarn_beta_slow,
            yarn_beta_fast=yarn_beta_fast,
        ),
        lora=parse.lora(lora or [], lora_scaled or []),
        override_kv=parse.override_kv(override_kv or []),
    )


with_load = gathered(
    "load",
    _config,
    either=(("cpu_moe", "n_cpu_moe"), ("mlock", "load_mode"), ("rope_scale", "rope_freq_scale")),
)
"""A decorator: the command gets these options, and their values as one `LoadConfig` called `load`."""
